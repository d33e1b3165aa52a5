"""The `length` grader: full value for a text that is short enough, less for a longer one."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

UNITS = {'characters': len, 'words': lambda text: len(text.split())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
  """Scores in [0, 1] whether a rendered template has the right length; to be used inside multi.

      n = its length in characters (Unicode code points) or words (between white space)
      0                                            if n < minimum
      1                                            otherwise, if n <= soft_limit
      (hard_limit - n) / (hard_limit - soft_limit) up to hard_limit, and 0 beyond

  The score minus 1 is the soft overlong punishment of DAPO (https://arxiv.org/abs/2503.14476,
  eq. 13), which lies in [-1, 0]: in a formula, `correct + length - 1`.

      Length(name='length', input='{{ sample.output_text }}', unit='words',
             soft_limit=80, hard_limit=120)

  Raises:
    ValueError: at construction, listing every problem.
  """

  name: str
  input: str
  unit: str
  soft_limit: int  # the largest length of full value
  hard_limit: int  # the smallest length beyond it that is worth nothing
  minimum: int = 0  # the smallest length that is worth something
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = [f'input: {problem}' for problem in template.problems(given.get('input', ''))]
    unit = given.get('unit', 'words')
    if not isinstance(unit, str) or unit not in UNITS:
      hint = template.did_you_mean(unit, UNITS)
      found.append(f'unit={unit!r}{hint}, need one of {", ".join(UNITS)}')
    limits = {
      field: given[field] for field in ('minimum', 'soft_limit', 'hard_limit') if field in given
    }
    wrong = [
      f'{field}={value!r}, need an integer >= 0'
      for field, value in limits.items()
      if type(value) is not int or value < 0
    ]
    if not wrong and len(limits) > 1:
      ordered = limits.get('minimum', 0) <= limits.get('soft_limit', limits.get('minimum', 0))
      if not ordered or limits.get('soft_limit', -1) >= limits.get('hard_limit', float('inf')):
        shown = ', '.join(f'{field}={value}' for field, value in limits.items())
        wrong = [f'{shown}, need minimum <= soft_limit < hard_limit']
    return found + wrong + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render(self.input, item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
    length = UNITS[self.unit](text)
    falling = (self.hard_limit - length) / (self.hard_limit - self.soft_limit)
    score = 0.0 if length < self.minimum else min(1.0, max(0.0, falling))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the template reads."""
    return template.fields(self.input)

  def close(self) -> None:
    """Does nothing: there is nothing to free."""
