"""The `score_model` grader: a judge model scores the answer with a number."""

import dataclasses
import functools
from typing import Any

from rft_jax.graders import base
from rft_jax.graders.judges import grading
from rft_jax.graders.judges import prompt as judge_prompt
from rft_jax.graders.judges.judges import Judges
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoreModel:
  """Scores by the number that a model gives, clamped to `range`.

  The `score_model` grader of the OpenAI API. `input` is a list of messages whose texts are
  templates; values of sample are marked as data in the prompt (judges/prompt.py). The judge is
  instructed to answer {"steps": [{"description", "conclusion"}], "result": number}. JudgeConfig
  selects the model and endpoint that answer. A missing number, a refusal, a truncated answer and a
  failing endpoint are grader faults, model_grader_*.

      ScoreModel(name='judge', model='gpt-4.1-2025-04-14', range=[0, 5],
                 input=[{'role': 'user', 'content': 'Rate this:\\n{{ sample.output_text }}'}])

  Raises:
    ValueError: at construction, listing every problem: a bad template, no key, an unknown field.
  """

  name: str
  model: str
  input: list[dict[str, Any]]
  range: list[float] = dataclasses.field(default_factory=lambda: [0, 1])
  sampling_params: dict[str, Any] | None = None
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  judges: Judges | None = None
  owns_judges: bool = dataclasses.field(init=False, repr=False)
  tallies: dict[str, base.Tally] = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    grading.finish_init(self)

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    problems = grading.common_problems(fields)
    bounds = fields.get('range', [0, 1])
    try:
      low, high = map(grading.finite_number, bounds)
    except (TypeError, ValueError):
      low = high = 0
    if not low < high:
      problems.append(f'range={bounds!r}, need [lowest, highest], two numbers')
    return problems

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order; requests run concurrently."""
    low, high = map(float, self.range)
    return grading.grade(
      self,
      pairs,
      instruction=grading.format_instruction(f'a number from {low:g} to {high:g}'),
      schema=grading.verdict_schema({'type': 'number'}),
      parse=_parse_number,
      score=functools.partial(_clamp, low, high),
    )

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the messages read."""
    return judge_prompt.item_fields(self.input)

  def close(self) -> None:
    """Closes the judges, if this grader made them."""
    grading.close_judges(self)


def _parse_number(text: str) -> float:
  return grading.finite_number(grading.parse_result(text))


def _clamp(low: float, high: float, value: float) -> float:
  return min(max(value, low), high)
