"""Templates of graders: text with references `{{ item.x }}` and `{{ sample.output_json.y[0] }}`.

There are two namespaces. `item` is the whole row of the data set; `sample` is the answer, with the
fields of the API (SAMPLE_FIELDS). A dot selects a field and [i] an element; spaces inside the
braces do not matter. A string is inserted verbatim, a scalar in JSON spelling (true, null, 1.5),
an object or array as compact JSON with its non-ASCII characters kept.
"""

import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

SAMPLE_FIELDS = ('output_text', 'output_json', 'output_tools', 'choices', 'output_audio')

_OPEN = re.compile(r'\{\{(?!\{)')  # of three or more braces the last two open; the others are text
_PATH = re.compile(r'[\w-]+(?:\.[\w-]+|\[\d{1,9}\])*')
_STEP = re.compile(r'([\w-]+)|\[(\d+)\]')


class Fault(Exception):
  """A value that a template reads is missing, or cannot be written as JSON.

  errors: keys of graders/run with True or a detail. is_policy_fault: True if the answer lacks it
  (a field of sample), False if the row does (a field of item).
  """

  def __init__(self, errors: dict[str, bool | str], *, is_policy_fault: bool):
    super().__init__(errors)
    self.errors, self.is_policy_fault = errors, is_policy_fault


class _Reference(NamedTuple):
  """One `{{ namespace.path }}`."""

  namespace: str  # 'item' or 'sample'
  path: tuple[str | int, ...]  # at least one field; then fields and indices


class _InvalidReferenceError(ValueError):
  """The text between two pairs of braces is not a reference."""


class _MissingValue(NamedTuple):
  """There is no value at a path, for this reason."""

  reason: str


def render(
  template: str,
  *,
  item: dict[str, Any],
  sample: dict[str, Any],
  quote: Callable[[str], str] | None = None,
) -> str:
  """Returns template with every reference replaced by its value.

  quote is applied to each value of sample: it marks the text of the answer in a judge's prompt.

  Raises:
    Fault: a value is missing. In item: invalid_variable_error, a grader fault. In sample, a policy
      fault: sample_parse_error where output_json is read of a text that is not JSON, otherwise
      invalid_variable_error. Or a value cannot be written as JSON: other_error in item,
      sample_parse_error in sample.
    ValueError: the template has problems(); graders refuse it at construction.
  """
  parts, problem_list = _parse(template)
  if problem_list:
    raise ValueError('\n'.join(problem_list))
  references = sorted(  # those of item first: a fault of the row is raised before one of the answer
    (part for part in parts if not isinstance(part, str)), key=lambda part: part.namespace
  )
  values = {reference: _render_value(reference, item, sample) for reference in references}
  if quote:
    values.update(
      {
        reference: quote(value)
        for reference, value in values.items()
        if reference.namespace == 'sample'
      }
    )
  return ''.join(part if isinstance(part, str) else values[part] for part in parts)


def render_all(templates: list[str], *, item: dict, sample: dict, quote=None) -> list[str]:
  """Returns render() of each; of several faults raises one of the row before one of the answer.

  So a misspelt field of item is never counted as a bad answer, whatever else is missing.
  """
  texts, faults = [], []
  for template in templates:
    try:
      texts.append(render(template, item=item, sample=sample, quote=quote))
    except Fault as fault:
      faults.append(fault)
  if faults:
    raise min(faults, key=lambda fault: fault.is_policy_fault)
  return texts


def problems(template: Any) -> list[str]:
  """Returns what is wrong with template for every item and sample; [] if nothing."""
  if not isinstance(template, str):
    return [f'{template!r:.80}, need a string']
  return list(_parse(template)[1])


def fields(template: str) -> frozenset[str]:
  """Returns the paths of item that template reads, as written: {'answer', 'genes[0].name'}."""
  return frozenset(
    _path_text(part.path)
    for part in _parse(template)[0]
    if not isinstance(part, str) and part.namespace == 'item'
  )


def reads_sample(template: str) -> bool:
  """Returns whether template has a reference to sample."""
  return any(
    not isinstance(part, str) and part.namespace == 'sample' for part in _parse(template)[0]
  )


def missing_fields(item: dict[str, Any], paths: frozenset[str]) -> dict[str, str]:
  """Returns {path: reason} for the paths (as fields() returns them) that item lacks."""
  values = {path: _lookup(item, _path_steps(path), 'the row') for path in sorted(paths)}
  return {path: value.reason for path, value in values.items() if isinstance(value, _MissingValue)}


def value_at(item: dict[str, Any], path: str, default: Any = None) -> Any:
  """Returns the value of item at path ('answer', 'genes[0].name'); default if there is none."""
  value = _lookup(item, _path_steps(path), 'the row')
  return default if isinstance(value, _MissingValue) else value


