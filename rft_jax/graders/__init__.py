"""Graders: an answer and its row in, a Grade out. Nothing here imports jax.

    grader = graders.make({'type': 'string_check', 'name': 'exact', 'operation': 'eq',
                           'input': '{{ sample.output_text }}', 'reference': '{{ item.answer }}'})
    sample, errors = graders.make_sample('7')
    grader({'answer': '7'}, sample)   # Grade(reward=1.0, components={'exact': 1.0}, errors={})

A new type is one file with its class, and one line in GRADERS.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from rft_jax.graders import base
from rft_jax.graders.base import Grader, grader_fault, policy_fault
from rft_jax.graders.code import Code
from rft_jax.graders.endpoint import Endpoint
from rft_jax.graders.json_schema import JsonSchema
from rft_jax.graders.judges.judges import JudgeConfig, Judges
from rft_jax.graders.label_model import LabelModel
from rft_jax.graders.length import Length
from rft_jax.graders.math.math import Math
from rft_jax.graders.multi import Multi
from rft_jax.graders.python import Python
from rft_jax.graders.rank import Rank
from rft_jax.graders.repetition import Repetition
from rft_jax.graders.reward_model import RewardModel
from rft_jax.graders.sample import complete, make_sample, response_format_problems
from rft_jax.graders.sandbox.isolation import isolation_level
from rft_jax.graders.sandbox.pool import SandboxConfig
from rft_jax.graders.score_model import ScoreModel
from rft_jax.graders.string_check import StringCheck
from rft_jax.graders.template import did_you_mean
from rft_jax.graders.text_similarity import TextSimilarity
from rft_jax.types import Grade

__all__ = [
  'GRADERS',
  'Grader',
  'JudgeConfig',
  'Judges',
  'Listed',
  'SandboxConfig',
  'describe',
  'grade',
  'grade_many',
  'grader_fault',
  'isolation_level',
  'listed',
  'make',
  'make_sample',
  'policy_fault',
  'response_format_problems',
]


class Listed(NamedTuple):
  """One grader, as OpenAI's metrics event lists it."""

  name: str
  type: str
  model: str | None  # of a judge


GRADERS = {
  'code': Code,
  'endpoint': Endpoint,
  'json_schema': JsonSchema,
  'label_model': LabelModel,
  'length': Length,
  'math': Math,
  'multi': Multi,
  'python': Python,
  'rank': Rank,
  'repetition': Repetition,
  'reward_model': RewardModel,
  'score_model': ScoreModel,
  'string_check': StringCheck,
  'text_similarity': TextSimilarity,
}
API_TYPES = (
  'string_check',
  'text_similarity',
  'score_model',
  'label_model',
  'python',
  'multi',
  'endpoint',
)  # of OpenAI's API; the others are our own


def make(
  grader: dict[str, Any] | str | pathlib.Path,
  *,
  ungradable_reward: float = 0.0,
  sandbox: SandboxConfig | None = None,
  response_format: dict[str, Any] | None = None,
  judges: Judges | None = None,
  reward_models: dict[str, Any] | None = None,
) -> Grader:
  """Returns the grader that the API's JSON describes.

  Args:
    grader: the JSON as a dict, or the path of a file that holds it. A missing name is generated.
    ungradable_reward: the reward of an answer that cannot be scored through its own doing.
    sandbox: what python graders may use; None: the defaults of SandboxConfig. A math grader
      takes its number of processes and its memory limit from here.
    response_format: of the run, as the API's JSON or None: json_schema graders hold answers
      against it.
    judges: who answers for model judges; None: the defaults of JudgeConfig.
    reward_models: callables by name, each [(prompt messages, answer)] -> [float].

  Raises:
    ValueError: the JSON is wrong; lists every problem, with the way out.
    RuntimeError: the worker of a python or math grader cannot be started on this machine.
  """
  given, name = base.read(grader)
  return _PartMaker(
    {
      'ungradable_reward': ungradable_reward,
      'sandbox': sandbox or SandboxConfig(),
      'response_format': response_format,
      'judges': judges,
      'reward_models': reward_models,
    }
  )(given, name)


