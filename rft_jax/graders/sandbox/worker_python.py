"""The `python` grader inside its sandbox: loads the source once, and calls its grade function.

Standard library only, because it runs inside the worker. load() runs in the controller; serve() in
a runner forked from it, for many calls; answer() is the controller's side of one call.
"""

import _thread
import json
import linecache
import math
import numbers
import os
import sys
import traceback

import worker_syscalls as syscalls
from worker_runner import HEADER, Runner, read_exactly, send

MAX_DETAILS = 2000  # characters of the end of a traceback
SUBREAPER = 36  # prctl
# file name in tracebacks -> source; has one entry once the source is loaded
SOURCES: dict[str, str] = {}
WORKER_FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'worker')  # prefix


def load(source: str, filename: str):
  """Returns the function grade that source defines, after running source as a module."""
  module = type(sys)('grader')
  module.__file__, SOURCES[filename] = filename, source
  sys.modules['grader'] = module  # dataclasses and pickle look modules up by name
  exec(compile(source, filename, 'exec', dont_inherit=True), module.__dict__)
  grade = getattr(module, 'grade', None)
  if not callable(grade):
    raise TypeError('the source defines no function grade(sample, item)')
  return grade


def serve(grade, inbox: int, outbox: int) -> None:
  """Replies to each call with [kind, score, details, whether this process can be used again]."""
  # Bound here, because the user's source may replace attributes of os and json.
  loads, dumps, write, own_id, leave, getpid, wait, count_threads = (
    json.loads,
    json.JSONEncoder().encode,
    os.write,
    os.getpid(),
    os._exit,
    os.getpid,
    os.waitpid,
    _thread._count,
  )
  initial_threads = count_threads()
  if sys.platform.startswith('linux'):
    # orphans become children of this process, so that waitpid finds all that calls leave running
    syscalls.libc.prctl(SUBREAPER, 1, 0, 0, 0)

  def nothing_runs():
    try:
      while wait(-1, os.WNOHANG)[0]:
        pass
      return False
    except ChildProcessError:
      return count_threads() == initial_threads

  while header := read_exactly(inbox, HEADER.size):
    body = read_exactly(inbox, HEADER.unpack(header)[0])
    try:
      outcome = call(grade, *loads(body))
    except MemoryError:
      outcome = 'memory_limit', None, 'MemoryError'
    except BaseException as error:  # includes SystemExit
      outcome = 'raised', None, end_of_traceback(error)
    if getpid() != own_id:  # the source has forked and let the child return
      leave(1)
    send(outbox, [*outcome, outcome[0] == 'score' and nothing_runs()], write, dumps)
  leave(0)


def answer(
  runner: Runner, requests: int, header: bytes, length: int, deadline: float, seconds: float
) -> tuple[tuple, bool]:
  """Forwards one call; returns ((kind, score, details), whether runner can be used again)."""
  try:
    os.write(runner.inbox, header)
  except BrokenPipeError:
    pass  # forward() meets it too
  runner.forward(requests, length, deadline)
  try:
    reply = runner.receive(deadline)
    if reply is not None:
      kind, score, details, is_reusable = reply
      if (
        kind in ('score', 'raised', 'memory_limit')
        and isinstance(details, str)
        and (kind == 'score') == (isinstance(score, float) and math.isfinite(score))
      ):
        return (kind, score, details[-MAX_DETAILS:]), is_reusable is True
  except (ValueError, TypeError):
    reply = ()
  if reply is not None:
    return ('worker_failed', None, 'the worker sent an invalid reply'), False
  description = runner.exit_description()
  if description:
    return ('worker_killed', None, f'the worker {description}'), False
  return ('timeout', None, f'no result within {seconds:g} s'), False


def call(grade, sample, item):
  """Returns (kind, score, details) of one call; exceptions of grade are not caught."""
  value = grade(sample, item)
  if getattr(value, 'shape', None) == () and hasattr(value, 'item'):
    value = value.item()  # a numpy scalar
  if not isinstance(value, (float, int, numbers.Real)):
    return 'raised', None, f'grade returned {value!r:.200} ({type(value).__name__}), need a float'
  try:
    score = float(value)
  except OverflowError:
    score = math.inf
  if not math.isfinite(score):
    return 'raised', None, f'grade returned {value!r:.200}, need a finite float'
  return 'score', score, ''


def end_of_traceback(error) -> str:
  """Returns the last characters of the traceback of error, without the worker's own frames."""
  try:
    for filename, source in SOURCES.items():
      linecache.cache[filename] = len(source), None, source.splitlines(True), filename
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename.startswith(WORKER_FILES):
      frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames, limit=-8)
    return ''.join(lines).strip()[-MAX_DETAILS:]
  except BaseException:  # an exception whose own methods raise
    return type(error).__name__
