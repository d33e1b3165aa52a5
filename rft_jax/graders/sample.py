"""The `sample` passed to graders: the answer as text and as JSON, and checks of response_format.

`output_json` is present whenever the text is a JSON object or array. With a response_format the
text must also be valid under it, otherwise the answer has the policy fault sample_parse_error.
A response_format is {'type': 'json_schema', 'json_schema': {'name', 'schema'}}, or the flat
{'type': 'json_schema', 'name', 'schema'}, or has the type json_object or text.
"""

import functools
import json
from typing import Any

from rft_jax.graders import template


def make_sample(
  output_text: str, response_format: dict[str, Any] | None = None, **fields
) -> tuple[dict[str, Any], dict[str, bool | str]]:
  """Returns (sample, errors) for one answer.

  Args:
    output_text: the answer, without the reasoning before it.
    response_format: the API's JSON, without response_format_problems, or None.
    **fields: more fields of sample for python graders, for example stop_reason='length'; they
      override the default fields.

  Returns:
    sample with output_text, choices, output_tools and, if the text is a JSON object or array,
    output_json; and errors, {} or sample_parse_error with its details.
  """
  value, problem = _parse_output(output_text)
  sample = _with_defaults({'output_text': output_text, **fields}, value)
  if response_format is None or response_format.get('type') == 'text':
    return sample, {}
  if problem is None:
    problem = _schema_problem(value, response_format)
  if problem is None:
    return sample, {}
  return sample, {'sample_parse_error': True, 'sample_parse_error_details': problem}


def complete(sample: dict[str, Any]) -> dict[str, Any]:
  """Returns sample with the fields added that follow from its output_text, unless present.

  Raises:
    ValueError: output_text is not a string.
  """
  text = sample.get('output_text')
  if text is None:
    return dict(sample)
  if not isinstance(text, str):
    raise ValueError(f"sample['output_text'] is {template.json_type(text)}, need a string")
  return _with_defaults(sample, _parse_output(text)[0])


def response_format_problems(response_format: Any) -> list[str]:
  """Returns what is wrong with a response_format; [] if nothing, or if it is None."""
  if response_format is None:
    return []
  if not isinstance(response_format, dict):
    return [f'response_format is {template.json_type(response_format)}, need an object']
  format_type = response_format.get('type')
  types = ('json_schema', 'json_object', 'text')
  if format_type not in types:
    return [
      f'response_format.type={format_type!r}{template.did_you_mean(format_type, types)}, '
      f'need one of {", ".join(types)}'
    ]
  if format_type != 'json_schema':
    return []
  schema = _schema(response_format)
  if not isinstance(schema, dict):
    return [
      "response_format: it has no schema, need {'type': 'json_schema', 'json_schema': "
      "{'name': ..., 'schema': {...}}}, or 'schema' next to 'type'"
    ]
  return [f'response_format: {problem}' for problem in schema_problems(schema)]


def schema_problems(schema: dict[str, Any]) -> list[str]:
  """Returns what is wrong with a JSON Schema; [] if nothing."""
  import jsonschema  # here and below, not at the top: its import is slow

  try:
    jsonschema.Draft202012Validator.check_schema(schema)
  except jsonschema.SchemaError as error:
    return [f'not a JSON Schema: {error.json_path}: {error.message:.300}']
  return _reference_problems(schema, schema)


def schema_problem(value: Any, schema: dict[str, Any]) -> str | None:
  """Returns why value is not valid under schema; None if it is valid."""
  import jsonschema

  validator = _validator(json.dumps(schema, sort_keys=True))
  try:
    violation = jsonschema.exceptions.best_match(validator.iter_errors(value))
  except (RecursionError, ArithmeticError) as error:  # deep nesting; multipleOf with 1e400
    return f'cannot be checked: {error}'
  return violation and f'{violation.json_path}: {violation.message:.300}'


def parse_json(text: str) -> Any:
  """Returns text parsed as JSON, without the constants NaN and Infinity.

  Raises:
    ValueError: text is not JSON, or is nested too deeply.
  """
  try:
    return json.loads(text, parse_constant=_reject_constant)
  except RecursionError as error:
    raise ValueError(str(error)) from None


def _parse_output(text: str) -> tuple[Any, str | None]:
  """Returns (the object or array in text, None), or (None, why text is not one)."""
  try:
    value = parse_json(text)
  except ValueError as error:
    return None, f'output_text is not JSON: {error}'
  if not isinstance(value, (dict, list)):
    return None, f'output_text is {template.json_type(value)}, need a JSON object or array'
  return value, None


def _reject_constant(constant: str):
  raise ValueError(f'{constant} is not JSON')  # json.loads accepts NaN by default


def _with_defaults(sample: dict[str, Any], value: Any) -> dict[str, Any]:
  text = sample['output_text']
  message = {'role': 'assistant', 'content': text}
  defaults = {
    'choices': [{'index': 0, 'message': message, 'finish_reason': 'stop'}],
    'output_tools': [],
  }
  if value is not None:
    defaults['output_json'] = value
  return {**defaults, **sample}


def _schema(response_format: dict[str, Any]) -> Any:
  nested = response_format.get('json_schema')
  parent = nested if isinstance(nested, dict) else response_format
  return parent.get('schema')


def _schema_problem(value: Any, response_format: dict[str, Any]) -> str | None:
  if response_format['type'] == 'json_object':
    return None if isinstance(value, dict) else 'output_text is an array, need a JSON object'
  problem = schema_problem(value, _schema(response_format))
  return problem and f'output_text under response_format: {problem}'


@functools.lru_cache(maxsize=16)
def _validator(schema: str):
  import jsonschema
  import jsonschema_specifications

  # The registry holds only the metaschemas: a $ref is never fetched from the network.
  return jsonschema.Draft202012Validator(
    json.loads(schema), registry=jsonschema_specifications.REGISTRY
  )


def _reference_problems(node: Any, root: dict[str, Any]) -> list[str]:
  """Returns problems for the references under node that do not resolve inside root."""
  if isinstance(node, list):
    return [problem for child in node for problem in _reference_problems(child, root)]
  if not isinstance(node, dict):
    return []
  problems = [problem for child in node.values() for problem in _reference_problems(child, root)]
  if isinstance(node.get('$dynamicRef'), str):
    problems.append(f'$dynamicRef {node["$dynamicRef"]!r} is not supported, use $ref')
  target = node.get('$ref')
  if isinstance(target, str) and not _resolves_inside(target, root):
    problems.append(f'$ref {target!r} does not resolve inside the schema')
  return problems


def _resolves_inside(target: str, root: Any) -> bool:
  if not target.startswith('#'):
    return False
  for step in target[1:].split('/')[1:]:
    step = step.replace('~1', '/').replace('~0', '~')
    if isinstance(root, list) and step.isdigit() and int(step) < len(root):
      root = root[int(step)]
    elif isinstance(root, dict) and step in root:
      root = root[step]
    else:
      return False
  return target == '#' or target.startswith('#/')
