"""The `repetition` grader: full value for a text that never says the same twice."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

UNITS = ('words', 'characters')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetition:
  """Scores 1 minus the share of repeated n-grams of a rendered template; to be used inside multi.

      score = number of different n-grams / number of n-grams

  1.0 where nothing is repeated, towards 0 for a loop, and 1.0 for a text too short for an n-gram.
  Words are what stands between white space, in their case. A text of one word (a script without
  spaces, or a loop of one letter) is counted in characters, also where unit is words.

      Repetition(name='fresh', input='{{ sample.output_text }}', n=4)

  Raises:
    ValueError: at construction, listing every problem.
  """

  name: str
  input: str
  n: int = 4
  unit: str = 'words'  # or characters
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = [f'input: {problem}' for problem in template.problems(given.get('input', ''))]
    n, unit = given.get('n', 4), given.get('unit', 'words')
    if type(n) is not int or n < 1:
      found.append(f'n={n!r}, need an integer >= 1')
    if unit not in UNITS:
      hint = template.did_you_mean(unit, UNITS)
      found.append(f'unit={unit!r}{hint}, need one of {", ".join(UNITS)}')
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render(self.input, item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
    score = _share_of_different(text, self.n, self.unit)
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the template reads."""
    return template.fields(self.input)

  def close(self) -> None:
    """Does nothing: there is nothing to free."""


def _share_of_different(text: str, n: int, unit: str) -> float:
  """Returns the number of different n-grams of text over the number of all; 1.0 if it has none."""
  parts = text.split() if unit == 'words' else list(text)
  if len(parts) == 1:
    parts = list(parts[0])
  grams = list(zip(*(parts[start:] for start in range(n))))
  return len(set(grams)) / len(grams) if grams else 1.0
