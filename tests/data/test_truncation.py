"""Overlong prompts and completions: an error or dropped, never truncated."""

from row_files import row


def test_overlong_prompts_are_an_error_or_dropped_with_a_warning(load, load_error):
  train = [row('short'), row('x' * 100)]
  text = load_error(train, config={'max_prompt_tokens': 50})
  assert 'line 2: E_PROMPT_TOO_LONG: 101 prompt tokens, more than 50' in text
  examples, _, warnings = load(train, config={'max_prompt_tokens': 50, 'overlong': 'drop'})
  assert [example.item.source for example in examples] == ['train.jsonl:1']
  assert len(warnings) == 1 and 'line 2: W_PROMPT_DROPPED' in warnings[0]


def test_if_every_row_is_dropped_there_are_too_few(load_error):
  config = {'max_prompt_tokens': 50, 'overlong': 'drop'}
  assert 'E_COUNT_MIN' in load_error([row('x' * 100)], config=config)


def test_overlong_completions_are_an_error_or_dropped_with_a_warning(load, load_error):
  pair = {**row(), 'chosen': '42', 'rejected': 'About 40.'}
  train = [pair, {**pair, 'rejected': 'forty, ' * 9}]
  config, validation = {'max_completion_tokens': 20}, [{**pair, **row('Held out?')}]
  text = load_error(train, validation, kind='pairs', config=config)
  assert 'line 2: E_COMPLETION_TOO_LONG: 64 completion tokens, more than 20' in text
  config['overlong'] = 'drop'
  examples, _, warnings = load(train, validation, kind='pairs', config=config)
  assert len(examples) == 1 and any('W_COMPLETION_DROPPED' in text for text in warnings)
