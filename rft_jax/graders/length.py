"""The `length` grader: scores the length of a text against a soft and a hard limit."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

UNITS = {'characters': len, 'words': lambda text: len(text.split())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
  """Scores in [0, 1] the length of a rendered template; to be used inside multi.

      n = its length in characters (Unicode code points) or words (between white space)
      0                                            if n < minimum
      1                                            otherwise, if n <= soft_limit
      (hard_limit - n) / (hard_limit - soft_limit) up to hard_limit, and 0 beyond

  The score minus 1 is the soft overlong punishment of DAPO (https://arxiv.org/abs/2503.14476,
  eq. 13), a value in [-1, 0]: in a formula, `correct + length - 1`.

      Length(name='length', input='{{ sample.output_text }}', unit='words',
             soft_limit=80, hard_limit=120)

  Raises:
    ValueError: at construction, listing every problem.
  """

  name: str
  input: str
  unit: str
  soft_limit: int  # the largest length with score 1
  hard_limit: int  # from this length on the score is 0
  minimum: int = 0  # below this length the score is 0
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = [f'input: {problem}' for problem in template.problems(fields.get('input', ''))]
    unit = fields.get('unit', 'words')
    if not isinstance(unit, str) or unit not in UNITS:
      hint = template.did_you_mean(unit, UNITS)
      problems.append(f'unit={unit!r}{hint}, need one of {", ".join(UNITS)}')
    limits = {
      name: fields[name] for name in ('minimum', 'soft_limit', 'hard_limit') if name in fields
    }
    limit_problems = [
      f'{name}={value!r}, need an integer >= 0'
      for name, value in limits.items()
      if type(value) is not int or value < 0
    ]
    if not limit_problems and len(limits) > 1:
      ordered = limits.get('minimum', 0) <= limits.get('soft_limit', limits.get('minimum', 0))
      if not ordered or limits.get('soft_limit', -1) >= limits.get('hard_limit', float('inf')):
        shown = ', '.join(f'{name}={value}' for name, value in limits.items())
        limit_problems = [f'{shown}, need minimum <= soft_limit < hard_limit']
    return problems + limit_problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render(self.input, item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    length = UNITS[self.unit](text)
    slope = (self.hard_limit - length) / (self.hard_limit - self.soft_limit)
    score = 0.0 if length < self.minimum else min(1.0, max(0.0, slope))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that the template reads."""
    return template.fields(self.input)

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""
