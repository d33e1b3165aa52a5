"""Preferences from files: every common form becomes the same pair, and what is broken is named."""

import json

import pytest
import tiny_tokenizers

from rft_jax.data import batching, chat, preference_formats, preferences, rows
from rft_jax.types import Item

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
USER = {'role': 'user', 'content': 'What is 6 x 7?'}
EARLIER = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
GOOD, BAD = ({'role': 'assistant', 'content': text} for text in ('42', 'About 40.'))
TOOL = {'type': 'function', 'function': {'name': 'look_up', 'parameters': {'type': 'object'}}}

PAIRS = {  # name -> (row in a form, the prompt it means)
  'ours': ({'messages': [SYSTEM, USER], 'chosen': '42', 'rejected': BAD}, [SYSTEM, USER]),
  'TRL, text': ({'prompt': USER['content'], 'chosen': '42', 'rejected': 'About 40.'}, [USER]),
  'TRL, messages': ({'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}, [USER]),
  'TRL, implicit': (
    {'chosen': [*EARLIER, USER, GOOD], 'rejected': [*EARLIER, USER, BAD]},
    [*EARLIER, USER],
  ),
  'prompt said again': (
    {
      'prompt': USER['content'],
      'messages': [USER, GOOD],
      'chosen': [USER, GOOD],
      'rejected': [USER, BAD],
    },
    [USER],
  ),
  'OpenAI': (
    {
      'input': {'messages': [USER], 'tools': [TOOL]},
      'preferred_output': [GOOD],
      'non_preferred_output': [BAD],
    },
    [USER],
  ),
  'sharegpt': (
    {
      'conversations': [
        {'from': 'system', 'value': 'Be brief.'},
        {'from': 'human', 'value': USER['content']},
      ],
      'chosen': {'from': 'gpt', 'value': '42'},
      'rejected': {'from': 'gpt', 'value': 'About 40.'},
    },
    [SYSTEM, USER],
  ),
  'alpaca': (
    {
      'instruction': 'What is',
      'input': '6 x 7?',
      'system': 'Be brief.',
      'history': [['Hi', 'Hello']],
      'chosen': '42',
      'rejected': 'About 40.',
    },
    [SYSTEM, *EARLIER, {'role': 'user', 'content': 'What is\n6 x 7?'}],
  ),
}
ANSWERS = {
  'TRL': {'prompt': USER['content'], 'completion': '42', 'label': True},
  'messages': {'messages': [USER], 'completion': [GOOD], 'label': True},
  'whole': {'messages': [USER, GOOD], 'label': True},
}


@pytest.fixture(scope='module')
def plain_chat(tmp_path_factory):
  path = tiny_tokenizers.save(tmp_path_factory.mktemp('tokenizer'), template=None, special=())
  return chat.make(path, chat.ChatConfig())


@pytest.fixture
def load(tmp_path, plain_chat):
  """Returns rows.load of lists of rows; what is held out has a question of its own."""

  def write(name, values):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(value) + '\n' for value in values))
    return str(path)

  def load(train, validation=None, *, kind='pairs', data=None, **given):
    validation = validation or [
      {'messages': [{'role': 'user', 'content': 'Held out?'}], 'chosen': 'yes', 'rejected': 'no'}
    ]
    config = rows.DataConfig(
      train=write('train', train), validation=write('valid', validation), **data or {}
    )
    return rows.load(config, chat=plain_chat, kind=kind, **given)

  return load


def error_of(load, *arguments, **more):
  with pytest.raises(ValueError) as error:
    load(*arguments, **more)
  return str(error.value)


def _items(*given):
  return [Item(row, f'x.jsonl:{line}') for line, row in enumerate(given, 1)]


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PAIRS)
def test_every_form_of_pairs_becomes_the_same(name):
  row, prompt = PAIRS[name]
  (made,), problems = preferences.read(_items(dict(row, margin=2)), 'pairs')
  assert made.row['messages'] == prompt and made.source == 'x.jsonl:1'
  assert (made.row['chosen'], made.row['rejected']) == (GOOD, BAD)
  assert made.row['margin'] == 2 and 'preferred_output' not in made.row
  assert made.row.get('tools') == ([TOOL] if name == 'OpenAI' else None)
  assert [problem.code for problem in problems] == (
    [] if name == 'ours' else ['W_PREFERENCE_FORM']
  )  # which form it was taken for is told


@pytest.mark.parametrize('name', ANSWERS)
def test_every_form_of_single_answers_becomes_the_same(name):
  (made,), _ = preferences.read(_items(ANSWERS[name]), 'answers')
  assert made.row == {'messages': [USER], 'completion': GOOD, 'label': True}


def test_forms_are_told_apart_by_their_keys():
  given = [row for row, _ in PAIRS.values()] + list(ANSWERS.values())
  found = [preference_formats.form_of(row).name for row in given]
  assert len(set(found)) == len(preference_formats.FORMS) == 9
  assert preference_formats.form_of({'messages': [USER], 'chosen': '42'}) is None


def test_a_pair_gives_a_good_and_a_bad_answer_where_answers_are_learnt_from(load):
  train, held_out, _ = load([PAIRS['ours'][0]], kind='answers')
  assert [example.desirable for example in train] == [True, False]
  assert train[0].prompt_ids == train[1].prompt_ids
  assert held_out[0].rejected_ids is not None  # held-out pairs stay pairs


