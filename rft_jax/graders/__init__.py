"""Graders: an answer and its row in, a Grade out. Nothing here imports jax.

    grader = graders.make({'type': 'string_check', 'name': 'exact', 'operation': 'eq',
                           'input': '{{ sample.output_text }}', 'reference': '{{ item.answer }}'})
    sample, errors = graders.make_sample('7')
    grader({'answer': '7'}, sample)   # Grade(reward=1.0, components={'exact': 1.0}, errors={})

A new type is one file with its class, and one line in GRADERS.
"""
import dataclasses
import pathlib
from typing import Any

from rft_jax.graders import base
from rft_jax.graders.base import Grader, grader_fault, policy_fault
from rft_jax.graders.code import Code
from rft_jax.graders.isolation import isolation_level
from rft_jax.graders.python import Python
from rft_jax.graders.sample import complete, make_sample, response_format_problems
from rft_jax.graders.sandbox import SandboxConfig
from rft_jax.graders.string_check import StringCheck
from rft_jax.graders.template import did_you_mean
from rft_jax.types import Grade

__all__ = ['GRADERS', 'Grader', 'SandboxConfig', 'describe', 'grade', 'grade_many', 'grader_fault',
           'isolation_level', 'make', 'make_sample', 'policy_fault', 'response_format_problems']

GRADERS = {
    'code': Code,
    'python': Python,
    'string_check': StringCheck,
}
# All types of the API; those not in GRADERS are refused as not implemented, rather than unknown.
API_TYPES = ('string_check', 'text_similarity', 'score_model', 'label_model', 'python', 'multi',
             'endpoint')


def make(grader: dict[str, Any] | str | pathlib.Path, *, ungradable_reward: float = 0.0,
         sandbox: SandboxConfig | None = None) -> Grader:
  """Returns the grader that the API's JSON describes.

  Args:
    grader: the JSON as a dict, or the path of a file that holds it. A missing name is generated.
    ungradable_reward: the reward of an answer that cannot be scored through its own doing.
    sandbox: what python graders may use; None: the defaults of SandboxConfig.

  Raises:
    ValueError: the JSON is wrong; lists every problem, with the way out.
    RuntimeError: a python grader's worker cannot be started on this machine.
  """
  given, name = base.read(grader)
  cls = GRADERS.get(given['type']) if isinstance(given.get('type'), str) else None
  if cls is None:
    base.raise_problems(name, [_type_problem(given)])
  values, problems = base.split(cls, given)
  accepted = {field.name for field in dataclasses.fields(cls)}
  settings = {'ungradable_reward': ungradable_reward, 'sandbox': sandbox or SandboxConfig()}
  values.update({key: value for key, value in settings.items() if key in accepted})
  base.raise_problems(name, problems + cls.problems(values))
  return cls(**values)


def describe(grader: Grader) -> dict[str, Any]:
  """Returns the JSON of a grader in its normal form: named, spelt as the API spells it."""
  kinds = {cls: kind for kind, cls in GRADERS.items()}
  values = {field.name: getattr(grader, field.name) for field in dataclasses.fields(grader)
            if field.init and field.name not in base.SETTINGS}
  return {'type': kinds[type(grader)],
          **{key: value for key, value in values.items() if value is not None}}


def grade(grader: dict[str, Any] | str | pathlib.Path | Grader, *, item: dict[str, Any],
          sample: dict[str, Any], ungradable_reward: float = 0.0,
          sandbox: SandboxConfig | None = None) -> Grade:
  """Returns the Grade of one answer, tried once.

  Args:
    grader: JSON, or its path, as for make (which see for the other arguments), or a made grader.
    item: the whole row.
    sample: at least {'output_text': ...}. output_json is added where the text is a JSON object
      or array and it is not given.

  Raises:
    ValueError: the grader's JSON is wrong, or sample['output_text'] is not a string.
  """
  if callable(grader):
    return grader(item, complete(sample))
  made = make(grader, ungradable_reward=ungradable_reward, sandbox=sandbox)
  try:
    return made(item, complete(sample))
  finally:
    made.close()


def grade_many(grader: Grader, pairs: list[tuple[dict[str, Any], dict[str, Any]]], *,
               retries: int = 1) -> list[Grade]:
  """Returns the Grade of each (item, sample), in order; never raises because of one of them.

  Those with a grader fault (reward None) are tried again up to retries times, and then left so.
  An exception out of a grader is a grader fault too: other_error.
  """
  grades = _try_all(grader, pairs)
  for _ in range(retries):
    again = [place for place, grade in enumerate(grades) if grade.reward is None]
    if not again:
      break
    for place, grade in zip(again, _try_all(grader, [pairs[place] for place in again])):
      grades[place] = grade
  return grades


def _try_all(grader: Grader, pairs) -> list[Grade]:
  if hasattr(grader, 'many'):
    return grader.many(list(pairs))
  return [_try_one(grader, item, sample) for item, sample in pairs]


def _try_one(grader: Grader, item, sample) -> Grade:
  try:
    return grader(item, sample)
  except Exception as error:  # one row must not end a run; the fault is counted and shown
    return grader_fault(grader, {'other_error': True,
                                 'other_error_details': f'{type(error).__name__}: {error}'})


def _type_problem(given: dict[str, Any]) -> str:
  working = ', '.join(GRADERS)
  if 'type' not in given:
    return f"field 'type' is missing, need one of {working}"
  if given['type'] in API_TYPES:
    return f'type={given["type"]!r} is not implemented yet; these types work: {working}'
  near = did_you_mean(given['type'], API_TYPES)
  return f'type={given["type"]!r} is unknown{near}, need one of {working}'
