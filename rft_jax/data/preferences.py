"""Preference rows: converted from any of the preference_formats to one format, and checked."""

import collections

from rft_jax.data.chat_templates import text_of
from rft_jax.data.preference_formats import (
  FORMATS,
  OWN_FORMATS,
  FormatError,
  format_of,
  is_text_content,
  message_of_turn,
  same_message,
)
from rft_jax.data.problems import Problem, line_of
from rft_jax.graders import template
from rft_jax.types import Item

KINDS = ('pairs', 'answers')
_PAIR = ('chosen', 'rejected')
_ANSWER = 'need a text, or one message {"role": "assistant", "content": "..."}'


def read(items: list[Item], kind: str) -> tuple[list[Item], list[Problem]]:
  """Returns (items in our own format, problems); rows with an error are left out.

  Args:
    items: rows as they are in the file.
    kind: 'pairs', or 'answers': then each pair becomes two items, a good and a bad answer.
  """
  formats = [format_of(item.row) for item in items]
  counts = collections.Counter(row_format.name for row_format in formats if row_format)
  if not counts:
    return [], [_unknown_format(item, kind) for item in items]
  usual, _ = counts.most_common(1)[0]
  converted, problems = [], []
  for item, row_format in zip(items, formats):
    if problem := _format_problem(item, row_format, usual, kind):
      problems.append(problem)
      continue
    assert row_format is not None  # otherwise there is a problem
    row_items, row_problems = _convert(item, row_format)
    if kind == 'answers' and row_format.kind == 'pairs':
      row_items = _split_pairs(row_items)
    converted += row_items
    problems += row_problems
  usual_format = next(row_format for row_format in FORMATS if row_format.name == usual)
  if usual_format not in OWN_FORMATS and converted:
    problems.append(
      Problem(
        'W_PREFERENCE_FORM',
        0,
        '',
        f'the rows are read as "{usual}"',
        'give messages, chosen and rejected if they mean something else',
      )
    )
  return converted, problems


def held_out_kind(items: list[Item], kind: str) -> str:
  """Returns the kind as which held-out rows are read, where a stage trains on `kind`.

  Pairs stay pairs even where single answers are trained on. Rows without any preference are
  'prompts': they can be sampled and graded, and no pair is measured.
  """
  formats = [row_format for item in items if (row_format := format_of(item.row))]
  if not formats:
    return 'prompts'
  return 'pairs' if kind == 'answers' and formats[0].kind == 'pairs' else kind


def with_file_keys(problems: list[Problem], items: list[Item]) -> list[Problem]:
  """Returns problems of `messages` with the name that the prompt has in the file.

  items are the rows as they are in the file.
  """
  row_format = next((row_format for item in items if (row_format := format_of(item.row))), None)
  if row_format is None or row_format.prompt == 'messages':
    return problems
  rename = lambda text: text.replace('messages', row_format.prompt, 1)
  return [
    problem._replace(path=rename(problem.path), message=rename(problem.message))
    for problem in problems
  ]


def contradictions(items: list[Item]) -> list[Problem]:
  """Returns warnings: a pair that occurs twice, or again with chosen and rejected swapped."""
  problems: list[Problem] = []
  first_lines: dict[tuple[str, ...], int] = {}
  for item in items:
    row, line = item.row, line_of(item)
    if 'chosen' not in row:
      continue
    messages = row['messages']
    prompt = str([(turn.get('role'), text_of(turn.get('content'))) for turn in messages])
    chosen, rejected = (text_of(row[side].get('content')) for side in _PAIR)
    key, swapped = (prompt, chosen, rejected), (prompt, rejected, chosen)
    if key in first_lines:
      problems.append(
        Problem(
          'W_PREFERENCE_TWICE',
          line,
          'chosen',
          f'the pair of line {first_lines[key]}',
          'keep one of them',
        )
      )
    elif swapped in first_lines:
      problems.append(
        Problem(
          'W_PREFERENCE_CONTRADICTED',
          line,
          'chosen',
          f'the pair of line {first_lines[swapped]}, with chosen and rejected swapped',
          'keep the correct one, or set label_smoothing',
        )
      )
    first_lines.setdefault(key, line)
  return problems


