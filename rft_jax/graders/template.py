"""Templates of graders: text with `{{ item.x }}` and `{{ sample.output_json.y[0] }}` in it.

There are two namespaces. `item` is the whole row of the data set; `sample` is the answer, whose
fields are the API's own (SAMPLE_FIELDS). Fields are reached by dots and elements by [i]; spaces
inside the braces do not matter. A string is put in verbatim, a scalar in JSON spelling (true,
null, 1.5), an object or array as compact JSON with its non-ASCII characters kept.
"""

import difflib
import functools
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

SAMPLE_FIELDS = ('output_text', 'output_json', 'output_tools', 'choices', 'output_audio')

_OPEN = re.compile(r'\{\{(?!\{)')  # the last two braces of a run: the others are text
_PATH = re.compile(r'[\w-]+(?:\.[\w-]+|\[\d{1,9}\])*')
_STEP = re.compile(r'([\w-]+)|\[(\d+)\]')


class Fault(Exception):
  """A template met a value that is not there, or that has no JSON.

  errors: keys of graders/run with True or a detail. of_policy: whether the answer is to blame
  (a field of sample) or the row (a field of item).
  """

  def __init__(self, errors: dict[str, bool | str], *, of_policy: bool):
    super().__init__(errors)
    self.errors, self.of_policy = errors, of_policy


class _Reference(NamedTuple):
  """What stands between two pairs of braces."""

  namespace: str  # 'item' or 'sample'
  path: tuple[str | int, ...]  # at least one field; then fields and indices


class _Missing(NamedTuple):
  """Why a path leads nowhere, in words."""

  reason: str


def render(
  template: str,
  *,
  item: dict[str, Any],
  sample: dict[str, Any],
  quote: Callable[[str], str] | None = None,
) -> str:
  """Returns template with every reference replaced by the value that it names.

  quote is applied to each value of sample: to mark what the answer says, in a judge's prompt.

  Raises:
    Fault: a value is missing. In item: invalid_variable_error, not of the policy. In sample:
      sample_parse_error where output_json is asked of a text that is not JSON, otherwise
      invalid_variable_error, both of the policy. Or a value has no JSON: other_error in item,
      sample_parse_error in sample.
    ValueError: the template has problems(); graders refuse such a one at construction.
  """
  parts, found = _parse(template)
  if found:
    raise ValueError('\n'.join(found))
  items_first = sorted(
    (part for part in parts if not isinstance(part, str)), key=lambda part: part.namespace
  )
  values = {reference: _value(reference, item, sample) for reference in items_first}
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
  """Returns render() of each; of several faults raises one of the row's before the answer's.

  So a misspelt field of item never passes for a bad answer, whatever else is missing.
  """
  texts, faults = [], []
  for template in templates:
    try:
      texts.append(render(template, item=item, sample=sample, quote=quote))
    except Fault as fault:
      faults.append(fault)
  if faults:
    raise min(faults, key=lambda fault: fault.of_policy)
  return texts


def problems(template: Any) -> list[str]:
  """Returns everything that is wrong with template whatever it is rendered for; [] if nothing."""
  if not isinstance(template, str):
    return [f'{template!r:.80}, need a string']
  return list(_parse(template)[1])


def fields(template: str) -> frozenset[str]:
  """Returns the paths of item that template reads, as written: {'answer', 'genes[0].name'}."""
  return frozenset(
    _spelt(part.path)
    for part in _parse(template)[0]
    if not isinstance(part, str) and part.namespace == 'item'
  )


def reads_sample(template: str) -> bool:
  """Returns whether template reads anything of the answer."""
  return any(
    not isinstance(part, str) and part.namespace == 'sample' for part in _parse(template)[0]
  )


def missing(item: dict[str, Any], paths: frozenset[str]) -> dict[str, str]:
  """Returns {path: reason} for those of paths (as fields() gives them) that item lacks."""
  found = {path: _follow(item, _steps(path), 'the row') for path in sorted(paths)}
  return {path: value.reason for path, value in found.items() if isinstance(value, _Missing)}


@functools.lru_cache(maxsize=1024)
def _parse(template: str) -> tuple[tuple[str | _Reference, ...], tuple[str, ...]]:
  """Returns (parts, problems); parts are texts and references in their order."""
  parts, found, position = [], [], 0
  while opening := _OPEN.search(template, position):
    parts.append(template[position : opening.start()])
    end = template.find('}}', opening.end())
    if end < 0:
      found.append(f'the {{{{ at character {opening.start() + 1} is not closed by }}}}')
      return tuple(parts), tuple(found)
    reference, problem = _reference(template[opening.end() : end])
    if problem:
      found.append(problem)
    else:
      parts.append(reference)
    position = end + 2
  parts.append(template[position:])
  return tuple(parts), tuple(found)


