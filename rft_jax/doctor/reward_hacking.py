"""Answers that know nothing of their case. A grader that pays them will be played by the policy.

Reinforcement finds whatever the grader pays for. So before training the grader is tried on an empty
answer, the prompt itself, the most frequent answer, that of another case, all answers at once,
and a very long one. None of them may come near what a good answer gets.
"""

import collections
import json
from typing import Any, NamedTuple

LONG = 4000  # characters of the very long answer
FIELD_LENGTH = 200  # a longer value is no answer that one would give in short
MOST_FIELDS = 8  # of a row that are tried as its answer


class Case(NamedTuple):
  """What is known of one row without the policy."""

  item: dict[str, Any]  # the row
  prompt: str  # its last user message
  answer: str | None  # a decent answer in the form that the grader reads; None: unknown


def answers(cases: list[Case], fields: frozenset[str] | None) -> dict[str, list[str]]:
  """Returns {name of an attack: its answer to each case}.

  Args:
    cases: rows; the more of them differ, the better.
    fields: top-level fields that hold the reference; None: unknown, so every short one is tried.
  """
  everywhere = lambda text: [text] * len(cases)
  made = {'an empty answer': everywhere(''), 'the prompt echoed': [case.prompt for case in cases]}
  columns = _columns(cases, fields)
  offered = {
    field: _by_frequency(text for texts in column for text in texts)
    for field, column in columns.items()
  }
  for field, column in columns.items():
    options = offered[field]
    made[f'the most frequent item.{field}'] = everywhere(options[0])
    first = [texts[0] if texts else '' for texts in column]
    made[f"another row's item.{field}"] = _of_another(first)
    if len(options) > 1:
      made[f'every item.{field} at once'] = everywhere(', '.join(options))
      made[f'every item.{field} as a JSON array'] = everywhere(_compact(options))
  known = [case.answer for case in cases if case.answer]
  if known:
    made['the most frequent answer'] = everywhere(_by_frequency(known)[0])
    made["another row's answer"] = _of_another([case.answer or '' for case in cases])
    made['a very long answer'] = everywhere(_long(known))
    for field, options in offered.items():
      if stuffed := _stuffed(_by_frequency(known)[0], known, options):
        made[f'every item.{field} in the form of an answer'] = everywhere(stuffed)
  return made


def _columns(cases, fields) -> dict[str, list[list[str]]]:
  """Returns {field: the texts that it holds in each case} of fields that could be the answer."""
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
  differing = lambda column: len({tuple(texts) for texts in column}) < len(cases) or len(cases) < 3
  # A value that no two rows share, in many rows, is a name of the row and not its answer; it is
  # tried all the same if nothing else is there.
  chosen = {name: column for name, column in columns.items() if short(column)}
  shared = {name: column for name, column in chosen.items() if differing(column)}
  return dict(list((shared or chosen).items())[:MOST_FIELDS])


def _texts(value) -> list[str]:
  if isinstance(value, str):
    return [value]
  if isinstance(value, list) and all(isinstance(one, str) for one in value):
    return value
  return [] if value is None else [_compact(value)]


def _by_frequency(texts) -> list[str]:
  return [text for text, _ in collections.Counter(texts).most_common()]


def _of_another(column: list[str]) -> list[str]:
  """Returns for each place the next value down the column that differs from its own."""
  found = []
  for place, own in enumerate(column):
    others = (other for other in column[place + 1 :] + column[:place] if other and other != own)
    found.append(next(others, ''))
  return found


def _long(known: list[str]) -> str:
  text = '\n'.join(_by_frequency(known))
  return (text * (LONG // max(len(text), 1) + 1))[:LONG]


def _stuffed(answer: str, known: list[str], options: list[str]) -> str | None:
  """Returns answer with all options where it has one: in its array of strings, or in its text."""
  try:
    value = json.loads(answer)
  except ValueError:
    place = next(
      (option for option in sorted(options, key=len, reverse=True) if option and option in answer),
      None,
    )
    return place and answer.replace(place, ', '.join(options))
  arrays = [array for text in known for array in _arrays(text)]
  everything = _by_frequency([*(one for array in arrays for one in array), *options])
  stuffed, changed = _replaced(value, everything, options)
  return _compact(stuffed) if changed else None


def _arrays(text):
  """Yields the arrays of strings in a JSON text."""
  try:
    left = [json.loads(text)]
  except ValueError:
    return
  while left:
    value = left.pop()
    if _is_array_of_strings(value):
      yield value
    elif isinstance(value, (dict, list)):
      left += value.values() if isinstance(value, dict) else value


def _replaced(value, everything, options):
  """Returns (value with its arrays of strings, or strings that are an option, full; changed)."""
  if _is_array_of_strings(value):
    return everything, True
  if isinstance(value, str) and value in options:
    return ', '.join(options), True
  if isinstance(value, dict):
    pairs = {key: _replaced(one, everything, options) for key, one in value.items()}
    return {key: new for key, (new, _) in pairs.items()}, any(done for _, done in pairs.values())
  return value, False


def _is_array_of_strings(value) -> bool:
  return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _compact(value) -> str:
  return json.dumps(value, ensure_ascii=False, separators=(',', ':'))
