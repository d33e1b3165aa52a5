"""WorkerProcess: starts one sandbox worker, exchanges messages with it over pipes, and kills it.

The pool (pool.py) decides when; the program of the worker is worker.py.
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
INHERITED_ENVIRONMENT = ('PATH', 'LD_LIBRARY_PATH', 'TZ', 'NLTK_DATA')
MAX_REPLY_BYTES = 1 << 20  # replies of an honest worker are far smaller
START_TIMEOUT_SECONDS = 60.0  # for interpreter and isolation; the time limit applies after that
GRACE_SECONDS = 10.0  # the worker enforces the time limit; this much later it counts as failed
SHUTDOWN_SECONDS = 15.0  # for killing all processes that a worker has started


class Outcome(NamedTuple):
  """The result of one call.

  kind: 'score'; 'raised' (the source raised, or returned no finite number); 'tests_broken' (of a
  code grader: the tests do not compile); otherwise the failure of the sandbox: 'timeout',
  'memory_limit', 'worker_killed', 'worker_failed'.
  """

  kind: str
  score: float | None  # not None only for kind 'score'
  details: str


class WorkerProcess:
  """One worker process, with the calls sent to it that have no outcome yet.

  pending: indices of these calls, in the order of submission.
  send_buffer: bytes that the pipe has not taken yet.
  is_ready: True once the worker has loaded its source.
  failure: an Outcome if the worker is unusable: it failed, or it retired ('retired').
  """

  def __init__(self, setup: dict, time_limit_seconds: float):
    self.pending: collections.deque[int] = collections.deque()
    self.send_buffer, self._receive_buffer = bytearray(), bytearray()
    self.is_ready, self._is_loading = False, False
    self.failure: Outcome | None = None
    self._time_limit, self._clock_start = time_limit_seconds, time.monotonic()
    self._submitted_count = self._answered_count = 0
    self._owner_pid = os.getpid()
    self._folder = tempfile.mkdtemp(prefix='grader-')
    child_requests, self.requests = os.pipe()
    self.replies, child_replies = os.pipe()
    child_lifeline, self._lifeline = os.pipe()  # closes when this process ends, however it ends
    child_descriptors = (child_requests, child_replies, child_lifeline)
    self._stderr = tempfile.TemporaryFile()
    try:
      # Not isolated mode (-I), which would ignore PYTHONHASHSEED: with it the order of a set
      # of strings, and so a grade, is the same in every run.
      self._process = subprocess.Popen(
        [sys.executable, '-s', '-P', '-X', 'utf8', str(WORKER), *map(str, child_descriptors)],
        pass_fds=child_descriptors,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=self._stderr,
        cwd=self._folder,
        env=_environment(self._folder),
        start_new_session=True,
      )
    except BaseException:
      self._stderr.close()
      for descriptor in (self.requests, self.replies, self._lifeline):
        os.close(descriptor)
      shutil.rmtree(self._folder, ignore_errors=True)
      raise
    finally:
      for descriptor in child_descriptors:
        os.close(descriptor)
    os.set_blocking(self.requests, False)
    os.set_blocking(self.replies, False)
    body = json.dumps({**setup, 'folder': self._folder}).encode()
    self.send_buffer += HEADER.pack(len(body), 0) + body

  def submit(self, index: int, call: list[bytes]) -> None:
    """Appends a call to the send buffer; its time starts when the previous call is answered."""
    if not self.pending:
      self._clock_start = time.monotonic()
    self._submitted_count = (self._submitted_count + 1) % (1 << 32)
    self.pending.append(index)
    for part in call:
      self.send_buffer += HEADER.pack(len(part), self._submitted_count) + part

  def deadline(self) -> float:
    """Returns when, on the monotonic clock, the current work must have ended; inf if idle."""
    if not self.is_ready:
      return self._clock_start + (self._time_limit if self._is_loading else START_TIMEOUT_SECONDS)
    return self._clock_start + self._time_limit + GRACE_SECONDS if self.pending else math.inf

  def send(self) -> None:
    """Writes as much of the send buffer as the pipe takes."""
    try:
      while self.send_buffer:
        chunk = memoryview(self.send_buffer)[: 1 << 18].tobytes()
        del self.send_buffer[: os.write(self.requests, chunk)]
    except BlockingIOError:
      pass
    except BrokenPipeError:
      self.send_buffer.clear()  # the worker has ended; receive() will report it

  def receive(self) -> dict[int, Outcome]:
    """Returns the outcomes that have arrived, {index: outcome}; may set failure."""
    has_ended = False
    try:
      while not has_ended and len(self._receive_buffer) <= MAX_REPLY_BYTES:
        chunk = os.read(self.replies, 1 << 16)
        has_ended = not chunk
        self._receive_buffer += chunk
    except BlockingIOError:
      pass
    outcomes: dict[int, Outcome] = {}
    while not self.failure and (message := self._next_message()):
      self._handle_message(*message, outcomes)
    if has_ended and not self.failure:
      self.failure = Outcome('worker_killed', None, '')
    return outcomes

  def _next_message(self) -> tuple[int, bytes] | None:
    if len(self._receive_buffer) < HEADER.size:
      return None
    length, number = HEADER.unpack_from(self._receive_buffer)
    end = HEADER.size + length
    if length > MAX_REPLY_BYTES:
      return number, b''  # which is invalid, and so a failure of the worker
    if len(self._receive_buffer) < end:
      return None
    body = bytes(self._receive_buffer[HEADER.size : end])
    del self._receive_buffer[:end]
    return number, body

  def _handle_message(self, number: int, body: bytes, outcomes: dict[int, Outcome]) -> None:
    try:
      kind, score, details, is_last = json.loads(body)
      expected_number = (self._answered_count + 1) % (1 << 32) if self.is_ready else 0
      is_valid = (
        number == expected_number
        and (kind == 'score') == isinstance(score, float)
        and (bool(self.pending) or not self.is_ready)
      )
    except (ValueError, TypeError, RecursionError):
      is_valid = False
    self._clock_start = time.monotonic()
    if not is_valid:
      self.failure = Outcome('worker_failed', None, 'the worker sent an invalid reply')
    elif not self.is_ready:
      self.is_ready, self._is_loading = kind == 'ready', True
      if kind not in ('ready', 'loading'):
        self.failure = Outcome(kind, None, details)
    else:
      self._answered_count = number
      outcomes[self.pending.popleft()] = Outcome(kind, score, details)
      if is_last:
        self.failure = Outcome('retired', None, details)

  def has_ended(self) -> bool:
    """Returns whether the process has ended or is not ours.

    Does not reap it, so that no new process gets its id before kill().
    """
    try:
      return (
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
      )
    except ChildProcessError:  # this process is a fork of the one that started it
      return True

  def kill(self) -> Outcome | None:
    """Kills the process group and frees everything; returns the failure, with its reason."""
    if os.getpid() != self._owner_pid or self._process.returncode is not None:
      return self.failure  # a forked child shares the worker, and does not own it
    os.close(self._lifeline)  # the worker then kills all that it has started, and ends
    try:
      code = self._process.wait(SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
      os.killpg(self._process.pid, signal.SIGKILL)
      code = self._process.wait()
    if self.failure and self.failure.kind == 'worker_killed':
      reason = (
        f'was killed by {_signal_name(code)}'
        if code < 0 or code > 128
        else (f'exited with code {code}')
      )
      self._stderr.seek(0)
      stderr_text = self._stderr.read(1 << 16).decode(errors='replace')[-1000:]
      self.failure = self.failure._replace(details=f'the worker {reason}\n{stderr_text}'.strip())
    os.close(self.requests)
    os.close(self.replies)
    self._stderr.close()
    shutil.rmtree(self._folder, ignore_errors=True)
    return self.failure


def _environment(folder: str) -> dict[str, str]:
  inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
  one_thread = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
  return {
    **inherited,
    **one_thread,
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