@dataclasses.dataclass(frozen=True)
class _PartMaker:
  """Makes graders with the settings of one run; make_part of the graders that hold others."""

  settings: dict[str, Any]

  def __call__(self, grader: dict[str, Any], name: str = '') -> Grader:
    cls, values, problems = self._read(grader)
    base.raise_problems(name or values.get('name', 'without a name'), problems)
    return cls(**values)

  def problems(self, grader: dict[str, Any]) -> list[str]:
    return self._read(grader)[2]

  def _read(self, grader) -> tuple[type | None, dict[str, Any], list[str]]:
    """Returns (the class, its fields with the settings it asks for, problems)."""
    cls = GRADERS.get(grader['type']) if isinstance(grader.get('type'), str) else None
    if cls is None:
      return None, {}, [_type_problem(grader)]
    values, problems = base.split(cls, grader)
    accepted = {field.name for field in dataclasses.fields(cls)}
    settings = {**self.settings, 'make_part': self}
    values.update({key: value for key, value in settings.items() if key in accepted})
    return cls, values, problems + cls.problems(values)


def describe(grader: Grader) -> dict[str, Any]:
  """Returns the JSON of a grader in its normal form: named, spelt as the API spells it."""
  kinds = {cls: kind for kind, cls in GRADERS.items()}
  values = {
    field.name: getattr(grader, field.name)
    for field in dataclasses.fields(grader)
    if field.init and field.name not in base.SETTINGS
  }
  if hasattr(grader, 'parts'):
    values['graders'] = {key: describe(part) for key, part in grader.parts.items()}
  return {
    'type': kinds[type(grader)],
    **{key: value for key, value in values.items() if value is not None},
  }


def listed(grader: Grader) -> list[Listed]:
  """Returns the graders that score: the parts of a grader that has parts, otherwise itself."""
  described = describe(grader)
  parts = described.get('graders') or {described['name']: described}
  return [Listed(name, part['type'], part.get('model')) for name, part in parts.items()]


def grade(
  grader: dict[str, Any] | str | pathlib.Path | Grader,
  *,
  item: dict[str, Any],
  sample: dict[str, Any],
  **settings,
) -> Grade:
  """Returns the Grade of one answer, tried once.

  Args:
    grader: JSON, or its path, as for make, or a made grader.
    item: the whole row.
    sample: at least {'output_text': ...}. output_json is added where the text is a JSON object
      or array and it is not given.
    **settings: the other arguments of make.

  Raises:
    ValueError: the grader's JSON is wrong, or sample['output_text'] is not a string.
  """
  if callable(grader):
    return grader(item, complete(sample))
  made = make(grader, **settings)
  try:
    return made(item, complete(sample))
  finally:
    made.close()


def grade_many(
  grader: Grader, pairs: list[tuple[dict[str, Any], dict[str, Any]]], *, retries: int = 1
) -> list[Grade]:
  """Returns the Grade of each (item, sample), in order; never raises because of one of them.

  Those with a grader fault (reward None) are tried again up to retries times, and then left so.
  An exception out of a grader is a grader fault too: other_error.
  """
  grades = base.try_all(grader, pairs)
  for _ in range(retries):
    again = [place for place, grade in enumerate(grades) if grade.reward is None]
    if not again:
      break
    for place, grade in zip(again, base.try_all(grader, [pairs[place] for place in again])):
      grades[place] = grade
  return grades


def _type_problem(given: dict[str, Any]) -> str:
  ours = ', '.join(sorted(GRADERS.keys() - API_TYPES))
  need = f'need one of {", ".join(API_TYPES)}, or of our own {ours}'
  if 'type' not in given:
    return f"field 'type' is missing, {need}"
  return f'type={given["type"]!r} is unknown{did_you_mean(given["type"], GRADERS)}, {need}'
