"""The `python` grader inside its sandbox: a source is loaded once, and its grade called.

Standard library alone, as it runs inside the worker. load() runs in the keeper; serve() in a
runner forked from it, for many calls; answer() is the keeper's side of one call.
"""

import _thread
import json
import linecache
import math
import numbers
import os
import sys
import traceback

import worker_rules as rules
from worker_runners import HEADER, Runner, read_exactly, tell

DETAILS = 2000  # characters kept of the end of a traceback
SUBREAPER = 36
SOURCES = {}  # by the name that tracebacks show; the one source, once it is loaded
OWN_FILES = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'worker')


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
  """Answers each call by [kind, score, details, whether this process is as good as new]."""
  # Bound here, because the user's source may replace names of os and json.
  loads, dumps, write, own_id, leave, getpid, wait, threads = (
    json.loads,
    json.JSONEncoder().encode,
    os.write,
    os.getpid(),
    os._exit,
    os.getpid,
    os.waitpid,
    _thread._count,
  )
  before = threads()
  if sys.platform.startswith('linux'):
    rules.libc.prctl(SUBREAPER, 1, 0, 0, 0)  # so that waiting shows all that calls leave behind

  def nothing_left():
    try:
      while wait(-1, os.WNOHANG)[0]:
        pass
      return False
    except ChildProcessError:
      return threads() == before

  while header := read_exactly(inbox, HEADER.size):
    body = read_exactly(inbox, HEADER.unpack(header)[0])
    try:
      outcome = call(grade, *loads(body))
    except MemoryError:
      outcome = 'memory_limit', None, 'MemoryError'
    except BaseException as error:  # SystemExit is as good a way to fail as any
      outcome = 'raised', None, end_of_traceback(error)
    if getpid() != own_id:  # the source has forked and let the child return
      leave(1)
    tell(outbox, [*outcome, outcome[0] == 'score' and nothing_left()], write, dumps)
  leave(0)


def answer(
  runner: Runner, requests: int, header: bytes, length: int, deadline: float, seconds: float
) -> tuple[tuple, bool]:
  """Hands one call on; returns ((kind, score, details), whether runner may have another)."""
  try:
    os.write(runner.inbox, header)
  except BrokenPipeError:
    pass  # which giving will find too
  runner.give(requests, length, deadline)
  try:
    said = runner.said(deadline)
    if said is not None:
      kind, score, details, good = said
      if (
        kind in ('score', 'raised', 'memory_limit')
        and isinstance(details, str)
        and (kind == 'score') == (isinstance(score, float) and math.isfinite(score))
      ):
        return (kind, score, details[-DETAILS:]), good is True
  except (ValueError, TypeError):
    said = ()
  if said is not None:
    return ('worker_failed', None, 'an answer that the worker does not give'), False
  how = runner.how_it_ended()
  if how:
    return ('worker_killed', None, f'the worker {how}'), False
  return ('timeout', None, f'no result within {seconds:g} s'), False


def call(grade, sample, item):
  """Returns (kind, score, details) of one call; lets what grade raises pass."""
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


def end_of_traceback(error) -> str:
  """Returns the last characters of the traceback of error, the worker's own frames left out."""
  try:
    for filename, source in SOURCES.items():
      linecache.cache[filename] = len(source), None, source.splitlines(True), filename
    frames = error.__traceback__
    while frames and frames.tb_frame.f_code.co_filename.startswith(OWN_FILES):
      frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames, limit=-8)
    return ''.join(lines).strip()[-DETAILS:]
  except BaseException:  # an exception whose own methods raise
    return type(error).__name__
