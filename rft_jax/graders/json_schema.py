"""The `json_schema` grader: is the answer JSON, and valid under a schema?"""

import dataclasses
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders import sample as samples
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSchema:
  """Scores 1.0 if the answer's text is JSON and valid, otherwise 0.0.

  Valid under schema where the grader has one, otherwise under the response_format of the run. An
  answer that is not JSON scores 0.0 and is no fault: this is what is measured. Under a
  response_format the text must be an object or array; under a schema of the grader's own it may
  be any JSON. A run with a response_format pays its ungradable_reward to an answer that is not
  valid before any grader sees it; there a grader's own schema can ask for more.

      JsonSchema(name='format', schema={'type': 'object', 'required': ['genes']})

  Raises:
    ValueError: at construction, listing every problem: neither schema nor response_format, or
      one that is no JSON Schema.
  """

  name: str
  schema: dict[str, Any] | None = None
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  response_format: dict[str, Any] | None = None

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    schema, response_format = given.get('schema'), given.get('response_format')
    if schema is not None and not isinstance(schema, dict):
      found = [f'schema is {template.kind(schema)}, need the object of a JSON Schema']
    elif schema is not None:
      found = [f'schema: {problem}' for problem in samples.schema_problems(schema)]
    elif response_format is None or response_format == {'type': 'text'}:
      found = [
        f'schema is missing and the response_format of the run is {response_format}: need '
        'one of them to hold answers against'
      ]
    else:
      found = samples.response_format_problems(response_format)
    return found + base.threshold_problems(given)

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    try:
      text = template.render('{{ sample.output_text }}', item=item, sample=sample)
    except template.Fault as fault:
      return base.faulty(self, fault)
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
    """Returns no paths: it reads the answer alone."""
    return frozenset()

  def close(self) -> None:
    """Does nothing: there is nothing to free."""
