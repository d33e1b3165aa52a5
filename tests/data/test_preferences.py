"""Preference rows: every common format becomes the same pair, and invalid rows are named."""

import pytest
from row_files import TOOL, row

from rft_jax.data import batching, preference_formats, preferences
from rft_jax.types import Item

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
USER = {'role': 'user', 'content': 'What is 6 x 7?'}
EARLIER = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
GOOD, BAD = ({'role': 'assistant', 'content': text} for text in ('42', 'About 40.'))
HELD_OUT = {**row('Held out?'), 'chosen': 'yes', 'rejected': 'no'}

PAIRS = {  # name -> (row in a format, its prompt)
  'ours': ({'messages': [SYSTEM, USER], 'chosen': '42', 'rejected': BAD}, [SYSTEM, USER]),
  'TRL, text': ({'prompt': USER['content'], 'chosen': '42', 'rejected': 'About 40.'}, [USER]),
  'TRL, messages': ({'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}, [USER]),
  'TRL, implicit': (
    {'chosen': [*EARLIER, USER, GOOD], 'rejected': [*EARLIER, USER, BAD]},
    [*EARLIER, USER],
  ),
  'prompt repeated': (
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


def _items(*rows):
  return [Item(row, f'x.jsonl:{line}') for line, row in enumerate(rows, 1)]


# --- formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', PAIRS)
def test_every_format_of_pairs_becomes_the_same(name):
  pair, prompt = PAIRS[name]
  (item,), problems = preferences.read(_items(dict(pair, margin=2)), 'pairs')
  assert item.row['messages'] == prompt and item.source == 'x.jsonl:1'
  assert (item.row['chosen'], item.row['rejected']) == (GOOD, BAD)
  assert item.row['margin'] == 2 and 'preferred_output' not in item.row
  assert item.row.get('tools') == ([TOOL] if name == 'OpenAI' else None)
  # A warning names the format as which the rows were read.
  codes = [] if name == 'ours' else ['W_PREFERENCE_FORM']
  assert [problem.code for problem in problems] == codes


@pytest.mark.parametrize('name', ANSWERS)
def test_every_format_of_single_answers_becomes_the_same(name):
  (item,), _ = preferences.read(_items(ANSWERS[name]), 'answers')
  assert item.row == {'messages': [USER], 'completion': GOOD, 'label': True}


def test_formats_are_recognised_by_their_keys():
  rows = [pair for pair, _ in PAIRS.values()] + list(ANSWERS.values())
  names = {preference_formats.format_of(row).name for row in rows}
  assert len(names) == len(preference_formats.FORMATS) == 9
  assert preference_formats.format_of({'messages': [USER], 'chosen': '42'}) is None


def test_a_pair_gives_a_good_and_a_bad_answer_where_single_answers_are_trained_on(load):
  train, held_out, _ = load([PAIRS['ours'][0]], [HELD_OUT], kind='answers')
  assert [example.desirable for example in train] == [True, False]
  assert train[0].prompt_ids == train[1].prompt_ids
  assert held_out[0].rejected_ids is not None  # held-out pairs stay pairs


def test_ids_are_those_of_the_rendered_conversation(load, plain_chat):
  (example,), _, _ = load([PAIRS['ours'][0]], [HELD_OUT], kind='pairs')
  for ids, answer in ((example.target_ids, '42'), (example.rejected_ids, 'About 40.')):
    prompt, completion = plain_chat.supervised_ids([SYSTEM, USER], None, answer)
    assert (example.prompt_ids, ids) == (prompt, completion)
    assert ids[-1] in plain_chat.stop_ids
  batch = batching.from_pairs([example, example])
  assert batch.group.tolist() == [0, 0, 1, 1] and batch.grades.tolist() == [1, 0, 1, 0]
  assert batch.completions[1, : batch.completion_lengths[1]].tolist() == example.rejected_ids


def test_a_prompt_may_have_several_pairs_and_contradictions_are_warnings(load):
  pair = PAIRS['ours'][0]
  swapped = dict(pair, chosen=pair['rejected'], rejected=pair['chosen'])
  train = [pair, dict(pair, rejected='41'), swapped, pair]
  _, _, warnings = load(train, [HELD_OUT], kind='pairs')
  text = '\n'.join(warnings)
  assert 'line 3: W_PREFERENCE_CONTRADICTED: the pair of line 1, with chosen and' in text
  assert 'line 4: W_PREFERENCE_TWICE' in text and 'W_DUPLICATE_PROMPT' not in text


def test_held_out_rows_without_preferences_are_prompts(load):
  train, held_out, _ = load(
    [PAIRS['ours'][0]],
    [{'messages': [USER], 'answer': '42'}],
    kind='pairs',
    item_fields={'answer'},
    graded=False,
  )
  assert train[0].rejected_ids and held_out[0].target_ids is None


# --- invalid rows -----------------------------------------------------------------------------

INVALID = [
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
  (dict(PAIRS['alpaca'][0], history=['Hi']), 'history', 'is not an array of pairs'),
  (dict(ANSWERS['TRL'], label='yes'), 'label', 'label is a string'),
  ({'messages': [USER], 'label': True}, 'messages', 'does not hold a prompt followed by an answer'),
  ({'messages': [USER], 'chosn': '42'}, '', 'no preference; keys: messages, chosn'),
]


@pytest.mark.parametrize('row, path, words', INVALID, ids=[words for _, _, words in INVALID])
def test_an_invalid_row_is_left_out_and_named(row, path, words):
  kind = 'answers' if 'label' in row else 'pairs'
  valid = [ANSWERS['TRL' if 'prompt' in row else 'whole']] if kind == 'answers' else []
  items, problems = preferences.read(_items(row, *valid), kind)
  problem = next(problem for problem in problems if problem.blocks)
  assert (problem.line, problem.path) == (1, path) and words in problem.message and problem.hint
  assert len(items) == len(valid)


def test_all_problems_are_reported_at_once_under_the_keys_of_the_file(load_error):
  valid = {'prompt': [USER], 'chosen': [GOOD], 'rejected': [BAD]}
  train = [
    valid,
    dict(valid, chosen=''),
    dict(valid, rejected=[GOOD]),
    PAIRS['ours'][0],
    dict(valid, prompt=[{'role': 'judge', 'content': 'x'}]),
    dict(valid, prompt=[SYSTEM]),
    {'messages': [USER]},
  ]
  text = load_error(train, [HELD_OUT], kind='pairs')
  for words in (
    'line 2: E_PREFERENCE_ANSWER: chosen is empty',
    'line 3: E_PREFERENCE_SAME',
    'line 4: E_PREFERENCE_MIXED',
    "line 5: E_ROLE_UNKNOWN: prompt[0] has the role 'judge'",
    'line 6: E_LAST_ROLE',
    'line 7: E_PREFERENCE_FORM',
  ):
    assert words in text, words
  assert text.count('\n') == 6  # one line a kind, and none about the valid row


def test_single_answers_are_refused_where_pairs_are_trained_on(load_error):
  text = load_error([ANSWERS['TRL']], [HELD_OUT], kind='pairs')
  assert 'E_PREFERENCE_FORM' in text and 'use the algorithm kto' in text