def _format_problem(item, row_format, usual, kind):
  """Returns the problem of a row whose format cannot be read in this file, or None."""
  if row_format is None:
    return _unknown_format(item, kind)
  if row_format.name != usual:
    return Problem(
      'E_PREFERENCE_MIXED',
      line_of(item),
      row_format.prompt,
      f'the row is in the format "{row_format.name}", most are in "{usual}"',
      'write all rows of a file in one format',
    )
  if kind == 'pairs' and row_format.kind == 'answers':
    return Problem(
      'E_PREFERENCE_FORM',
      line_of(item),
      'label',
      'single answers with a label, where pairs are trained on',
      'use the algorithm kto, or give chosen and rejected',
    )
  return None


def _convert(item, row_format):
  """Returns ([the item in our own format], [its problems]); one of the two lists is empty."""
  row, line, problems = item.row, line_of(item), []
  try:
    fields = row_format.read_prompt(row)
  except FormatError as error:
    path, message, hint = error.args
    return [], [Problem('E_PREFERENCE_FIELD', line, path, message, hint)]
  prompt, answers = fields['messages'], {}
  for side, key in _answer_keys(row_format):
    value = row[key][-1] if key == 'messages' else row[key]
    try:
      answers[side] = _answer_message(value, key, prompt)
    except FormatError as error:
      path, message, hint = error.args
      problems.append(Problem('E_PREFERENCE_ANSWER', line, path, message, hint))
  if row_format.kind == 'answers':
    answers['label'] = row['label']
    if not isinstance(row['label'], bool):
      problems.append(
        Problem(
          'E_PREFERENCE_LABEL',
          line,
          'label',
          f'label is {template.json_type(row["label"])}',
          'need true (a good answer) or false',
        )
      )
  elif not problems and same_message(answers['chosen'], answers['rejected']):
    problems.append(
      Problem(
        'E_PREFERENCE_SAME',
        line,
        'rejected',
        'chosen and rejected are the same',
        'such a pair has no training signal: remove it',
      )
    )
  if problems:
    return [], problems
  rest = {key: value for key, value in row.items() if key not in row_format.keys}
  return [item._replace(row={**rest, **fields, **answers})], []


def _answer_keys(row_format):
  """Returns ((key in our own format, key in the file), ...) of the answers."""
  if row_format.kind == 'answers':
    return (('completion', 'completion' if 'completion' in row_format.keys else 'messages'),)
  keys = ('preferred_output', 'non_preferred_output') if 'input' in row_format.keys else _PAIR
  return tuple(zip(_PAIR, keys))


def _answer_message(value, key, prompt):
  """Returns an answer as the one assistant message that follows the prompt."""
  if isinstance(value, str):
    message = {'role': 'assistant', 'content': value}
  else:
    turns = value if isinstance(value, list) else [value]
    if not turns or not all(isinstance(turn, dict) for turn in turns):
      raise FormatError(key, f'{key} is {template.json_type(value)}', _ANSWER)
    turns = [message_of_turn(turn) if 'value' in turn else turn for turn in turns]
    start = len(prompt) if isinstance(prompt, list) else 0
    if len(turns) > start > 0 and all(map(same_message, turns, prompt)):
      turns = turns[start:]
    if len(turns) != 1:
      raise FormatError(key, f'{key} has {len(turns)} messages after the prompt, need 1', _ANSWER)
    (message,) = turns
  if message.get('role') != 'assistant':
    raise FormatError(key, f'{key} is from {message.get("role")!r}, not assistant', _ANSWER)
  content = message.get('content')
  if not is_text_content(content):
    raise FormatError(key, f'the content of {key} is {template.json_type(content)}', _ANSWER)
  if not text_of(content).strip() and not message.get('tool_calls'):
    raise FormatError(key, f'{key} is empty', 'write the answer, or remove the row')
  return message


def _split_pairs(items):
  """Returns the two single answers of each pair."""
  answers = []
  for item in items:
    rest = {key: value for key, value in item.row.items() if key not in _PAIR}
    answers += [
      item._replace(row={**rest, 'completion': item.row[side], 'label': side == 'chosen'})
      for side in _PAIR
    ]
  return answers


def _unknown_format(item, kind):
  keys = ', '.join(list(item.row)[:8]) or 'none'
  need = (
    'messages, chosen and rejected'
    if kind == 'pairs'
    else 'messages, completion and label, or messages, chosen and rejected'
  )
  return Problem(
    'E_PREFERENCE_FORM',
    line_of(item),
    '',
    f'no preference; keys: {keys}',
    f'give {need}, or another format listed in rft_jax/data/preference_formats.py',
  )
