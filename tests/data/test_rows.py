"""Rows of a data set: all errors of both files at once, and the examples of valid rows."""

import pytest
import tiny_tokenizers
from paths import SHARED
from row_files import INVALID_ROWS, row, turns, write_jsonl

from rft_jax.data import chat as chats
from rft_jax.data import rows

VALID = SHARED.joinpath('data', 'rare_disease', 'pmid_split', 'valid.jsonl')


# --- config and fingerprint ------------------------------------------------------------------


def test_missing_data_says_how_to_get_some():
  first, second = rows.DataConfig(validation='none.jsonl').validate()
  assert first.startswith("train='', need") and 'make demo' in first
  assert second.startswith("validation='none.jsonl', need")
  assert rows.DataConfig(train='hub:a/b', validation='hub:a/b:test').validate() == []


def test_a_fingerprint_depends_on_the_bytes_alone(tmp_path):
  digest = rows.fingerprint(write_jsonl(tmp_path / 'a.jsonl', [row()]))
  assert digest == rows.fingerprint(write_jsonl(tmp_path / 'b.jsonl', [row()]))
  assert len(digest) == 64
  assert digest != rows.fingerprint(write_jsonl(tmp_path / 'c.jsonl', [row('other')]))


# --- errors ----------------------------------------------------------------------------------


def test_all_errors_of_both_files_are_reported_at_once(load_error):
  text = load_error(
    [row(answer='a'), '{broken', *INVALID_ROWS.values(), row('no answer')],
    [row('x' * 2000, answer='a'), row('y', answer=7)],
    item_fields=frozenset({'answer'}),
  )
  for code in (
    *INVALID_ROWS,
    'E_JSON',
    'E_ITEM_FIELD_MISSING',
    'E_PROMPT_TOO_LONG',
    'E_ITEM_FIELD_TYPE',
  ):
    assert (code in text) == (code.startswith('E_')), code
  assert 'train.jsonl line 2: E_JSON' in text
  assert 'valid.jsonl line 1: E_PROMPT_TOO_LONG' in text
  assert 'valid.jsonl line 2: E_ITEM_FIELD_TYPE: item.answer' in text


def test_a_message_that_is_not_rendered_is_an_error(tmp_path):
  template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
  path = tiny_tokenizers.save(tmp_path / 'tokenizer', template=template)
  chat = chats.make(path, chats.ChatConfig())
  source = write_jsonl(tmp_path / 'cases.jsonl', [row(), turns('developer', 'user')])
  with pytest.raises(ValueError, match=r'line 2: E_MESSAGE_NOT_RENDERED: .*messages\[0\]'):
    rows.load(rows.DataConfig(train=source, validation=source), chat=chat)


def test_supervised_rows_without_answer_are_an_error(load_error):
  text = load_error([row()], [turns('user', 'assistant')], kind='targets')
  assert 'train.jsonl line 1: E_LAST_ROLE' in text and 'sft.target' in text


def test_a_target_template_reads_only_fields_that_are_there(load, load_error):
  text = load_error(
    [row('a', solution=' '), row('b')], kind='targets', target_template='{{ item.solution }}'
  )
  assert 'line 2: E_ITEM_FIELD_MISSING: item.solution' in text
  assert 'line 1: E_MESSAGE_NOT_RENDERED' in text and 'is empty for this row' in text
  with pytest.raises(ValueError, match='sft.target'):
    load([row()], kind='targets', target_template='{{ solution }}')
  assert 'a target may read the fields of item alone' in load_error(
    [row()], kind='targets', target_template='{{ sample.output_text }}'
  )


def test_text_that_contains_a_special_token_is_a_warning(load):
  _, _, warnings = load([row('what does <eos> mean?')], [row('v')])
  assert len(warnings) == 1 and "W_CONTROL_TOKEN: messages[0] spells out '<eos>'" in warnings[0]


# --- examples --------------------------------------------------------------------------------


def test_an_example_holds_the_ids_of_its_row(load, plain_chat):
  train, validation, warnings = load([row('a', answer='x'), row('b', answer='y')])
  assert warnings == [] and len(validation) == 1
  assert [example.prompt_ids for example in train] == [
    plain_chat.prompt_ids(row(text)['messages']) for text in 'ab'
  ]
  assert train[1].item == (row('b', answer='y'), 'train.jsonl:2')
  assert train[0].target_ids is None


def test_a_target_template_makes_the_target(load, plain_chat):
  train, _, _ = load(
    [row('a', solution='6 x 7 = 42')], kind='targets', target_template='So: {{ item.solution }}'
  )
  assert plain_chat.tokenizer.decode(train[0].target_ids) == 'So: 6 x 7 = 42<eos>'
  assert train[0].prompt_ids == plain_chat.prompt_ids(row('a')['messages'])


def test_an_assistant_turn_at_the_end_is_the_target(load, plain_chat):
  train, _, _ = load(
    [turns('user', 'assistant')], [turns('developer', 'user', 'assistant')], kind='targets'
  )
  assert plain_chat.tokenizer.decode(train[0].target_ids) == 'assistant 1<eos>'


def test_held_out_rows_need_no_target(load, plain_chat):
  train, validation, _ = load(
    [row('one', answer='1', solution='so 1')],
    [row('two', answer='2')],
    item_fields=frozenset({'answer'}),
    kind='targets',
    target_template='{{ item.solution }}',
  )
  assert train[0].target_ids and validation[0].target_ids is None
  assert validation[0].prompt_ids == plain_chat.prompt_ids(row('two')['messages'])


@pytest.mark.full
def test_the_rare_disease_cases_load_without_error(plain_chat):
  if not VALID.exists():
    pytest.skip('needs the rare-disease cases of the shared data, which are not here')
  config = rows.DataConfig(train=str(VALID), validation=str(VALID), max_prompt_tokens=8000)
  train, _, warnings = rows.load(
    config,
    chat=plain_chat,
    item_fields=frozenset({'gene'}),
    kind='targets',
    target_template='{"genes": ["{{ item.gene }}"]}',
  )
  assert len(train) == 512
  assert any('W_TRAIN_VAL_OVERLAP' in warning for warning in warnings)
