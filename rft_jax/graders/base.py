"""The grader interface (Grader), the reading of grader JSON, and grades for faults.

A grader is a frozen dataclass whose fields are those of its JSON, plus the settings of the run
that it needs (SETTINGS). To add one: write its class in a file of its own, and name it in GRADERS
in this folder's __init__.py.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import threading
from collections.abc import Iterable
from typing import Any, ClassVar, Protocol

from rft_jax.graders import template
from rft_jax.json_files import read_json
from rft_jax.types import Grade

# Fields of a grader's class that come from the run and not from the grader's JSON. A class
# declares those that it needs; make() sets them.
SETTINGS = (
  'ungradable_reward',  # float, the reward of a policy fault
  'sandbox',  # SandboxConfig
  'response_format',  # the API's JSON, or None
  'judges',  # judges.Judges: sends the requests of model graders
  'reward_models',  # callables by name, each [(prompt messages, answer)] -> [float]
  'make_part',  # PartMaker: makes a grader inside a grader, with the settings of the run
)


class Grader(Protocol):
  """Scores an answer: grader(item, sample) -> Grade.

  item is the whole row, sample the answer as make_sample returns it. A call never raises because
  of the contents of an answer or a row: it returns a Grade with errors. What is wrong for every
  answer raises ValueError at construction.

  Optional attributes:
    many(pairs: list[tuple[item, sample]]) -> list[Grade]: for graders that are faster on many
      answers at once; grade_many calls it in place of __call__.
    waits_for_all: if True, all answers of a step are graded in one call, after sampling has ended.
    tallies: dict[str, Tally], of graders with parts (by the name of the part) and of model graders
      (by their own name).
  """

  __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]  # it is a dataclass

  @property
  def name(self) -> str: ...

  @property
  def ungradable_reward(self) -> float:
    """The reward of a policy fault."""

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade: ...

  def item_fields(self) -> frozenset[str] | None:
    """Returns the paths of item that every call reads ('answer', 'genes[0]'); None if unknown."""

  def close(self) -> None:
    """Frees its processes and connections. May be repeated; the grader cannot be used again."""

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""


class PartMaker(Protocol):
  """Makes the graders inside another grader (the parts of a multi grader)."""

  def __call__(self, grader: dict[str, Any]) -> Grader:
    """Returns the grader that the JSON describes; raises ValueError like graders.make."""

  def problems(self, grader: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the JSON, without starting any process."""


class Tally:
  """Thread-safe counts of the grades, errors, seconds and judge tokens of one grader."""

  def __init__(self):
    self._lock = threading.Lock()
    self._counts, self.model = collections.Counter(), None

  def add(self, errors: dict[str, bool | str], seconds: float) -> None:
    """Counts one grade: the errors that are True, and the seconds that it took."""
    with self._lock:
      self._counts.update({'grades': 1, 'seconds': seconds})
      self._counts.update(f'errors/{key}' for key, value in errors.items() if value is True)

  def add_usage(self, usage: dict[str, int], model: str) -> None:
    """Counts the tokens of one answer of a judge: prompt_tokens, completion_tokens, ..."""
    with self._lock:
      self.model = model
      self._counts.update({f'usage/{key}': count for key, count in usage.items()})

  def take(self) -> dict[str, float]:
    """Returns the counts and resets them: grades, seconds, errors/KEY, usage/KEY."""
    with self._lock:
      counts, self._counts = self._counts, collections.Counter()
    return dict(counts)


def grade_all(grader: Grader, pairs: list[tuple[dict, dict]]) -> list[Grade]:
  """Returns the Grade of each (item, sample), in order; an exception becomes other_error."""
  if hasattr(grader, 'many'):
    return grader.many(list(pairs))
  return [_grade_one(grader, item, sample) for item, sample in pairs]


def _grade_one(grader: Grader, item, sample) -> Grade:
  try:
    return grader(item, sample)
  except Exception as error:  # one row must not end a run; the fault is counted and reported
    return grader_fault(
      grader, {'other_error': True, 'other_error_details': f'{type(error).__name__}: {error}'}
    )


def policy_fault(grader, errors: dict[str, bool | str]) -> Grade:
  """Returns the Grade of an answer that cannot be scored because of the answer itself."""
  return Grade(grader.ungradable_reward, {grader.name: None}, errors)


def grader_fault(grader, errors: dict[str, bool | str]) -> Grade:
  """Returns the Grade of a failure of the row, the grader or the machine, not of the answer."""
  return Grade(None, {grader.name: None}, errors)


def template_fault(grader, fault: template.Fault) -> Grade:
  """Returns the Grade of an answer or row that lacks a value which a template reads."""
  return (policy_fault if fault.is_policy_fault else grader_fault)(grader, fault.errors)


def sandbox_fault(grader, kind: str, details: str) -> Grade:
  """Returns the Grade of an answer whose grading process failed: time-out, memory, killed, ..."""
  return grader_fault(
    grader,
    {
      'python_grader_server_error': True,
      'python_grader_server_error_type': kind,
      'python_grader_server_error_details': details,
    },
  )


def template_problems(fields: dict[str, Any], names: Iterable[str]) -> list[str]:
  """Returns what is wrong with the templates in the fields `names`, where present."""
  return [
    f'{name}: {problem}'
    for name in names
    if name in fields
    for problem in template.problems(fields[name])
  ]


def raise_problems(name: str, problems: list[str]) -> None:
  """Raises one ValueError with all problems of the grader called name, if there are any."""
  if problems:
    raise ValueError('\n'.join([f'grader {name}:', *(f'  {problem}' for problem in problems)]))


def threshold_problems(fields: dict[str, Any]) -> list[str]:
  """Returns what is wrong with pass_threshold, which every type accepts."""
  value = fields.get('pass_threshold')
  if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
    return []
  return [f'pass_threshold={value!r}, need a number']


def read_grader(grader: dict[str, Any] | str | pathlib.Path) -> tuple[dict[str, Any], str]:
  """Returns (grader as a dict, its name in messages).

  Raises:
    ValueError: the file cannot be read or is not a JSON object; names the place.
  """
  if isinstance(grader, dict):
    return grader, str(grader.get('name') or 'without a name')
  value = read_json(grader, 'grader')
  if not isinstance(value, dict):
    raise ValueError(
      f'{grader}: holds {template.json_type(value)}, need the JSON object of a grader'
    )
  return value, f'{value.get("name") or "without a name"} ({grader})'


def read_fields(cls, grader: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
  """Returns (the fields of cls in a grader's JSON, problems with the names of its fields)."""
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
  fields = {key: value for key, value in grader.items() if key in known}
  fields['name'] = fields.get('name') or generated_name(grader)
  if not isinstance(fields['name'], str):
    problems.append(f'name={fields["name"]!r}, need a string')
  problems.extend(
    f'field {key!r} is missing'
    for key, field in known.items()
    if key not in fields
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )
  return fields, problems


def generated_name(grader: dict[str, Any]) -> str:
  """Returns 'grader-' and 12 letters or digits, derived from the JSON alone."""
  letters = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
  text = json.dumps(grader, sort_keys=True, default=repr)
  number = int.from_bytes(hashlib.sha256(text.encode()).digest(), 'big')
  return 'grader-' + ''.join(letters[number // 62**place % 62] for place in range(12))