@functools.lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[tuple[str | _Reference, ...], tuple[str, ...]]:
  """Returns (parts, problems); parts are texts and references, in order."""
  parts: list[str | _Reference] = []
  problem_list, position = [], 0
  while opening := _OPEN.search(template, position):
    parts.append(template[position : opening.start()])
    end = template.find('}}', opening.end())
    if end < 0:
      problem_list.append(f'the {{{{ at character {opening.start() + 1} is not closed by }}}}')
      return tuple(parts), tuple(problem_list)
    try:
      parts.append(_parse_reference(template[opening.end() : end]))
    except _InvalidReferenceError as problem:
      problem_list.append(str(problem))
    position = end + 2
  parts.append(template[position:])
  return tuple(parts), tuple(problem_list)


def _parse_reference(inside: str) -> _Reference:
  """Returns the reference between two pairs of braces; raises _InvalidReferenceError."""
  shown = '{{' + inside + '}}'
  if not _PATH.fullmatch(inside.strip()):
    raise _InvalidReferenceError(
      f'{shown} is not a reference: need item.x or sample.x, with .field and [0] for nested '
      'values, and no operators, filters or quotes'
    )
  namespace, *path = _path_steps(inside.strip())
  if namespace not in ('item', 'sample'):
    hint = did_you_mean(namespace, ('item', 'sample'))
    if not path and not hint:
      hint = f'; for a field of the row write {{{{ item.{namespace} }}}}'
    raise _InvalidReferenceError(
      f'{shown}: unknown namespace {namespace!r}, need item or sample{hint}'
    )
  if not path or isinstance(path[0], int):
    raise _InvalidReferenceError(f'{shown} names no field, need {namespace}.something')
  if namespace == 'sample' and path[0] not in SAMPLE_FIELDS:
    hint = did_you_mean(path[0], SAMPLE_FIELDS)
    raise _InvalidReferenceError(
      f'{shown}: a sample has no field {path[0]!r}{hint}; need one of {", ".join(SAMPLE_FIELDS)}'
    )
  if namespace == 'sample' and path[0] == 'output_text' and path[1:]:
    raise _InvalidReferenceError(
      f'{shown}: output_text is a string without fields or elements; try sample.output_json'
    )
  return _Reference(namespace, tuple(path))


def _render_value(reference: _Reference, item: dict[str, Any], sample: dict[str, Any]) -> str:
  in_sample = reference.namespace == 'sample'
  root, root_name = (sample, 'this sample') if in_sample else (item, 'the row')
  value = _lookup(root, reference.path, root_name)
  if isinstance(value, _MissingValue):
    key, reason = 'invalid_variable_error', value.reason
    if in_sample and reference.path[0] == 'output_json' and root.get('output_json') is None:
      key, reason = 'sample_parse_error', 'output_text is not a JSON object or array'
    details = f'{reference.namespace}.{_path_text(reference.path)}: {reason}'
    raise Fault({key: True, key + '_details': details}, is_policy_fault=in_sample)
  if isinstance(value, str):
    return value
  try:
    return json.dumps(value, ensure_ascii=False, separators=(',', ':'))
  except (TypeError, ValueError, RecursionError) as error:  # a date, a huge integer, deep nesting
    key = 'sample_parse_error' if in_sample else 'other_error'
    details = (
      f'{reference.namespace}.{_path_text(reference.path)} cannot be written as JSON: {error}'
    )
    raise Fault({key: True, key + '_details': details}, is_policy_fault=in_sample) from None


def _lookup(value: Any, path: tuple[str | int, ...], root_name: str) -> Any:
  """Returns the value at path inside value, or a _MissingValue; root_name is for its reason."""
  for depth, step in enumerate(path):
    where = root_name if depth == 0 else _path_text(path[:depth])
    if isinstance(step, int):
      if not isinstance(value, list):
        return _MissingValue(f'{where} is {json_type(value)}, so it has no element [{step}]')
      if step >= len(value):
        return _MissingValue(f'{where} has {len(value)} elements, so there is no [{step}]')
    elif not isinstance(value, dict):
      return _MissingValue(f'{where} is {json_type(value)}, so it has no field {step!r}')
    elif step not in value:
      hint, names = did_you_mean(step, value), ', '.join(map(str, list(value)[:12])) or 'none'
      return _MissingValue(f'{where} has no field {step!r}{hint}; its fields: {names}')
    value = value[step]
  return value


def _path_steps(path: str) -> tuple[str | int, ...]:
  return tuple(int(index) if index else name for name, index in _STEP.findall(path))


def _path_text(path: tuple[str | int, ...]) -> str:
  return ''.join(f'[{step}]' if isinstance(step, int) else f'.{step}' for step in path)[1:]


def json_type(value: Any) -> str:
  """Returns the name of value's type in JSON, with its article ('an object')."""
  names = {
    dict: 'an object',
    list: 'an array',
    str: 'a string',
    bool: 'a boolean',
    int: 'a number',
    float: 'a number',
    type(None): 'null',
  }
  return names.get(type(value), f'a {type(value).__name__}')


def did_you_mean(word: object, choices: Iterable) -> str:
  """Returns ' (did you mean ...?)' with the choice most similar to word; '' if none is similar."""
  matches = difflib.get_close_matches(str(word), [str(choice) for choice in choices], n=1)
  return f' (did you mean {matches[0]!r}?)' if matches else ''