def _reference(inside: str) -> tuple[_Reference | None, str | None]:
  """Returns (reference, None) or (None, problem) for the text between two pairs of braces."""
  shown = '{{' + inside + '}}'
  if not _PATH.fullmatch(inside.strip()):
    return None, (
      f'{shown} is no reference: need item.x or sample.x, with .field and [0] for '
      'what lies deeper, and no operators, filters or quotes'
    )
  namespace, *path = _steps(inside.strip())
  if namespace not in ('item', 'sample'):
    hint = did_you_mean(namespace, ('item', 'sample'))
    if not path and not hint:
      hint = f'; for a field of the row write {{{{ item.{namespace} }}}}'
    return None, f'{shown}: unknown namespace {namespace!r}, need item or sample{hint}'
  if not path or isinstance(path[0], int):
    return None, f'{shown} names no field, need {namespace}.something'
  if namespace == 'sample' and path[0] not in SAMPLE_FIELDS:
    near = did_you_mean(path[0], SAMPLE_FIELDS)
    return None, (
      f'{shown}: no sample has a field {path[0]!r}{near}; there are {", ".join(SAMPLE_FIELDS)}'
    )
  if namespace == 'sample' and path[0] == 'output_text' and path[1:]:
    return None, f'{shown}: output_text is a string and has no parts; try sample.output_json'
  return _Reference(namespace, tuple(path)), None


def _value(reference: _Reference, item: dict[str, Any], sample: dict[str, Any]) -> str:
  of_policy = reference.namespace == 'sample'
  root, holder = (sample, 'this sample') if of_policy else (item, 'the row')
  value = _follow(root, reference.path, holder)
  if isinstance(value, _Missing):
    key, reason = 'invalid_variable_error', value.reason
    if of_policy and reference.path[0] == 'output_json' and root.get('output_json') is None:
      key, reason = 'sample_parse_error', 'output_text is not a JSON object or array'
    details = f'{reference.namespace}.{_spelt(reference.path)}: {reason}'
    raise Fault({key: True, key + '_details': details}, of_policy=of_policy)
  if isinstance(value, str):
    return value
  try:
    return json.dumps(value, ensure_ascii=False, separators=(',', ':'))
  except (TypeError, ValueError, RecursionError) as error:  # a date; a number or nesting too long
    key = 'sample_parse_error' if of_policy else 'other_error'
    details = f'{reference.namespace}.{_spelt(reference.path)} cannot be written as JSON: {error}'
    raise Fault({key: True, key + '_details': details}, of_policy=of_policy) from None


def _follow(value: Any, path: tuple[str | int, ...], holder: str) -> Any:
  """Returns what path leads to from value, or a _Missing."""
  for depth, step in enumerate(path):
    where = holder if depth == 0 else _spelt(path[:depth])
    if isinstance(step, int):
      if not isinstance(value, list):
        return _Missing(f'{where} is {kind(value)}, so it has no element [{step}]')
      if step >= len(value):
        return _Missing(f'{where} has {len(value)} elements, so there is no [{step}]')
    elif not isinstance(value, dict):
      return _Missing(f'{where} is {kind(value)}, so it has no field {step!r}')
    elif step not in value:
      near, has = did_you_mean(step, value), ', '.join(map(str, list(value)[:12])) or 'none'
      return _Missing(f'{where} has no field {step!r}{near}; its fields: {has}')
    value = value[step]
  return value


def _steps(path: str) -> tuple[str | int, ...]:
  return tuple(int(index) if index else name for name, index in _STEP.findall(path))


def _spelt(path: tuple[str | int, ...]) -> str:
  return ''.join(f'[{step}]' if isinstance(step, int) else f'.{step}' for step in path)[1:]


def kind(value: Any) -> str:
  """Returns what JSON calls the type of value, with its article."""
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


def did_you_mean(word: str, known) -> str:
  """Returns ', did you mean ...?' with the nearest of known, or '' where none is near."""
  near = difflib.get_close_matches(str(word), [str(one) for one in known], n=1)
  return f' (did you mean {near[0]!r}?)' if near else ''
