"""The `json_schema` grader: whether the answer is JSON that is valid under a JSON Schema."""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders import sample as samples
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSchema:
  """Scores 1.0 if the answer's text is JSON and valid, otherwise 0.0.

  It is validated against `schema` if the grader has one, otherwise against the response_format of
  the run. An answer that is not JSON scores 0.0 and is not a fault: this is what the grader
  measures. Under a response_format the text must be an object or array; under the grader's own
  schema it may be any JSON. In a run with a response_format an answer that is not valid gets
  ungradable_reward before any grader is called; there a grader's own schema can demand more.

      JsonSchema(name='format', schema={'type': 'object', 'required': ['genes']})

  Raises:
    ValueError: at construction, listing every problem: neither schema nor response_format, or
      a schema that is not a JSON Schema.
  """

  name: str
  schema: dict[str, Any] | None = None
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  response_format: dict[str, Any] | None = None

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    schema, response_format = fields.get('schema'), fields.get('response_format')
    if schema is not None and not isinstance(schema, dict):
      problems = [f'schema is {template.json_type(schema)}, need the object of a JSON Schema']
    elif schema is not None:
      problems = [f'schema: {problem}' for problem in samples.schema_problems(schema)]
    elif response_format is None or response_format == {'type': 'text'}:
      problems = [
        f'schema is missing and the response_format of the run is {response_format}: need '
        'one of them to validate answers against'
      ]
    else:
      problems = samples.response_format_problems(response_format)
    return problems + base.threshold_problems(fields)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render('{{ sample.output_text }}', item=item, sample=sample)
    except template.Fault as fault:
      return base.template_fault(self, fault)
    score = float(self._is_valid(text))
    return Grade(score, {self.name: score}, {})

  def _is_valid(self, text: str) -> bool:
    if self.schema is None:
      return not samples.make_sample(text, self.response_format)[1]
    try:
      return samples.schema_problem(samples.parse_json(text), self.schema) is None
    except ValueError:
      return False

  def item_fields(self) -> frozenset[str]:
    """Returns no paths: only the answer is read."""
    return frozenset()

  def close(self) -> None:
    """Does nothing: the grader holds no resources."""
