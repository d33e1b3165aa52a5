"""The process in which a user's grader source runs: started as a file by sandbox.py.

It imports the standard library alone, and little of that: it must start in milliseconds, and
nothing of the trainer may be in it. Messages in both directions are a header of two unsigned
32-bit integers, (bytes of the body, number of the call), and a body in JSON. The first message
received is the set-up; every further one is a call [sample, item]. Each is answered by
[kind, score, details].
"""
import _thread
import json
import math
import numbers
import os
import resource
import signal
import struct
import sys

HEADER = struct.Struct('<II')
DETAILS = 2000  # characters kept of the end of a traceback
SOURCES = {}  # by the name that tracebacks show; the one source, once it is loaded


def serve(requests: int, replies: int, lifeline: int) -> None:
  """Answers messages from the file descriptor requests on replies, until requests ends."""
  # Bound here, because the user's source may replace names of os and json.
  loads, dumps = json.loads, json.JSONEncoder().encode
  pack, unpack, size = HEADER.pack, HEADER.unpack_from, HEADER.size
  read, write, own_id, leave, getpid = os.read, os.write, os.getpid(), os._exit, os.getpid
  inbox = bytearray()

  def receive():
    while len(inbox) < size or len(inbox) < size + unpack(inbox)[0]:
      more = read(requests, 1 << 18)
      if not more:
        leave(0)
      inbox.extend(more)
    length, number = unpack(inbox)
    body = bytes(memoryview(inbox)[size:size + length])
    del inbox[:size + length]
    return number, body

  def reply(number, kind, score=None, details=''):
    if getpid() != own_id:  # the source has forked and let the child return
      leave(1)
    body = dumps([kind, score, details]).encode()
    message = pack(len(body), number) + body
    while message:
      message = message[write(replies, message):]

  _, body = receive()
  setup = loads(body)
  limit(setup['limits'])
  _thread.stack_size(1 << 18)
  _thread.start_new_thread(die_with_parent, (lifeline, setup['folder']))
  _thread.stack_size(0)
  try:
    grade = load(setup['source'], setup['filename'])
  except MemoryError:
    reply(0, 'memory_limit', None, 'MemoryError at the top level of the source')
    leave(0)
  except BaseException as error:  # SystemExit is as good a way to fail as any
    reply(0, 'raised', None, end_of_traceback(error))
    leave(0)
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 2)  # until here stderr was kept, to tell why a worker does not start
  os.close(null)
  reply(0, 'ready')
  while True:
    number, body = receive()
    try:
      outcome = call(grade, *loads(body))
    except MemoryError:
      outcome = 'memory_limit', None, 'MemoryError'
    except BaseException as error:
      outcome = 'raised', None, end_of_traceback(error)
    reply(number, *outcome)


def call(grade, sample, item):
  """Returns the reply (kind, score, details) to one call; lets what grade raises pass."""
  value = grade(sample, item)
  if getattr(value, 'shape', None) == () and hasattr(value, 'item'):
    value = value.item()  # a scalar of numpy
  if not isinstance(value, (float, int, numbers.Real)):
    return 'raised', None, f'grade returned {value!r:.200} ({type(value).__name__}), need a float'
  try:
    score = float(value)
  except OverflowError:
    score = math.inf
  if not math.isfinite(score):
    return 'raised', None, f'grade returned {value!r:.200}, need a finite float'
  return 'score', score, ''


def load(source, filename):
  """Returns the function grade that source defines, after running source as a module."""
  module = type(sys)('grader')
  module.__file__, SOURCES[filename] = filename, source
  sys.modules['grader'] = module  # dataclasses and pickle look modules up by name
  exec(compile(source, filename, 'exec', dont_inherit=True), module.__dict__)
  grade = getattr(module, 'grade', None)
  if not callable(grade):
    raise TypeError('the source defines no function grade(sample, item)')
  return grade


def limit(limits):
  """Sets resource limits, {'AS': bytes, ...}, never above those that hold already."""
  for name, value in limits.items():
    which = getattr(resource, 'RLIMIT_' + name)
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def die_with_parent(lifeline, folder):
  """Waits until the parent's end of the pipe closes, empties folder, kills the process group."""
  os.read(lifeline, 1)
  try:
    for place, _, files in os.walk(folder, topdown=False):
      for name in files:
        os.unlink(os.path.join(place, name))
      os.rmdir(place)
  finally:  # whatever could not be removed
    os.killpg(os.getpgrp(), signal.SIGKILL)


def end_of_traceback(error):
  """Returns the last characters of the traceback of error, the frames of this file left out."""
  try:
    import linecache
    import traceback
    for filename, source in SOURCES.items():
      linecache.cache[filename] = len(source), None, source.splitlines(True), filename
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename == __file__:
      frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames, limit=-8)
    return ''.join(lines).strip()[-DETAILS:]
  except BaseException:  # an exception whose own methods raise
    return type(error).__name__


if __name__ == '__main__':
  descriptors = [int(argument) for argument in sys.argv[1:4]]
  for descriptor in descriptors:
    os.set_inheritable(descriptor, False)  # processes that the source starts shall not hold them
  sys.argv = ['grader']
  serve(*descriptors)
