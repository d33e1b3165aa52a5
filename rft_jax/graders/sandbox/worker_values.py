"""Encoding of plain data as JSON, between the process of an answer and that of its tests.

Standard library only, because it runs inside the worker. Plain data (numbers, texts, lists, dicts,
sets, numpy arrays, ...) is copied; what encode and decode do with other objects is up to the
caller (worker_remote.py).
"""

import base64
import builtins
import collections
import datetime
import decimal
import fractions

FROM_TEXT = {
  'decimal': decimal.Decimal,
  'fraction': fractions.Fraction,
  'complex': complex,
  'date': datetime.date.fromisoformat,
  'datetime': datetime.datetime.fromisoformat,
}
SEQUENCES = {
  'list': list,
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
  'deque': collections.deque,
}
MAPPINGS = {
  'dict': dict,
  'ordered': collections.OrderedDict,
  'counter': collections.Counter,
  'default': dict,
}
KINDS = {
  cls: kind for kind, cls in {**SEQUENCES, **MAPPINGS, **FROM_TEXT}.items() if kind != 'default'
} | {datetime.date: 'date', datetime.datetime: 'datetime', collections.defaultdict: 'default'}
MUTABLE = (list, dict, set, bytearray, collections.deque)


def encode(value, encode_object):
  """Returns value as JSON: null, true, false, a float or a text as it is, else [content, kind].

  encode_object: returns the JSON of an object that is not plain data.

  Raises:
    RecursionError: value contains itself.
  """
  cls = type(value)
  if value is None or cls in (bool, str):
    return value
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, (int, float)):
    return [hex(value), 'int'] if isinstance(value, int) else float(value)
  kind = KINDS.get(cls)
  if kind in MAPPINGS:
    return [
      [
        [encode(key, encode_object), encode(element, encode_object)]
        for key, element in value.items()
      ],
      kind,
    ]
  if kind in SEQUENCES or (isinstance(value, tuple) and hasattr(cls, '_fields')):
    return [[encode(element, encode_object) for element in value], kind or 'tuple']
  if kind:
    return [value.isoformat() if 'date' in kind else str(value), kind]
  if cls in (bytes, bytearray):
    return [base64.b64encode(value).decode(), cls.__name__]
  if cls is range:
    return [[hex(value.start), hex(value.stop), hex(value.step)], 'range']
  if cls.__module__ == 'numpy' and hasattr(value, 'dtype') and value.dtype.kind in 'biufc':
    if not value.shape:
      return encode(value.item(), encode_object)
    return [[value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()], 'array']
  return encode_object(value)


def decode(encoded, decode_object):
  """Returns the value that encode returned as JSON.

  decode_object: returns the object for (content, kind) of a kind that encode_object made.
  """
  if not isinstance(encoded, list):
    return encoded
  content, kind = encoded
  if kind in MAPPINGS:
    return MAPPINGS[kind](
      {decode(key, decode_object): decode(element, decode_object) for key, element in content}
    )
  if kind in SEQUENCES:
    return SEQUENCES[kind](decode(element, decode_object) for element in content)
  if kind in FROM_TEXT:
    return FROM_TEXT[kind](content)
  if kind in ('bytes', 'bytearray'):
    return getattr(builtins, kind)(base64.b64decode(content))
  if kind == 'int':
    return int(content, 16)
  if kind == 'range':
    return range(*(int(number, 16) for number in content))
  if kind == 'array':
    import numpy

    return numpy.frombuffer(base64.b64decode(content[2]), content[0]).reshape(content[1]).copy()
  return decode_object(content, kind)


def update_in_place(old, new) -> None:
  """Makes old, a container, equal to new.

  Containers inside it are updated in place too, so that other references to them stay valid.
  """
  if type(old) is not type(new) and not isinstance(old, dict):
    return
  if isinstance(old, dict):
    common = {key: old[key] for key in new if key in old}
    updated = {key: _updated(common.get(key), value) for key, value in new.items()}
    old.clear()
    old.update(updated)
  elif isinstance(old, (list, collections.deque)):
    elements = [_updated(before, after) for before, after in zip(old, new)] + list(new)[len(old) :]
    old.clear()
    old.extend(elements)
  elif isinstance(old, set):
    old.clear()
    old.update(new)
  else:
    old[:] = new


def _updated(old, new):
  """Returns old, updated in place, if it is a container of the same type as new; otherwise new."""
  if isinstance(old, MUTABLE) and type(old) is type(new):
    update_in_place(old, new)
    return old
  return new