def test_ids_are_those_of_the_rendered_conversation(load, plain_chat):
  (example,), _, _ = load([PAIRS['ours'][0]])
  for ids, answer in ((example.target_ids, '42'), (example.rejected_ids, 'About 40.')):
    prompt, whole = plain_chat.supervised_ids([SYSTEM, USER], None, answer)
    assert (example.prompt_ids, ids) == (prompt, whole)
    assert ids[-1] in plain_chat.stop_ids
  batch = batching.from_pairs([example, example])
  assert batch.group.tolist() == [0, 0, 1, 1] and batch.grades.tolist() == [1, 0, 1, 0]
  assert batch.completions[1, : batch.completion_lengths[1]].tolist() == example.rejected_ids


def test_prompts_may_have_several_pairs_and_contradictions_are_told(load):
  row = PAIRS['ours'][0]
  turned = dict(row, chosen=row['rejected'], rejected=row['chosen'])
  _, _, warnings = load([row, dict(row, rejected='41'), turned, row])
  told = '\n'.join(warnings)
  assert 'line 3: W_PREFERENCE_CONTRADICTED: the pair of line 1, the other way round' in told
  assert 'line 4: W_PREFERENCE_TWICE' in told and 'W_DUPLICATE_PROMPT' not in told


def test_held_out_rows_without_preferences_are_prompts(load):
  train, held_out, _ = load(
    [PAIRS['ours'][0]], [{'messages': [USER], 'answer': '42'}], item_fields={'answer'}, graded=False
  )
  assert train[0].rejected_ids and held_out[0].target_ids is None


# --- what is broken ---------------------------------------------------------------------------

BROKEN = [
  (dict(PAIRS['ours'][0], rejected='42'), 'rejected', 'chosen and rejected are the same'),
  (dict(PAIRS['ours'][0], chosen=' '), 'chosen', 'chosen is empty'),
  (dict(PAIRS['ours'][0], chosen=7), 'chosen', 'chosen is a number'),
  (
    dict(PAIRS['ours'][0], chosen={'role': 'assistant', 'content': 7}),
    'chosen',
    'the content of chosen is a number',
  ),
  (dict(PAIRS['ours'][0], chosen=USER), 'chosen', "chosen is from 'user', not assistant"),
  (dict(PAIRS['ours'][0], chosen=[GOOD, USER, GOOD]), 'chosen', 'chosen has 3 messages'),
  (
    {'chosen': 'Human: 6 x 7? Assistant: 42', 'rejected': 'Human: 6 x 7? Assistant: 40'},
    'chosen',
    'the row has no prompt',
  ),
  ({'chosen': [USER, GOOD], 'rejected': [SYSTEM, BAD]}, 'chosen', 'do not begin with the same'),
  (
    {'input': [USER], 'preferred_output': [GOOD], 'non_preferred_output': [BAD]},
    'input',
    'without messages',
  ),
  (dict(PAIRS['sharegpt'][0], conversations='6 x 7?'), 'conversations', 'not turns'),
  (dict(PAIRS['alpaca'][0], history=['Hi']), 'history', 'is not made of pairs'),
  (dict(ANSWERS['TRL'], label='yes'), 'label', 'label is a string'),
  ({'messages': [USER], 'label': True}, 'messages', 'no prompt with an answer behind it'),
  ({'messages': [USER], 'chosn': '42'}, '', 'no preference; keys: messages, chosn'),
]


@pytest.mark.parametrize('row, path, words', BROKEN, ids=[words for _, _, words in BROKEN])
def test_a_broken_row_is_left_out_and_named(row, path, words):
  kind = 'answers' if 'label' in row else 'pairs'
  sound = ANSWERS['TRL' if 'prompt' in row else 'whole'] if kind == 'answers' else None
  made, problems = preferences.read(_items(row, *[sound] * bool(sound)), kind)
  problem = next(problem for problem in problems if problem.blocks)
  assert (problem.line, problem.path) == (1, path) and words in problem.message and problem.hint
  assert len(made) == bool(sound)


def test_all_problems_are_told_at_once_under_the_keys_of_the_file(load):
  sound = {'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}
  text = error_of(
    load,
    [
      sound,
      dict(sound, chosen=''),
      dict(sound, rejected=[GOOD]),
      PAIRS['ours'][0],
      dict(sound, prompt=[{'role': 'judge', 'content': 'x'}]),
      dict(sound, prompt=[SYSTEM]),
      {'messages': [USER]},
    ],
  )
  for words in (
    'line 2: E_PREFERENCE_ANSWER: chosen is empty',
    'line 3: E_PREFERENCE_SAME',
    'line 4: E_PREFERENCE_MIXED',
    "line 5: E_ROLE_UNKNOWN: prompt[0] has the role 'judge'",
    'line 6: E_LAST_ROLE',
    'line 7: E_PREFERENCE_FORM',
  ):
    assert words in text, words
  assert text.count('\n') == 6  # one line a kind, and none about the sound row


def test_single_answers_are_refused_where_pairs_are_learnt_from(load):
  text = error_of(load, [ANSWERS['TRL']])
  assert 'E_PREFERENCE_FORM' in text and 'use the algorithm kto' in text


def test_long_answers_are_an_error_or_dropped_as_asked(load):
  given = [PAIRS['ours'][0], dict(PAIRS['ours'][0], rejected='forty, ' * 9)]
  text = error_of(load, given, data={'max_completion_tokens': 20})
  assert 'line 2: E_COMPLETION_TOO_LONG: 64 completion tokens, more than 20' in text
  train, _, warnings = load(given, data={'max_completion_tokens': 20, 'overlong': 'drop'})
  assert len(train) == 1 and any('W_COMPLETION_DROPPED' in told for told in warnings)
