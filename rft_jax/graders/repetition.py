"""The `repetition` grader: scores the share of distinct n-grams of a text."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

UNITS = ('words', 'characters')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetition:
  """Scores 1 minus the share of repeated n-grams of a rendered template; to be used inside multi.

      score = number of distinct n-grams / number of n-grams

  1.0 without repetition, near 0 for a repeating loop, and 1.0 for a text too short for an n-gram.
  Words are separated by white space and compared with case. A text of one word (a script without
  spaces, or one repeated letter) is split into characters, also if unit is words.

      Repetition(name='fresh', input='{{ sample.output_text }}', n=4)

  Raises:
    ValueError: at construction, listing every problem.
  """

  name: str
  input: str
  n: int = 4
  unit: str = 'words'  # or characters
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = [f'input: {problem}' for problem in template.problems(fields.get('input', ''))]
    n, unit = fields.get('n', 4), fields.get('unit', 'words')
    if type(n) is not int or n < 1:
      problems.append(f'n={n!r}, need an integer >= 1')
    if unit not in UNITS:
      hint = template.did_you_mean(unit, UNITS)
      problems.append(f'unit={unit!r}{hint}, need one of {", ".join(UNITS)}')
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render(self.input, item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    score = _distinct_share(text, self.n, self.unit)
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the template reads."""
    return template.fields(self.input)

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""


def _distinct_share(text: str, n: int, unit: str) -> float:
  """Returns distinct n-grams of text / all n-grams of text; 1.0 if it has none."""
  tokens = text.split() if unit == 'words' else list(text)
  if len(tokens) == 1:
    tokens = list(tokens[0])
  ngrams = list(zip(*(tokens[start:] for start in range(n))))
  return len(set(ngrams)) / len(ngrams) if ngrams else 1.0
