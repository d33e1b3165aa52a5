"""The `score_model` grader: a judge that gives a number."""

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
  templates; what they take from sample is fenced off as data (judges/prompt.py). The judge is told
  to answer {"steps": [{"description", "conclusion"}], "result": number}. Which model answers is
  the run's choice: see JudgeConfig. No number, a refusal, an answer cut off and a failing endpoint
  are grader faults, model_grader_*.

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
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  judges: Judges | None = None
  owns_judges: bool = dataclasses.field(init=False, repr=False)
  tallies: dict[str, base.Tally] = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    grading.settle(self)

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    found = grading.common_problems(given)
    bounds = given.get('range', [0, 1])
    try:
      low, high = map(grading.finite_number, bounds)
    except (TypeError, ValueError):
      low = high = 0
    if not low < high:
      found.append(f'range={bounds!r}, need [lowest, highest], two numbers')
    return found

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, many asked for at once."""
    low, high = map(float, self.range)
    return grading.grade(
      self,
      pairs,
      form=grading.form(f'a number from {low:g} to {high:g}'),
      schema=grading.verdict_schema({'type': 'number'}),
      read=_number,
      score=functools.partial(_clamped, low, high),
    )

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the messages read."""
    return judge_prompt.item_fields(self.input)

  def close(self) -> None:
    """Closes the judges that were made for it alone."""
    grading.close(self)


def _number(text: str) -> float:
  return grading.finite_number(grading.read_result(text))


def _clamped(low: float, high: float, value: float) -> float:
  return min(max(value, low), high)
