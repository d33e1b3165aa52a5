"""One process that runs a user's source: started, asked, listened to, killed.

pool.py decides when; this file knows how. The other end is worker.py.
"""

import collections
import json
import math
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

WORKER = pathlib.Path(__file__).with_name('worker.py')
HEADER = struct.Struct('<II')  # bytes of the body, number of the call; as in the worker
KEPT_ENVIRONMENT = ('PATH', 'LD_LIBRARY_PATH', 'TZ', 'NLTK_DATA')
LONGEST_REPLY = 1 << 20  # bytes; the worker's own are far below
SECONDS_TO_START = 60.0  # for interpreter and isolation; the source's own clock starts after
SECONDS_BEYOND = 10.0  # the worker keeps the time limit itself; this much later it has failed
SECONDS_TO_END = 15.0  # for ending all that a worker has started


class Outcome(NamedTuple):
  """What became of one call.

  kind: 'score'; 'raised' (the source raised, or returned no finite number); 'tests_broken' (of a
  code grader: they do not compile); otherwise what went wrong around it: 'timeout',
  'memory_limit', 'worker_killed', 'worker_failed'.
  """

  kind: str
  score: float | None  # of kind 'score' alone
  details: str


class Process:
  """One process, with what it was asked and has not answered."""

  def __init__(self, setup: dict, time_limit_seconds: float):
    self.asked = collections.deque()  # indices of calls, in the order of asking
    self.outbox, self._inbox = bytearray(), bytearray()
    self.ready, self.failure, self._loading = False, None, False
    self._limit, self._since = time_limit_seconds, time.monotonic()
    self._asked_in_all = self._answered_in_all = 0
    self._owner = os.getpid()
    self._folder = tempfile.mkdtemp(prefix='grader-')
    child_requests, self.requests = os.pipe()
    self.replies, child_replies = os.pipe()
    child_lifeline, self._lifeline = os.pipe()  # closes when this process ends, however it does
    theirs = (child_requests, child_replies, child_lifeline)
    self._errors = tempfile.TemporaryFile()
    try:
      # Not isolated mode (-I), which would ignore PYTHONHASHSEED: with it the order of a set
      # of strings, and so a grade, is the same in every run.
      self._process = subprocess.Popen(
        [sys.executable, '-s', '-P', '-X', 'utf8', str(WORKER), *map(str, theirs)],
        pass_fds=theirs,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=self._errors,
        cwd=self._folder,
        env=_environment(self._folder),
        start_new_session=True,
      )
    except BaseException:
      self._errors.close()
      for descriptor in (self.requests, self.replies, self._lifeline):
        os.close(descriptor)
      shutil.rmtree(self._folder, ignore_errors=True)
      raise
    finally:
      for descriptor in theirs:
        os.close(descriptor)
    os.set_blocking(self.requests, False)
    os.set_blocking(self.replies, False)
    body = json.dumps({**setup, 'folder': self._folder}).encode()
    self.outbox += HEADER.pack(len(body), 0) + body

  def ask(self, index: int, call: list[bytes]) -> None:
    """Puts a call into the outbox; its clock starts when the one before it is answered."""
    if not self.asked:
      self._since = time.monotonic()
    self._asked_in_all = (self._asked_in_all + 1) % (1 << 32)
    self.asked.append(index)
    for part in call:
      self.outbox += HEADER.pack(len(part), self._asked_in_all) + part

  def deadline(self) -> float:
    """Returns when, on the monotonic clock, the work at hand must have ended; inf if idle."""
    if not self.ready:
      return self._since + (self._limit if self._loading else SECONDS_TO_START)
    return self._since + self._limit + SECONDS_BEYOND if self.asked else math.inf

  def send(self) -> None:
    """Writes as much of the outbox as the pipe takes."""
    try:
      while self.outbox:
        del self.outbox[: os.write(self.requests, memoryview(self.outbox)[: 1 << 18].tobytes())]
    except BlockingIOError:
      pass
    except BrokenPipeError:
      self.outbox.clear()  # it has ended, which receive() will see too

  def receive(self) -> dict[int, Outcome]:
    """Returns the answers that have come, {index: outcome}; sets failure where it is over."""
    ended = False
    try:
      while not ended and len(self._inbox) <= LONGEST_REPLY:
        more = os.read(self.replies, 1 << 16)
        ended = not more
        self._inbox += more
    except BlockingIOError:
      pass
    outcomes = {}
    while not self.failure and (message := self._next_message()):
      self._take(*message, outcomes)
    if ended and not self.failure:
      self.failure = Outcome('worker_killed', None, '')
    return outcomes

  def _next_message(self) -> tuple[int, bytes] | None:
    if len(self._inbox) < HEADER.size:
      return None
    length, number = HEADER.unpack_from(self._inbox)
    end = HEADER.size + length
    if length > LONGEST_REPLY:
      return number, b''  # nothing that the worker would say
    if len(self._inbox) < end:
      return None
    body = bytes(self._inbox[HEADER.size : end])
    del self._inbox[:end]
    return number, body

  def _take(self, number: int, body: bytes, outcomes: dict[int, Outcome]) -> None:
    try:
      kind, score, details, last = json.loads(body)
      expected = (self._answered_in_all + 1) % (1 << 32) if self.ready else 0
      good = (
        number == expected
        and (kind == 'score') == isinstance(score, float)
        and (bool(self.asked) or not self.ready)
      )
    except (ValueError, TypeError, RecursionError):
      good = False
    self._since = time.monotonic()
    if not good:
      self.failure = Outcome('worker_failed', None, 'an answer that the worker does not give')
    elif not self.ready:
      self.ready, self._loading = kind == 'ready', True
      if kind not in ('ready', 'loading'):
        self.failure = Outcome(kind, None, details)
    else:
      self._answered_in_all = number
      outcomes[self.asked.popleft()] = Outcome(kind, score, details)
      if last:
        self.failure = Outcome('used_up', None, details)

  def has_ended(self) -> bool:
    """Returns whether the process is gone or not ours; does not reap it: its id stays its own."""
    try:
      return (
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
      )
    except ChildProcessError:  # this process is a fork of the one that started it
      return True

  def kill(self) -> Outcome | None:
    """Kills the process group and frees everything; returns the failure, explained."""
    if os.getpid() != self._owner or self._process.returncode is not None:
      return self.failure  # a forked child shares the worker, and does not own it
    os.close(self._lifeline)  # at which the worker ends all that it has started, and itself
    try:
      code = self._process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
      os.killpg(self._process.pid, signal.SIGKILL)
      code = self._process.wait()
    if self.failure and self.failure.kind == 'worker_killed':
      how = (
        f'was killed by {_signal_name(code)}'
        if code < 0 or code > 128
        else (f'exited with code {code}')
      )
      self._errors.seek(0)
      said = self._errors.read(1 << 16).decode(errors='replace')[-1000:]
      self.failure = self.failure._replace(details=f'the worker {how}\n{said}'.strip())
    os.close(self.requests)
    os.close(self.replies)
    self._errors.close()
    shutil.rmtree(self._folder, ignore_errors=True)
    return self.failure


def _environment(folder: str) -> dict[str, str]:
  kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
  single = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
  return {
    **kept,
    **single,
    'HOME': folder,
    'TMPDIR': folder,
    'LANG': 'C.UTF-8',
    'JAX_PLATFORMS': 'cpu',
    'PYTHONHASHSEED': '0',
    'PYTHONDONTWRITEBYTECODE': '1',
  }


def _signal_name(code: int) -> str:
  number = -code if code < 0 else code - 128
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'
