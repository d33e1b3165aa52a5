"""The `string_check` grader: one comparison of two texts."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

OPERATIONS = {
  'eq': lambda given, wanted: given == wanted,
  'ne': lambda given, wanted: given != wanted,
  'like': lambda given, wanted: wanted in given,
  'ilike': lambda given, wanted: wanted.lower() in given.lower(),
}
ALIASES = {'neq': 'ne'}  # a spelling that the API's prose uses and its schema does not


@dataclasses.dataclass(frozen=True, kw_only=True)
class StringCheck:
  """Scores 1.0 if the operation holds between two rendered templates, otherwise 0.0.

  The `string_check` grader of the OpenAI API; field names and operations are its own. eq and ne
  compare exactly; like asks whether input contains reference; ilike is like without case.
  Nothing is trimmed: a trailing newline is a difference.

      StringCheck(name='exact', input='{{ sample.output_text }}',
                  reference='{{ item.answer }}', operation='eq')

  Raises:
    ValueError: at construction, listing every problem: unknown operation, bad template.
  """

  name: str
  input: str
  reference: str
  operation: str
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(self, 'operation', ALIASES.get(self.operation, self.operation))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields that are given; [] if nothing."""
    found = base.template_problems(given, ('input', 'reference'))
    operation = given.get('operation', 'eq')
    if operation not in (*OPERATIONS, *ALIASES):
      hint = template.did_you_mean(operation, OPERATIONS)
      found.append(f'operation={operation!r}{hint}, need one of {", ".join(OPERATIONS)}')
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      given, wanted = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
    score = float(OPERATIONS[self.operation](given, wanted))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: there is nothing to free."""
