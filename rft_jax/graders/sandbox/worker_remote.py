"""Objects of an answer, as its tests see them from another process.

Standard library alone, as it runs inside the worker. Plain data (numbers, texts, lists, dicts,
sets, arrays of numpy, ...) crosses as copies in JSON; anything else stays, and a Remote stands for
it. Lists, dicts and sets that a call has changed are changed on the caller's side too.

A Remote never equals plain data and does no arithmetic with it: otherwise an answer's own class
could say that it equals whatever a test expects. Two Remotes compare as their class says.
"""

import base64
import builtins
import collections
import datetime
import decimal
import fractions
import json
import operator
import os
import struct

from worker_runners import read_exactly

LENGTH = struct.Struct('<I')
LONGEST = 1 << 28  # bytes of a message
BY_TEXT = {
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
  cls: kind for kind, cls in {**SEQUENCES, **MAPPINGS, **BY_TEXT}.items() if kind != 'default'
} | {datetime.date: 'date', datetime.datetime: 'datetime', collections.defaultdict: 'default'}
CHANGING = (list, dict, set, bytearray, collections.deque)
# What a Remote can be asked beside its attributes. Those of the second line need two Remotes.
ALONE = {
  'len': len,
  'iter': iter,
  'next': next,
  'str': str,
  'repr': repr,
  'bool': bool,
  'int': int,
  'float': float,
  'hash': hash,
  'abs': abs,
  'neg': operator.neg,
}
PAIRED = (
  'eq',
  'ne',
  'lt',
  'le',
  'gt',
  'ge',
  'add',
  'sub',
  'mul',
  'truediv',
  'floordiv',
  'mod',
  'matmul',
  'and',
  'or',
  'xor',
)


class Peer:
  """One of the two ends.

  serves_all: whether the other end may do anything with what was sent to it as a Remote. The
  tests' end lets it call functions that tests have passed, and nothing else.
  """

  def __init__(self, read: int, write: int, serves_all: bool):
    self._read, self._write, self._serves_all = read, write, serves_all
    self._kept = []  # what the other end has Remotes of

  # --- messages
  def send(self, message, write=os.write) -> None:
    """Sends what JSON can spell."""
    body = json.dumps(message).encode()
    body = LENGTH.pack(len(body)) + body
    while body:
      body = body[write(self._write, body) :]

  def receive(self):
    """Returns what was sent. Raises EOFError if the other end is gone."""
    header = read_exactly(self._read, LENGTH.size)
    if not header or LENGTH.unpack(header)[0] > LONGEST:
      raise EOFError('the answer ended')
    parts, left = [], LENGTH.unpack(header)[0]
    while left:
      parts.append(os.read(self._read, min(left, 1 << 20)))
      if not parts[-1]:
        raise EOFError('the answer ended')
      left -= len(parts[-1])
    return json.loads(b''.join(parts))

  def ask(self, do: str, target, *operands, changing=(), **named):
    """Has the other end do something with one of its objects; returns or raises what comes of it.

    changing: those of operands, in their order, that it may change.
    """
    self.send(
      {
        'do': do,
        'target': target,
        'operands': [self.encode(one) for one in operands],
        'named': {name: self.encode(value) for name, value in named.items()},
      }
    )
    while (said := self.receive())['do'] not in ('returned', 'raised'):
      self._serve_one(said)
    if said['do'] == 'raised':
      raise _exception(do, said['types'], said['text'])
    for old, new in zip(changing, said['operands']):
      _change(old, self.decode(new))
    return self.decode(said['value'])

  def serve(self) -> None:
    """Does what the other end asks, until it is gone."""
    try:
      while True:
        self._serve_one(self.receive())
    except EOFError:
      pass

  def _serve_one(self, said) -> None:
    try:
      target = self._kept[said['target']]
      if not self._serves_all and said['do'] != 'call':
        raise PermissionError('tests let their functions be called, and nothing else')
      operands = [self.decode(one) for one in said['operands']]
      named = {name: self.decode(value) for name, value in said['named'].items()}
      value = _do(said['do'], target, operands, named)
      answer = {
        'do': 'returned',
        'value': self.encode(value),
        'operands': [
          self.encode(one) for one in (*operands, *named.values()) if isinstance(one, CHANGING)
        ],
      }
    except BaseException as error:
      answer = {
        'do': 'raised',
        'types': [cls.__name__ for cls in type(error).__mro__],
        'text': _text(error),
      }
    self.send(answer)

  # --- values
  def encode(self, value):
    """Returns value as JSON can spell it. Raises RecursionError where it holds itself."""
    cls = type(value)
    if value is None or cls in (bool, str):
      return value
    if isinstance(value, str):
      return str.__str__(value)
    if isinstance(value, (int, float)):
      return [hex(value), 'int'] if isinstance(value, int) else float(value)
    kind = KINDS.get(cls)
    if kind in MAPPINGS:
      return [[[self.encode(key), self.encode(one)] for key, one in value.items()], kind]
    if kind in SEQUENCES or (isinstance(value, tuple) and hasattr(cls, '_fields')):
      return [[self.encode(one) for one in value], kind or 'tuple']
    if kind:
      return [value.isoformat() if 'date' in kind else str(value), kind]
    if cls in (bytes, bytearray):
      return [base64.b64encode(value).decode(), cls.__name__]
    if cls is range:
      return [[hex(value.start), hex(value.stop), hex(value.step)], 'range']
    if cls.__module__ == 'numpy' and hasattr(value, 'dtype') and value.dtype.kind in 'biufc':
      if not value.shape:
        return self.encode(value.item())
      return [[value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()], 'array']
    if cls is Remote:
      return [object.__getattribute__(value, '_number'), 'yours']
    self._kept.append(value)
    return [[len(self._kept) - 1, callable(value)], 'mine']

  def decode(self, spelt):
    """Returns the value that encode spelt at the other end."""
    if not isinstance(spelt, list):
      return spelt
    value, kind = spelt
    if kind in MAPPINGS:
      return MAPPINGS[kind]({self.decode(key): self.decode(one) for key, one in value})
    if kind in SEQUENCES:
      return SEQUENCES[kind](self.decode(one) for one in value)
    if kind in BY_TEXT:
      return BY_TEXT[kind](value)
    if kind in ('bytes', 'bytearray'):
      return getattr(builtins, kind)(base64.b64decode(value))
    if kind == 'int':
      return int(value, 16)
    if kind == 'range':
      return range(*(int(one, 16) for one in value))
    if kind == 'array':
      import numpy

      return numpy.frombuffer(base64.b64decode(value[2]), value[0]).reshape(value[1]).copy()
    if kind == 'mine':
      return Remote(self, int(value[0]), bool(value[1]))
    return self._kept[value]


