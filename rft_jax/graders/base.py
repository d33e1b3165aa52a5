"""What every grader is, and how its JSON is read.

A grader is a frozen dataclass whose fields are those of the API's JSON, plus the settings of
this run that it asks for (SETTINGS). To add one: write its class in a file of its own, and name
it in GRADERS in this folder's __init__.py.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import threading
from typing import Any, Protocol

from rft_jax.graders import template
from rft_jax.types import Grade

# Fields of a grader's class that come from the run and not from the grader's JSON. A class has
# those that it needs; make() fills them.
SETTINGS = (
  'ungradable_reward',  # float, what policy_fault pays
  'sandbox',  # SandboxConfig
  'response_format',  # the API's JSON, or None
  'judges',  # answers a judge's prompt: judges.Judges
  'reward_models',  # callables by name, each [(prompt messages, answer)] -> [float]
  'make_part',  # makes a grader inside a grader, with the settings of this run: PartMaker
)


class Grader(Protocol):
  """Scores an answer: grader(item, sample) -> Grade.

  item is the whole row, sample the answer as make_sample gives it. A call never raises because
  of what an answer or a row holds: that is a Grade with errors. What is wrong for every answer
  raises ValueError at construction.

  A grader that is quicker on many answers at once also has
  `many(pairs: list[tuple[item, sample]]) -> list[Grade]`, which grade_many then calls.

  One with a true `waits_for_all` is given all answers of a step in one call, when sampling is over.

  A grader that holds others, or asks a judge, also has `tallies: dict[str, Tally]`, by the names
  of those graders, or its own.
  """

  name: str
  ungradable_reward: float  # what policy_fault pays

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade: ...

  def item_fields(self) -> frozenset[str] | None:
    """Returns the paths of item that it surely reads ('answer', 'genes[0]'); None if unknown."""

  def close(self) -> None:
    """Frees what it holds (processes). Harmless when repeated; the grader is then used up."""

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""


class PartMaker(Protocol):
  """Makes the graders that stand inside another."""

  def __call__(self, grader: dict[str, Any]) -> Grader:
    """Returns the grader that the JSON describes; raises ValueError as graders.make does."""

  def problems(self, grader: dict[str, Any]) -> list[str]:
    """Returns what reading the JSON tells is wrong with it; starts nothing."""


class Tally:
  """Counts what one grader did, from any thread, until it is taken."""

  def __init__(self):
    self._lock = threading.Lock()
    self._counts, self.model = collections.Counter(), None

  def add(self, errors: dict[str, bool | str], seconds: float) -> None:
    """Counts one grade: its errors (those that are True), and the time that it took."""
    with self._lock:
      self._counts.update({'grades': 1, 'seconds': seconds})
      self._counts.update(f'errors/{key}' for key, value in errors.items() if value is True)

  def add_usage(self, usage: dict[str, int], model: str) -> None:
    """Counts the tokens of one answer of a judge: prompt_tokens, completion_tokens, ..."""
    with self._lock:
      self.model = model
      self._counts.update({f'usage/{key}': count for key, count in usage.items()})

  def take(self) -> dict[str, float]:
    """Returns the counts since the last taking: grades, seconds, errors/KEY, usage/KEY."""
    with self._lock:
      counts, self._counts = self._counts, collections.Counter()
    return dict(counts)


def try_all(grader: Grader, pairs: list[tuple[dict, dict]]) -> list[Grade]:
  """Returns the Grade of each (item, sample), in order; an exception becomes other_error."""
  if hasattr(grader, 'many'):
    return grader.many(list(pairs))
  return [_try_one(grader, item, sample) for item, sample in pairs]


def _try_one(grader: Grader, item, sample) -> Grade:
  try:
    return grader(item, sample)
  except Exception as error:  # one row must not end a run; the fault is counted and shown
    return grader_fault(
      grader, {'other_error': True, 'other_error_details': f'{type(error).__name__}: {error}'}
    )


def policy_fault(grader, errors: dict[str, bool | str]) -> Grade:
  """Returns the Grade of an answer that cannot be scored through its own doing."""
  return Grade(grader.ungradable_reward, {grader.name: None}, errors)


def grader_fault(grader, errors: dict[str, bool | str]) -> Grade:
  """Returns the Grade where not the answer but row, grader or machine is to blame."""
  return Grade(None, {grader.name: None}, errors)


def faulty(grader, fault: template.Fault) -> Grade:
  """Returns the Grade where a template met a value that is not there."""
  return (policy_fault if fault.of_policy else grader_fault)(grader, fault.errors)


def sandbox_fault(grader, kind: str, details: str) -> Grade:
  """Returns the Grade where a process failed around the answer: time-out, memory, killed, ..."""
  return grader_fault(
    grader,
    {
      'python_grader_server_error': True,
      'python_grader_server_error_type': kind,
      'python_grader_server_error_details': details,
    },
  )


def template_problems(given: dict[str, Any], fields) -> list[str]:
  """Returns what is wrong with those of the fields that are given, each a template."""
  return [
    f'{field}: {problem}'
    for field in fields
    if field in given
    for problem in template.problems(given[field])
  ]


def raise_problems(name: str, problems: list[str]) -> None:
  """Raises one ValueError that lists all problems of the grader called name, if there are any."""
  if problems:
    raise ValueError('\n'.join([f'grader {name}:', *(f'  {problem}' for problem in problems)]))


def threshold_problems(given: dict[str, Any]) -> list[str]:
  """Returns what is wrong with pass_threshold, which every type accepts."""
  value = given.get('pass_threshold')
  if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
    return []
  return [f'pass_threshold={value!r}, need a number']


def read(grader: dict[str, Any] | str | pathlib.Path) -> tuple[dict[str, Any], str]:
  """Returns (grader as a dict, what to call it in messages).

  Raises:
    ValueError: the file cannot be read or is not a JSON object; says where.
  """
  if isinstance(grader, dict):
    return grader, str(grader.get('name') or 'without a name')
  path = pathlib.Path(grader)
  try:
    loaded = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}') from None
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{path}: cannot be read as a grader: {error}') from None
  if not isinstance(loaded, dict):
    raise ValueError(f'{path}: holds {template.kind(loaded)}, need the JSON object of a grader')
  return loaded, f'{loaded.get("name") or "without a name"} ({path})'


def split(cls, grader: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns (the fields of cls that grader gives, problems with the names of its fields)."""
  known = {
    field.name: field
    for field in dataclasses.fields(cls)
    if field.init and field.name not in SETTINGS
  }
  problems = [
    f'unknown field {key!r}{template.did_you_mean(key, known)}, need only '
    f'{", ".join(["type", *known])}'
    for key in grader
    if key != 'type' and key not in known
  ]
  given = {key: value for key, value in grader.items() if key in known}
  given['name'] = given.get('name') or generated_name(grader)
  if not isinstance(given['name'], str):
    problems.append(f'name={given["name"]!r}, need a string')
  problems.extend(
    f'field {key!r} is missing'
    for key, field in known.items()
    if key not in given
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )
  return given, problems


def generated_name(grader: dict[str, Any]) -> str:
  """Returns 'grader-' and 12 letters or digits, the same for the same JSON in every run."""
  letters = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
  text = json.dumps(grader, sort_keys=True, default=repr)
  number = int.from_bytes(hashlib.sha256(text.encode()).digest(), 'big')
  return 'grader-' + ''.join(letters[number // 62**place % 62] for place in range(12))
