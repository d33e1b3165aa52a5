"""Rows from files: read the same from every format, and everything wrong told at once."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny_tokenizers
from paths import SHARED

from rft_jax.data import chat, rows, validate

VALID = SHARED.joinpath('data', 'rare_disease', 'pmid_split', 'valid.jsonl')
TOOL = {'type': 'function', 'function': {'name': 'look_up', 'parameters': {'type': 'object'}}}


def row(text='What is 6 x 7?', **fields):
  return {'messages': [{'role': 'user', 'content': text}], **fields}


def turns(*roles, **fields):
  return {
    'messages': [{'role': role, 'content': f'{role} {i}'} for i, role in enumerate(roles)],
    **fields,
  }


def write(path, values):
  """Writes rows, or ready lines, as JSONL; returns the path as text."""
  lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
  path.write_text(''.join(line + '\n' for line in lines))
  return str(path)


@pytest.fixture(scope='module')
def plain_chat(tmp_path_factory):
  """Writes every content on a line, for any role; ids are bytes."""
  path = tiny_tokenizers.save(tmp_path_factory.mktemp('tokenizer'), template=None, special=())
  return chat.make(path, chat.ChatConfig())


@pytest.fixture
def load(tmp_path, plain_chat):
  """Returns rows.load of two lists of rows."""

  def load(train, validation=None, *, max_prompt_tokens=1000, overlong='error', **arguments):
    validation = [row('a held-out case', **fields_of(train))] if validation is None else validation
    config = rows.DataConfig(
      train=write(tmp_path / 'train.jsonl', train),
      validation=write(tmp_path / 'valid.jsonl', validation),
      max_prompt_tokens=max_prompt_tokens,
      overlong=overlong,
    )
    return rows.load(config, chat=plain_chat, **arguments)

  def fields_of(train):
    first = train[0] if train and isinstance(train[0], dict) else {}
    return {key: value for key, value in first.items() if key not in ('messages', 'tools')}

  return load


def error_of(load, *arguments, **more):
  with pytest.raises(ValueError) as error:
    load(*arguments, **more)
  return str(error.value)


# --- reading ---------------------------------------------------------------------------------


def test_the_whole_row_is_the_item(tmp_path):
  one = row(answer={'gene': 'ABC1', 'ranks': [1, 2.5, None]}, tools=[TOOL])
  items, problems = rows.read(write(tmp_path / 'cases.jsonl', [one, row('b')]))
  assert problems == []
  assert items[0] == (one, 'cases.jsonl:1') and items[1].source == 'cases.jsonl:2'


def test_parquet_equals_jsonl(tmp_path):
  values = [
    turns('developer', 'user', answer='42', detail={'a': 1}),
    {'messages': [{'role': 'user', 'content': 'x', 'name': 'ann'}], 'answer': 'y'},
  ]
  pa.parquet.write_table(pa.Table.from_pylist(values), tmp_path / 'cases.parquet')
  from_parquet, problems = rows.read(str(tmp_path / 'cases.parquet'))
  from_jsonl, _ = rows.read(write(tmp_path / 'cases.jsonl', values))
  assert problems == []
  assert [item.row for item in from_parquet] == [item.row for item in from_jsonl] == values


def test_a_directory_of_parquet_files_is_one_data_set(tmp_path):
  for name, text in (('b', 'second'), ('a', 'first')):
    pa.parquet.write_table(pa.Table.from_pylist([row(text)]), tmp_path / f'{name}.parquet')
  items, _ = rows.read(str(tmp_path))
  assert [item.row for item in items] == [row('first'), row('second')]
  assert [validate.line_of(item) for item in items] == [1, 2]


def test_a_json_array_equals_jsonl(tmp_path):
  values = [row('a'), row('b')]
  (tmp_path / 'cases.json').write_text(json.dumps(values, indent=2))
  assert [item.row for item in rows.read(str(tmp_path / 'cases.json'))[0]] == values


def test_a_hub_data_set_is_read_by_split(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  asked = []

  def load_dataset(name, split):
    asked.append((name, split))
    return datasets.Dataset.from_list([row('a', answer=None), row('b', answer='x')])

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  items, problems = rows.read('hub:someone/cases:test')
  rows.read('hub:someone/cases', split='validation')
  assert asked == [('someone/cases', 'test'), ('someone/cases', 'validation')]
  assert problems == [] and [item.row for item in items] == [row('a'), row('b', answer='x')]


def test_every_line_that_is_no_row_is_named(tmp_path):
  path = tmp_path / 'cases.jsonl'
  good = json.dumps(row()).encode()
  path.write_bytes(
    b'\xef\xbb\xbf' + good + b'\n\n{"messages": \n[1]\n"\xff"\n{"a": NaN}\n'
    b'{"a": "\\ud800"}\n' + good
  )
  items, problems = rows.read(str(path))
  assert [validate.line_of(item) for item in items] == [1, 8]
  assert {problem.code for problem in problems} == {'E_JSON'}
  assert [problem.line for problem in problems] == [1, 2, 3, 4, 5, 6, 7]
  reasons = ['byte order mark', 'blank', 'column', 'an array', 'UTF-8', 'NaN', 'surrogate']
  assert all(reason in problem.message for reason, problem in zip(reasons, problems, strict=True))


def test_an_empty_file_has_too_few_rows(tmp_path):
  assert [problem.code for problem in rows.read(write(tmp_path / 'x.jsonl', []))[1]] == [
    'E_COUNT_MIN'
  ]


def test_a_damaged_parquet_file_is_named(tmp_path):
  (tmp_path / 'cases.parquet').write_bytes(b'PAR1 no more')
  (problem,) = rows.read(str(tmp_path / 'cases.parquet'))[1]
  assert problem.code == 'E_FILE' and 'cases.parquet' in problem.message


def test_missing_data_says_how_to_get_some():
  first, second = rows.DataConfig(validation='none.jsonl').validate()
  assert first.startswith("train='', need") and 'make demo' in first
  assert second.startswith("validation='none.jsonl', need")
  assert rows.DataConfig(train='hub:a/b', validation='hub:a/b:test').validate() == []


def test_a_fingerprint_follows_the_bytes(tmp_path):
  one = rows.fingerprint(write(tmp_path / 'a.jsonl', [row()]))
  assert one == rows.fingerprint(write(tmp_path / 'b.jsonl', [row()])) and len(one) == 64
  assert one != rows.fingerprint(write(tmp_path / 'c.jsonl', [row('other')]))


# --- the shape of rows -----------------------------------------------------------------------

BROKEN = {
  'E_MESSAGES_MISSING': {'prompt': 'x'},
  'E_MESSAGES_NOT_LIST': {'messages': 'x'},
  'E_MESSAGES_EMPTY': {'messages': []},
  'E_ROLE_MISSING': {'messages': [{'content': 'x'}]},
  'E_ROLE_UNKNOWN': {'messages': [{'role': 'human', 'content': 'x'}]},
  'E_LAST_ROLE': turns('user', 'developer'),
  'E_ASSISTANT_LAST': turns('user', 'assistant'),
  'E_CONTENT_EMPTY': row(' \n'),
  'E_UNSUPPORTED_PART': row([{'type': 'image_url', 'image_url': {'url': 'x'}}]),
  'E_TOOLS_SCHEMA': row(tools=[{'type': 'function', 'function': {'name': 'no spaces'}}]),
  'W_ROLE_SYSTEM': turns('system', 'user'),
}


@pytest.mark.parametrize('code', BROKEN)
def test_a_broken_row_gets_its_code_line_and_way_out(tmp_path, code):
  items, _ = rows.read(write(tmp_path / 'cases.jsonl', [row(), BROKEN[code]]))
  (problem,) = validate.rows(items, supervised=False, with_target=False)
  assert (problem.code, problem.line) == (code, 2) and problem.hint and problem.path


@pytest.mark.parametrize(
  'bad',
  [
    {'type': 'retrieval'},
    'x',
    {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'no such type'}}},
  ],
)
def test_a_bad_tool_is_refused(tmp_path, bad):
  items, _ = rows.read(write(tmp_path / 'cases.jsonl', [row(tools=[TOOL, bad])]))
  (problem,) = validate.rows(items, supervised=False, with_target=False)
  assert (problem.code, problem.path) == ('E_TOOLS_SCHEMA', 'tools[1]')


def test_a_turn_of_tool_calls_needs_no_content(tmp_path):
  call = {'id': 'a', 'type': 'function', 'function': {'name': 'look_up', 'arguments': '{}'}}
  one = {
    'messages': [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': None, 'tool_calls': [call]},
      {'role': 'tool', 'tool_call_id': 'a', 'content': 'y'},
      {'role': 'user', 'content': 'z'},
    ],
    'tools': [TOOL],
  }
  items, _ = rows.read(write(tmp_path / 'cases.jsonl', [one]))
  assert validate.rows(items, supervised=False, with_target=False) == []


# --- everything at once ----------------------------------------------------------------------


def test_all_errors_of_both_files_are_told_at_once(load):
  train = [row(answer='a'), '{broken', *BROKEN.values(), row('no answer')]
  text = error_of(
    load,
    train,
    [row('x' * 2000, answer='a'), row('y', answer=7)],
    item_fields=frozenset({'answer'}),
  )
  for code in (*BROKEN, 'E_JSON', 'E_ITEM_FIELD_MISSING', 'E_PROMPT_TOO_LONG', 'E_ITEM_FIELD_TYPE'):
    assert (code in text) == (code.startswith('E_')), code
  assert 'train.jsonl line 2: E_JSON' in text
  assert 'valid.jsonl line 1: E_PROMPT_TOO_LONG' in text
  assert 'valid.jsonl line 2: E_ITEM_FIELD_TYPE: item.answer' in text


def test_five_hundred_broken_rows_are_one_line(load):
  text = error_of(
    load, [row(str(i)) for i in range(500)], [row('v', gene='A')], item_fields=frozenset({'gene'})
  )
  lines = text.splitlines()
  assert len(lines) == 2 and 'lines 1, 2, 3, 4, 5 and 495 more' in lines[1]
  assert 'item.gene' in lines[1] and 'E_ITEM_FIELD_MISSING' in lines[1]


def test_a_field_deep_in_the_row_is_looked_up(load):
  train = [row('a', ref={'genes': [{'name': 'A'}]}), row('b', ref={'genes': []})]
  text = error_of(load, train, item_fields=frozenset({'ref.genes[0].name'}))
  assert 'train.jsonl line 2: E_ITEM_FIELD_MISSING: item.ref.genes[0].name' in text


def test_a_message_that_is_not_rendered_is_an_error(tmp_path):
  template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
  path = tiny_tokenizers.save(tmp_path / 'tokenizer', template=template)
  made = chat.make(path, chat.ChatConfig())
  source = write(tmp_path / 'cases.jsonl', [row(), turns('developer', 'user')])
  with pytest.raises(ValueError, match=r'line 2: E_MESSAGE_NOT_RENDERED: .*messages\[0\]'):
    rows.load(rows.DataConfig(train=source, validation=source), chat=made)


def test_overlong_prompts_are_an_error_or_dropped_and_told(load):
  train = [row('short'), row('x' * 100)]
  assert 'line 2: E_PROMPT_TOO_LONG: 101 prompt tokens, more than 50' in error_of(
    load, train, max_prompt_tokens=50
  )
  examples, _, warnings = load(train, max_prompt_tokens=50, overlong='drop')
  assert [example.item.source for example in examples] == ['train.jsonl:1']
  assert len(warnings) == 1 and 'line 2: W_PROMPT_DROPPED' in warnings[0]


def test_when_every_row_is_dropped_none_is_left(load):
  assert 'E_COUNT_MIN' in error_of(load, [row('x' * 100)], max_prompt_tokens=50, overlong='drop')


# --- warnings --------------------------------------------------------------------------------


def test_a_prompt_twice_and_in_both_files_is_told(load):  # R7
  same = {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'a case'}]}]}
  _, _, warnings = load([row('a case'), row('b'), same], [row('a case ')])
  assert len(warnings) == 2
  assert 'train.jsonl line 3: W_DUPLICATE_PROMPT: the same prompt as line 1' in warnings[0]
  assert 'valid.jsonl line 1: W_TRAIN_VAL_OVERLAP: the same prompt as train.jsonl:1' in warnings[1]


def test_an_answer_in_its_prompt_and_a_dominant_answer_are_told(load):
  train = [row(f'case {i}', gene='STXBP1' if i else 'NF1') for i in range(30)]
  train.append(row('Is it STXBP1?', gene='STXBP1'))
  _, _, warnings = load(train, [row('v', gene='NF1')], item_fields=frozenset({'gene'}))
  assert len(warnings) == 2
  assert 'train.jsonl line 31: W_ANSWER_LEAK' in warnings[0]
  assert 'W_LABEL_SKEW: item.gene: "STXBP1" in 30 of 31 rows' in warnings[1]


def test_text_that_would_become_a_control_token_is_told(load):
  _, _, warnings = load([row('what does <eos> mean?')], [row('v')])
  assert len(warnings) == 1 and "W_CONTROL_TOKEN: messages[0] spells '<eos>'" in warnings[0]


# --- what comes out --------------------------------------------------------------------------


def test_an_example_holds_the_ids_of_its_row(load, plain_chat):
  train, validation, warnings = load([row('a', answer='x'), row('b', answer='y')])
  assert warnings == [] and len(validation) == 1
  assert [example.prompt_ids for example in train] == [
    plain_chat.prompt_ids(row(text)['messages']) for text in 'ab'
  ]
  assert train[1].item == (row('b', answer='y'), 'train.jsonl:2')
  assert train[0].target_ids is None


def test_a_target_template_makes_the_answer(load, plain_chat):
  train, _, _ = load(
    [row('a', solution='6 x 7 = 42')], kind='targets', target_template='So: {{ item.solution }}'
  )
  assert plain_chat.tokenizer.decode(train[0].target_ids) == 'So: 6 x 7 = 42<eos>'
  assert train[0].prompt_ids == plain_chat.prompt_ids(row('a')['messages'])


def test_an_assistant_turn_at_the_end_is_the_answer(load, plain_chat):
  train, _, _ = load(
    [turns('user', 'assistant')], [turns('developer', 'user', 'assistant')], kind='targets'
  )
  assert plain_chat.tokenizer.decode(train[0].target_ids) == 'assistant 1<eos>'


def test_supervised_rows_without_answer_are_an_error(load):
  text = error_of(load, [row()], [turns('user', 'assistant')], kind='targets')
  assert 'train.jsonl line 1: E_LAST_ROLE' in text and 'sft.target' in text


def test_a_target_template_reads_only_fields_that_are_there(load):
  text = error_of(
    load, [row('a', solution=' '), row('b')], kind='targets', target_template='{{ item.solution }}'
  )
  assert 'line 2: E_ITEM_FIELD_MISSING: item.solution' in text
  assert 'line 1: E_MESSAGE_NOT_RENDERED' in text and 'is empty for this row' in text
  with pytest.raises(ValueError, match='sft.target'):
    load([row()], kind='targets', target_template='{{ solution }}')
  assert 'a target is made of the fields of item alone' in error_of(
    load, [row()], kind='targets', target_template='{{ sample.output_text }}'
  )


def test_the_real_cases_load_without_error(plain_chat):
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


def test_held_out_rows_need_no_target(tmp_path, plain_chat):
  row = {'messages': [{'role': 'user', 'content': 'one'}], 'answer': '1'}
  held_out = {'messages': [{'role': 'user', 'content': 'two'}], 'answer': '2'}
  for name, value in (('train', row | {'solution': 'so 1'}), ('validation', held_out)):
    (tmp_path / f'{name}.jsonl').write_text(json.dumps(value) + '\n')
  config = rows.DataConfig(
    train=str(tmp_path / 'train.jsonl'), validation=str(tmp_path / 'validation.jsonl')
  )
  train, validation, _ = rows.load(
    config,
    chat=plain_chat,
    item_fields=frozenset({'answer'}),
    kind='targets',
    target_template='{{ item.solution }}',
  )
  assert train[0].target_ids and validation[0].target_ids is None
  assert validation[0].prompt_ids == plain_chat.prompt_ids(held_out['messages'])