class Remote:
  """Stands for an object at the other end."""

  __slots__ = ('_peer', '_number', '_callable')

  def __init__(self, peer, number, is_callable):
    for name, value in zip(self.__slots__, (peer, number, is_callable)):
      object.__setattr__(self, name, value)

  def __call__(self, *operands, **named):
    changing = [one for one in (*operands, *named.values()) if isinstance(one, CHANGING)]
    return self._peer.ask('call', self._number, *operands, changing=changing, **named)

  def __getattr__(self, name):
    if name.startswith('__'):
      raise AttributeError(name)
    return self._peer.ask('get', self._number, name)

  def __setattr__(self, name, value):
    self._peer.ask('set', self._number, name, value)

  def __getitem__(self, key):
    return self._peer.ask('item', self._number, key)

  def __setitem__(self, key, value):
    self._peer.ask('set item', self._number, key, value)

  def __delitem__(self, key):
    self._peer.ask('delete item', self._number, key)

  def __instancecheck__(self, instance):
    return (
      type(instance) is Remote and self._peer.ask('is instance', self._number, instance) is True
    )


def _alone(name):
  return lambda self: self._peer.ask(name, self._number)


def _paired(name):
  def method(self, other):
    if type(other) is Remote:
      return self._peer.ask(name, self._number, other)
    return {'eq': False, 'ne': True}.get(name, NotImplemented)

  return method


for _name in ALONE:
  setattr(Remote, f'__{_name}__', _alone(_name))
for _name in PAIRED:
  setattr(Remote, f'__{_name}__', _paired(_name))


def _do(what, target, operands, named):
  if what == 'call':
    return target(*operands, **named)
  if what in ALONE:
    return ALONE[what](target)
  if what in PAIRED:
    return getattr(operator, f'__{what}__')(target, *operands)
  return {
    'get': getattr,
    'set': setattr,
    'item': operator.getitem,
    'set item': operator.setitem,
    'delete item': operator.delitem,
    'is instance': lambda cls, one: isinstance(one, cls),
  }[what](target, *operands)


def _exception(do, types, text) -> Exception:
  """Returns the nearest of Python's own exceptions; none that would end a loop of the tests."""
  for name in types:
    cls = getattr(builtins, str(name), None)
    if isinstance(cls, type) and issubclass(cls, Exception):
      if issubclass(cls, (StopIteration, StopAsyncIteration)) and do != 'next':
        break
      try:
        return cls(text)
      except TypeError:  # it wants more than a text: UnicodeDecodeError
        continue
  return RuntimeError(f'{types[0]}: {text}')


def _text(error) -> str:
  try:
    return str(error)[:300]
  except BaseException:
    return ''


def _change(old, new) -> None:
  """Makes old, a container, hold what new does; inner containers of the same place stay."""
  if type(old) is not type(new) and not isinstance(old, dict):
    return
  if isinstance(old, dict):
    kept = {key: old[key] for key in new if key in old}
    changed = {key: _kept(kept.get(key), value) for key, value in new.items()}
    old.clear()
    old.update(changed)
  elif isinstance(old, (list, collections.deque)):
    inner = [_kept(before, after) for before, after in zip(old, new)] + list(new)[len(old) :]
    old.clear()
    old.extend(inner)
  elif isinstance(old, set):
    old.clear()
    old.update(new)
  else:
    old[:] = new


def _kept(before, after):
  if isinstance(before, CHANGING) and type(before) is type(after):
    _change(before, after)
    return before
  return after
