"""OpenAI's graders/validate and graders/run responses, for one answer or a JSONL of answers."""

import collections
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from rft_jax import graders
from rft_jax.graders import template
from rft_jax.graders.base import Grader
from rft_jax.types import Grade

# Every key of metadata.errors with its default, the value where the error did not occur.
ERRORS = {
  'formula_parse_error': False,
  'sample_parse_error': False,
  'sample_parse_error_details': None,
  'truncated_observation_error': False,
  'unresponsive_reward_error': False,
  'invalid_variable_error': False,
  'invalid_variable_error_details': None,
  'other_error': False,
  'python_grader_server_error': False,
  'python_grader_server_error_type': None,
  'python_grader_runtime_error': False,
  'python_grader_runtime_error_details': None,
  'model_grader_server_error': False,
  'model_grader_refusal_error': False,
  'model_grader_parse_error': False,
  'model_grader_server_error_details': None,
}
BATCH_SIZE = 256  # lines of a file, graded in one call
_LINE_FORMAT = 'need {"model_sample": "...", "item": {...}}'


def validate(grader: Grader) -> dict[str, Any]:
  """Returns {'grader': its JSON in normal form}, as graders/validate does for a valid grader."""
  return {'grader': graders.describe(grader)}


def run(
  grader: Grader,
  model_sample: str,
  item: dict[str, Any] | None = None,
  *,
  response_format: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Returns the graders/run response for one answer: reward, sub_rewards, metadata, token usage.

  reward is None after a grader fault in two attempts.
  """
  for tally in getattr(grader, 'tallies', {}).values():
    tally.take()
  start_time = time.monotonic()
  (grade,) = _grades(grader, [(model_sample, item or {})], response_format)
  usage = _usage(grader)
  return _response(grader, grade, time.monotonic() - start_time, usage)


def run_file(grader: Grader, path, *, response_format=None) -> Iterator[dict[str, Any]]:
  """Yields the response of run() for each line of a JSONL of {"model_sample", "item"}, in order.

  Lines are graded in batches: the time of a line is the mean of its batch, and judge tokens are
  reported only by summary().

  Raises:
    ValueError: lines are not of that form; lists all of them, before anything is graded.
  """
  lines = read_lines(path)
  for start in range(0, len(lines), BATCH_SIZE):
    batch = lines[start : start + BATCH_SIZE]
    start_time = time.monotonic()
    grades = _grades(grader, batch, response_format)
    seconds = (time.monotonic() - start_time) / len(batch)
    for grade in grades:
      yield _response(grader, grade, seconds, {})


def summary(grader: Grader, responses: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns totals of responses: mean rewards, counts of errors, seconds, judge tokens."""
  rewards = [response['reward'] for response in responses if response['reward'] is not None]
  columns = collections.defaultdict(list)
  for response in responses:
    for name, score in response['sub_rewards'].items():
      if score is not None:
        columns[name].append(score)
  errors = collections.Counter(
    key
    for response in responses
    for key, value in response['metadata']['errors'].items()
    if value is True
  )
  return {
    'answers': len(responses),
    'graded': len(rewards),
    'reward_mean': sum(rewards) / len(rewards) if rewards else None,
    'sub_rewards_mean': {name: sum(scores) / len(scores) for name, scores in columns.items()},
    'errors': dict(errors),
    'seconds': sum(response['metadata']['execution_time'] for response in responses),
    'model_grader_token_usage_per_model': _usage(grader),
  }


def read_lines(path) -> list[tuple[str, dict[str, Any]]]:
  """Returns [(model_sample, item)] of a JSONL file; raises ValueError with every problem."""
  path, samples, problems = pathlib.Path(path), [], []
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: cannot be read: {error}') from None
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      problems.append(f'{path}:{number}: not JSON: {error}')
      continue
    if problem := _problem(row):
      problems.append(f'{path}:{number}: {problem}, {_LINE_FORMAT}')
    else:
      samples.append((row['model_sample'], row.get('item') or {}))
  if not samples and not problems:
    problems.append(f'{path}: no lines, {_LINE_FORMAT} in each')
  if problems:
    more = f'\n... and {len(problems) - 20} more' if len(problems) > 20 else ''
    raise ValueError('\n'.join(problems[:20]) + more)
  return samples


def _problem(row) -> str | None:
  if not isinstance(row, dict):
    return f'the line is {template.json_type(row)}'
  unknown = [key for key in row if key not in ('model_sample', 'item')]
  if unknown:
    hint = template.did_you_mean(unknown[0], ('model_sample', 'item'))
    return f'unknown key {unknown[0]!r}{hint}'
  if not isinstance(row.get('model_sample'), str):
    return (
      f'model_sample is {template.json_type(row["model_sample"])}'
      if 'model_sample' in row
      else 'model_sample is missing'
    )
  if not isinstance(row.get('item') or {}, dict):
    return f'item is {template.json_type(row["item"])}'
  return None


def _grades(grader, lines, response_format) -> list[Grade]:
  samples = [(graders.make_sample(text, response_format), item) for text, item in lines]
  valid_grades = iter(
    graders.grade_many(grader, [(item, sample) for (sample, errors), item in samples if not errors])
  )
  return [
    Grade(grader.ungradable_reward, {}, errors) if errors else next(valid_grades)
    for (_, errors), _ in samples
  ]


def _usage(grader) -> dict[str, dict[str, int]]:
  """Returns the tokens of each judge model, and resets the tallies."""
  usage: dict[str | None, collections.Counter] = collections.defaultdict(collections.Counter)
  for tally in getattr(grader, 'tallies', {}).values():
    usage[tally.model].update(
      {
        key.removeprefix('usage/'): count
        for key, count in tally.take().items()
        if key.startswith('usage/')
      }
    )
  return {model: dict(counts) for model, counts in usage.items() if model}


def _response(grader, grade: Grade, seconds, usage) -> dict[str, Any]:
  described = graders.describe(grader)
  model = described.get('model')
  return {
    'reward': grade.reward,
    'metadata': {
      'name': grader.name,
      'type': described['type'],
      'errors': ERRORS | grade.errors,
      'execution_time': seconds,
      'scores': {},
      'token_usage': usage.get(model),
      'sampled_model_name': model,
    },
    'sub_rewards': grade.components,
    'model_grader_token_usage_per_model': usage,
  }
