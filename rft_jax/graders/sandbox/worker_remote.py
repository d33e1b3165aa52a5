"""Remote objects: the objects of an answer, as its tests use them from another process.

Standard library only, because it runs inside the worker. Plain data is copied (worker_values.py).
Any other object stays in its process, and the other process gets a Remote for it. Lists, dicts and
sets that a call has changed are changed on the caller's side too.

A Remote never equals plain data and has no arithmetic with it: otherwise a class of the answer
could claim to equal whatever a test expects. Two Remotes compare as their class defines.
"""

import builtins
import json
import operator
import os
import struct

import worker_values as values
from worker_runner import read_exactly

LENGTH = struct.Struct('<I')
MAX_MESSAGE_BYTES = 1 << 28
MAX_DETAILS = 300  # characters of the text of an exception
# Operations on a Remote, by the name of its special method: with one operand, ...
UNARY = {
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
# ... and with two, which must both be Remotes.
BINARY = (
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
  """One end of the connection between the two processes.

  serves_all: whether the other end may perform every operation on the objects of this one. The
  tests' end is False: the answer can only call functions that tests have passed to it.
  """

  def __init__(self, read: int, write: int, serves_all: bool):
    self._read, self._write, self._serves_all = read, write, serves_all
    self._objects: list = []  # for which the other end has Remotes, by number

  # --- messages
  def send(self, message, write=os.write) -> None:
    """Sends a message: any JSON."""
    body = json.dumps(message).encode()
    body = LENGTH.pack(len(body)) + body
    while body:
      body = body[write(self._write, body) :]

  def receive(self):
    """Returns the next message. Raises EOFError if the other end has closed."""
    header = read_exactly(self._read, LENGTH.size)
    if not header or LENGTH.unpack(header)[0] > MAX_MESSAGE_BYTES:
      raise EOFError('the answer ended')
    chunks, remaining = [], LENGTH.unpack(header)[0]
    while remaining:
      chunks.append(os.read(self._read, min(remaining, 1 << 20)))
      if not chunks[-1]:
        raise EOFError('the answer ended')
      remaining -= len(chunks[-1])
    return json.loads(b''.join(chunks))

  def ask(self, operation: str, target: int, /, *operands, **named):
    """Performs an operation on an object of the other end; returns its value or raises its error.

    A call may change operands that are containers: they are then updated here too.
    """
    self.send(
      {
        'type': operation,
        'target': target,
        'operands': [self.encode(operand) for operand in operands],
        'named': {name: self.encode(value) for name, value in named.items()},
      }
    )
    while (reply := self.receive())['type'] not in ('returned', 'raised'):
      self._serve_one(reply)
    if reply['type'] == 'raised':
      raise _exception(operation, reply['types'], reply['text'])
    if operation == 'call':
      for old, new in zip(_mutable(operands, named), reply['operands']):
        values.update_in_place(old, self.decode(new))
    return self.decode(reply['value'])

  def serve(self) -> None:
    """Performs the operations that the other end asks for, until it closes."""
    try:
      while True:
        self._serve_one(self.receive())
    except EOFError:
      pass

  def _serve_one(self, request) -> None:
    try:
      target = self._objects[request['target']]
      if not self._serves_all and request['type'] != 'call':
        raise PermissionError('an answer may only call functions of the tests')
      operands = [self.decode(operand) for operand in request['operands']]
      named = {name: self.decode(value) for name, value in request['named'].items()}
      value = _perform(request['type'], target, operands, named)
      reply = {
        'type': 'returned',
        'value': self.encode(value),
        'operands': [self.encode(operand) for operand in _mutable(operands, named)],
      }
    except BaseException as error:
      reply = {
        'type': 'raised',
        'types': [cls.__name__ for cls in type(error).__mro__],
        'text': _text(error),
      }
    self.send(reply)

  # --- values
  def encode(self, value):
    """Returns value as JSON. Raises RecursionError where it contains itself."""
    return values.encode(value, self._encode_object)

  def decode(self, encoded):
    """Returns the value that the other end has encoded."""
    return values.decode(encoded, self._decode_object)

  def _encode_object(self, value):
    if type(value) is Remote:
      return [object.__getattribute__(value, '_number'), 'object of the receiver']
    self._objects.append(value)
    return [len(self._objects) - 1, 'object of the sender']

  def _decode_object(self, content, kind):
    if kind == 'object of the sender':
      return Remote(self, int(content))
    return self._objects[content]


class Remote:
  """Stands for an object of the other end."""

  __slots__ = ('_peer', '_number')

  def __init__(self, peer, number):
    object.__setattr__(self, '_peer', peer)
    object.__setattr__(self, '_number', number)

  def __call__(self, *operands, **named):
    return self._peer.ask('call', self._number, *operands, **named)

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


def _unary(name):
  return lambda self: self._peer.ask(name, self._number)


def _binary(name):
  def method(self, other):
    if type(other) is Remote:
      return self._peer.ask(name, self._number, other)
    return {'eq': False, 'ne': True}.get(name, NotImplemented)

  return method


for _name in UNARY:
  setattr(Remote, f'__{_name}__', _unary(_name))
for _name in BINARY:
  setattr(Remote, f'__{_name}__', _binary(_name))


def _mutable(operands, named) -> list:
  return [
    operand for operand in (*operands, *named.values()) if isinstance(operand, values.MUTABLE)
  ]


def _perform(operation, target, operands, named):
  """Returns the value of an operation on an object of this process; raises what it raises."""
  if operation == 'call':
    return target(*operands, **named)
  if operation in UNARY:
    return UNARY[operation](target)
  if operation in BINARY:
    return getattr(operator, f'__{operation}__')(target, *operands)
  return {
    'get': getattr,
    'set': setattr,
    'item': operator.getitem,
    'set item': operator.setitem,
    'delete item': operator.delitem,
    'is instance': lambda cls, instance: isinstance(instance, cls),
  }[operation](target, *operands)


def _exception(operation, types, text) -> Exception:
  """Returns the nearest builtin exception; never one that would end a loop of the tests."""
  for name in types:
    cls = getattr(builtins, str(name), None)
    if isinstance(cls, type) and issubclass(cls, Exception):
      if issubclass(cls, (StopIteration, StopAsyncIteration)) and operation != 'next':
        break
      try:
        return cls(text)
      except TypeError:  # it needs more arguments than a text: UnicodeDecodeError
        continue
  return RuntimeError(f'{types[0]}: {text}')


def _text(error) -> str:
  try:
    return str(error)[:MAX_DETAILS]
  except BaseException:
    return ''
