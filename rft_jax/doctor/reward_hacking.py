"""Reward hacking: case-independent answers that a policy would learn if the grader pays for them.

Reinforcement maximises whatever the grader rewards. So the grader is tried before training on an
empty answer, the prompt itself, the most frequent answer, the answer of another case, all answers
at once, and a very long one. None of these may come near the grade of a good answer.
"""

import collections
import json
from typing import Any, NamedTuple

LONG = 4000  # characters of the very long answer
FIELD_LENGTH = 200  # characters; a field with a longer value is not taken for a short answer
MOST_FIELDS = 8  # of a row that are tried as its answer


class Case(NamedTuple):
  """A row, as far as it is known without the policy."""

  item: dict[str, Any]  # the row
  prompt: str  # its last user message
  answer: str | None  # a good answer in the form that the grader reads; None: unknown


def answers(cases: list[Case], fields: frozenset[str] | None) -> dict[str, list[str]]:
  """Returns {name of an attack: its answer to each case}.

  Args:
    cases: rows; the more they differ, the better.
    fields: top-level fields that hold the reference; None: unknown, every short one is tried.
  """
  same = lambda text: [text] * len(cases)
  attacks = {'an empty answer': same(''), 'the prompt echoed': [case.prompt for case in cases]}
  columns = _columns(cases, fields)
  values = {
    field: _by_frequency(text for texts in column for text in texts)
    for field, column in columns.items()
  }
  for field, column in columns.items():
    options = values[field]
    attacks[f'the most frequent item.{field}'] = same(options[0])
    first = [texts[0] if texts else '' for texts in column]
    attacks[f"another row's item.{field}"] = _of_another_row(first)
    if len(options) > 1:
      attacks[f'every item.{field} at once'] = same(', '.join(options))
      attacks[f'every item.{field} as a JSON array'] = same(_compact(options))
  good_answers = [case.answer for case in cases if case.answer]
  if good_answers:
    most_frequent = _by_frequency(good_answers)[0]
    attacks['the most frequent answer'] = same(most_frequent)
    attacks["another row's answer"] = _of_another_row([case.answer or '' for case in cases])
    attacks['a very long answer'] = same(_long(good_answers))
    for field, options in values.items():
      if stuffed := _stuffed(most_frequent, good_answers, options):
        attacks[f'every item.{field} in the form of an answer'] = same(stuffed)
  return attacks


def _columns(cases, fields) -> dict[str, list[list[str]]]:
  """Returns {field: its texts in each case} of the fields that could hold the answer."""
  names = _by_frequency(
    key
    for case in cases
    for key in case.item
    if key not in ('messages', 'tools') and (fields is None or key in fields)
  )
  columns = {name: [_texts(case.item.get(name)) for case in cases] for name in names}
  short = lambda column: (
    any(column) and all(len(text) <= FIELD_LENGTH for texts in column for text in texts)
  )
  repeated = lambda column: len({tuple(texts) for texts in column}) < len(cases) or len(cases) < 3
  # A field with a different value in each of many rows identifies the row and is not its answer; it
  # is tried only if there is no other.
  short_columns = {name: column for name, column in columns.items() if short(column)}
  answer_columns = {name: column for name, column in short_columns.items() if repeated(column)}
  return dict(list((answer_columns or short_columns).items())[:MOST_FIELDS])


def _texts(value) -> list[str]:
  if isinstance(value, str):
    return [value]
  if isinstance(value, list) and all(isinstance(one, str) for one in value):
    return value
  return [] if value is None else [_compact(value)]


def _by_frequency(texts) -> list[str]:
  return [text for text, _ in collections.Counter(texts).most_common()]


def _of_another_row(column: list[str]) -> list[str]:
  """Returns for each row the next value down the column that differs from its own."""
  values = []
  for row, own in enumerate(column):
    others = (other for other in column[row + 1 :] + column[:row] if other and other != own)
    values.append(next(others, ''))
  return values


def _long(good_answers: list[str]) -> str:
  text = '\n'.join(_by_frequency(good_answers))
  return (text * (LONG // max(len(text), 1) + 1))[:LONG]


def _stuffed(answer: str, good_answers: list[str], options: list[str]) -> str | None:
  """Returns the answer with all options in place of one: in its array of strings, or its text."""
  try:
    value = json.loads(answer)
  except ValueError:
    longest_first = sorted(options, key=len, reverse=True)
    option = next((option for option in longest_first if option and option in answer), None)
    return option and answer.replace(option, ', '.join(options))
  arrays = [array for text in good_answers for array in _arrays(text)]
  every_option = _by_frequency([*(text for array in arrays for text in array), *options])
  stuffed, changed = _replaced(value, every_option, options)
  return _compact(stuffed) if changed else None


def _arrays(text):
  """Yields the arrays of strings in a JSON text."""
  try:
    values = [json.loads(text)]
  except ValueError:
    return
  while values:
    value = values.pop()
    if _is_array_of_strings(value):
      yield value
    elif isinstance(value, (dict, list)):
      values += value.values() if isinstance(value, dict) else value


def _replaced(value, every_option, options):
  """Returns (value with every option in its arrays and in strings that are one; changed)."""
  if _is_array_of_strings(value):
    return every_option, True
  if isinstance(value, str) and value in options:
    return ', '.join(options), True
  if isinstance(value, dict):
    pairs = {key: _replaced(member, every_option, options) for key, member in value.items()}
    return {key: new for key, (new, _) in pairs.items()}, any(
      changed for _, changed in pairs.values()
    )
  return value, False


def _is_array_of_strings(value) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _compact(value) -> str:
  return json.dumps(value, ensure_ascii=False, separators=(',', ':'))
