"""The `string_check` grader: equality or containment of two texts."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.types import Grade

OPERATIONS = {
  'eq': lambda text, reference: text == reference,
  'ne': lambda text, reference: text != reference,
  'like': lambda text, reference: reference in text,
  'ilike': lambda text, reference: reference.lower() in text.lower(),
}
ALIASES = {'neq': 'ne'}  # a spelling of the API's guide that its schema does not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class StringCheck:
  """Scores 1.0 if the operation holds between two rendered templates, otherwise 0.0.

  The `string_check` grader of the OpenAI API, with its field names and operations. eq and ne
  compare exactly; like is true if input contains reference; ilike is like without case.
  Nothing is trimmed: a trailing newline makes texts different.

      StringCheck(name='exact', input='{{ sample.output_text }}',
                  reference='{{ item.answer }}', operation='eq')

  Raises:
    ValueError: at construction, listing every problem: unknown operation, bad template.
  """

  name: str
  input: str
  reference: str
  operation: str
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    object.__setattr__(self, 'operation', ALIASES.get(self.operation, self.operation))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields that are present; [] if nothing."""
    problems = base.template_problems(fields, ('input', 'reference'))
    operation = fields.get('operation', 'eq')
    if operation not in (*OPERATIONS, *ALIASES):
      hint = template.did_you_mean(operation, OPERATIONS)
      problems.append(f'operation={operation!r}{hint}, need one of {", ".join(OPERATIONS)}')
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text, reference = template.render_all([self.input, self.reference], item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    score = float(OPERATIONS[self.operation](text, reference))
    return Grade(score, {self.name: score}, {})

  def item_fields(self) -> frozenset[str]:
    """Returns the paths of item that either template reads."""
    return template.fields(self.input) | template.fields(self.reference)

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""
