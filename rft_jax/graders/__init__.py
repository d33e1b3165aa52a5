"""Graders: score one answer with its dataset row, and return a Grade. Nothing here imports jax.

    grader = graders.make({'type': 'string_check', 'name': 'exact', 'operation': 'eq',
                           'input': '{{ sample.output_text }}', 'reference': '{{ item.answer }}'})
    sample, errors = graders.make_sample('7')
    grader({'answer': '7'}, sample)   # Grade(reward=1.0, components={'exact': 1.0}, errors={})

To add a type: write its class (base.Grader is the interface) in a file of its own and name it in
GRADERS. From outside the package, for example in a config file, one line does the same:

    graders.GRADERS['mine'] = Mine
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from rft_jax.graders import base
from rft_jax.graders.base import Grader, grader_fault, policy_fault
from rft_jax.graders.code import Code
from rft_jax.graders.endpoint import Endpoint
from rft_jax.graders.json_schema import JsonSchema
from rft_jax.graders.judges.config import JudgeConfig
from rft_jax.graders.judges.judges import Judges
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
  'GraderInfo',
  'JudgeConfig',
  'Judges',
  'SandboxConfig',
  'describe',
  'grade',
  'grade_many',
  'grader_fault',
  'grader_infos',
  'isolation_level',
  'make',
  'make_sample',
  'policy_fault',
  'response_format_problems',
]


class GraderInfo(NamedTuple):
  """Name, type and model of one grader, as in OpenAI's metrics event."""

  name: str
  type: str
  model: str | None  # the judge of a model grader


GRADERS: dict[str, type[Grader]] = {
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
)  # types of OpenAI's API; the others are our own


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
    ungradable_reward: the reward of an answer that cannot be scored because of the answer itself
      (a policy fault).
    sandbox: limits of python and code graders; None: the defaults of SandboxConfig. A math grader
      takes its number of processes and its memory limit from here.
    response_format: of the run, as the API's JSON or None: json_schema graders validate answers
      against it.
    judges: sends the requests of model graders; None: the defaults of JudgeConfig.
    reward_models: callables by name, each [(prompt messages, answer)] -> [float].

  Raises:
    ValueError: the JSON is invalid; lists every problem, with the way out.
    RuntimeError: the worker of a python or math grader cannot be started on this machine.
  """
  grader_json, name = base.read_grader(grader)
  return _PartMaker(
    {
      'ungradable_reward': ungradable_reward,
      'sandbox': sandbox or SandboxConfig(),
      'response_format': response_format,
      'judges': judges,
      'reward_models': reward_models,
    }
  )(grader_json, name)


@dataclasses.dataclass(frozen=True)
class _PartMaker:
  """Makes graders with the settings of one run; passed as make_part to graders with parts."""

  settings: dict[str, Any]

  def __call__(self, grader: dict[str, Any], name: str = '') -> Grader:
    cls, values, problems = self._read(grader)
    base.raise_problems(name or values.get('name', 'without a name'), problems)
    assert cls is not None  # an unknown type is a problem
    return cls(**values)

  def problems(self, grader: dict[str, Any]) -> list[str]:
    return self._read(grader)[2]

  def _read(self, grader) -> tuple[type[Grader] | None, dict[str, Any], list[str]]:
    """Returns (the class, its fields and the settings it declares, problems)."""
    cls = GRADERS.get(grader['type']) if isinstance(grader.get('type'), str) else None
    if cls is None:
      return None, {}, [_type_problem(grader)]
    values, problems = base.read_fields(cls, grader)
    accepted = {field.name for field in dataclasses.fields(cls)}
    settings = {**self.settings, 'make_part': self}
    values.update({key: value for key, value in settings.items() if key in accepted})
    return cls, values, problems + cls.problems(values)


def describe(grader: Grader) -> dict[str, Any]:
  """Returns the JSON of a grader in normal form: with its name, in the API's spelling."""
  type_names = {cls: name for name, cls in GRADERS.items()}
  values = {
    field.name: getattr(grader, field.name)
    for field in dataclasses.fields(grader)
    if field.init and field.name not in base.SETTINGS
  }
  if hasattr(grader, 'parts'):
    values['graders'] = {key: describe(part) for key, part in grader.parts.items()}
  return {
    'type': type_names[type(grader)],
    **{key: value for key, value in values.items() if value is not None},
  }


def grader_infos(grader: Grader) -> list[GraderInfo]:
  """Returns one GraderInfo per part of a grader with parts, otherwise one for the grader."""
  described = describe(grader)
  parts = described.get('graders') or {described['name']: described}
  return [GraderInfo(name, part['type'], part.get('model')) for name, part in parts.items()]


def grade(
  grader: dict[str, Any] | str | pathlib.Path | Grader,
  *,
  item: dict[str, Any],
  sample: dict[str, Any],
  **settings,
) -> Grade:
  """Returns the Grade of one answer, without retries.

  Args:
    grader: JSON or the path of a JSON file, as for make, or a grader that make returned.
    item: the whole row.
    sample: at least {'output_text': ...}. output_json is added if it is absent and the text is a
      JSON object or array.
    **settings: the other arguments of make.

  Raises:
    ValueError: the grader's JSON is invalid, or sample['output_text'] is not a string.
  """
  if callable(grader):
    return grader(item, complete(sample))
  new_grader = make(grader, **settings)
  try:
    return new_grader(item, complete(sample))
  finally:
    new_grader.close()


def grade_many(
  grader: Grader, pairs: list[tuple[dict[str, Any], dict[str, Any]]], *, retries: int = 1
) -> list[Grade]:
  """Returns the Grade of each (item, sample), in order; no pair makes the call raise.

  Pairs with a grader fault (reward None) are graded again, up to `retries` times; a fault in the
  last attempt stays. An exception raised by a grader is the grader fault other_error.
  """
  grades = base.grade_all(grader, pairs)
  for _ in range(retries):
    failed = [index for index, grade in enumerate(grades) if grade.reward is None]
    if not failed:
      break
    for index, grade in zip(failed, base.grade_all(grader, [pairs[index] for index in failed])):
      grades[index] = grade
  return grades


def _type_problem(grader: dict[str, Any]) -> str:
  ours = ', '.join(sorted(GRADERS.keys() - API_TYPES))
  need = f'need one of {", ".join(API_TYPES)}, or of our own {ours}'
  if 'type' not in grader:
    return f"field 'type' is missing, {need}"
  return f'type={grader["type"]!r} is unknown{did_you_mean(grader["type"], GRADERS)}, {need}'
