"""Pool: the worker processes of a math grader, each verifies one answer at a time.

math-verify limits its time by SIGALRM, which works only in the main thread and not inside one long
computation; so its own timers are off, and a process that takes too long is killed. A worker is
started as a fresh process, never forked, because the caller may hold jax.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import select
import subprocess
import sys
import time
import weakref
from typing import IO, NamedTuple

WORKER = pathlib.Path(__file__).with_name('worker.py')
INHERITED_ENVIRONMENT = ('PATH', 'LD_LIBRARY_PATH', 'TZ', 'TMPDIR')
START_TIMEOUT_SECONDS = 120.0  # to import sympy, on a busy machine
CALLS_PER_PROCESS = 10_000  # then it is replaced: the caches of sympy and the parser grow


class Verdict(NamedTuple):
  """The result for one answer.

  kind: 'equal' or 'different'; 'no_reference' (the reference is not a mathematical expression);
  otherwise the failure of the process: 'timeout', 'memory_limit', 'worker_killed', 'worker_failed'.
  """

  kind: str
  details: str


class Pool:
  """Worker processes that verify answers; usable from any thread.

      Pool(workers=2, time_limit_seconds=5.0, memory_limit_mb=2048).verify([('1/2', '0.5')])

  Raises:
    RuntimeError: no process can be started on this machine.
  """

  def __init__(self, *, workers: int, time_limit_seconds: float, memory_limit_mb: int):
    self._workers = [_Worker(time_limit_seconds, memory_limit_mb) for _ in range(workers)]
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in self._workers:
      self._idle.put(worker)
    self._stop = weakref.finalize(self, _stop_all, self._workers)
    try:
      failure = self._workers[0].start()
    except OSError as error:
      failure = Verdict('worker_failed', str(error))
    if failure:
      self.close()
      raise RuntimeError(f'{WORKER.name} cannot be started: {failure.kind} {failure.details}')

  def verify(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
    """Returns the verdict on each (reference, answer), in order."""
    if len(pairs) == 1 or len(self._workers) == 1:
      return [self._verify_one(pair) for pair in pairs]
    with concurrent.futures.ThreadPoolExecutor(len(self._workers)) as threads:
      return list(threads.map(self._verify_one, pairs))

  def _verify_one(self, pair: tuple[str, str]) -> Verdict:
    worker = self._idle.get()
    try:
      return worker.verify(*pair)
    except (OSError, ValueError) as error:  # no process is available, or closed meanwhile
      return Verdict('worker_failed', str(error))
    finally:
      self._idle.put(worker)

  def close(self) -> None:
    """Kills the processes. May be repeated; also done when the program ends."""
    self._stop()


class _Worker:
  """One member of the pool: starts its process, and replaces it when needed."""

  def __init__(self, time_limit_seconds: float, memory_limit_mb: int):
    self._time_limit, self._memory_limit = time_limit_seconds, memory_limit_mb
    self._process: subprocess.Popen | None = None
    self._call_count, self._closed = 0, False
    self._owner_pid = os.getpid()

  def start(self) -> Verdict | None:
    """Starts a process; returns the failure, if there is one."""
    inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
    limits = [str(self._time_limit), str(self._memory_limit)]
    # Not isolated mode (-I), which would ignore PYTHONHASHSEED: verdicts are the same in each run.
    self._process = subprocess.Popen(
      [sys.executable, '-s', '-P', '-X', 'utf8', str(WORKER), *limits],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      bufsize=0,
      cwd='/',
      env={**inherited, 'LANG': 'C.UTF-8', 'PYTHONHASHSEED': '0', 'JAX_PLATFORMS': 'cpu'},
      start_new_session=True,
    )
    self._call_count = 0
    verdict = _receive(self._process, START_TIMEOUT_SECONDS)
    if verdict.kind == 'ready':
      return None
    self.stop()
    return verdict

  def verify(self, reference: str, answer: str) -> Verdict:
    """Returns the verdict; the time limit starts with this call, because the process is idle."""
    if self._closed:
      return Verdict('worker_failed', 'this grader has been closed')
    if self._process and (
      self._call_count >= CALLS_PER_PROCESS or self._process.poll() is not None
    ):
      self.stop()
    if self._process is None and (failure := self.start()):
      return failure
    assert self._process is not None  # start() has set it
    self._call_count += 1
    try:
      verdict = _exchange(self._process, [reference, answer], self._time_limit)
    except BaseException:  # a reply may be in transit: a later call must not receive it
      self.stop()
      raise
    if verdict.kind in ('timeout', 'memory_limit', 'worker_killed', 'worker_failed'):
      self.stop()
    return verdict

  def stop(self, *, for_good: bool = False) -> None:
    """Kills the process, if there is one, and frees its pipes."""
    if os.getpid() != self._owner_pid:  # a forked child shares the process, and does not own it
      return
    self._closed = self._closed or for_good
    process, self._process = self._process, None
    if process is not None:
      process.kill()
      process.wait()
      for pipe in _pipes(process):
        pipe.close()


def _pipes(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
  """Returns its (stdin, stdout)."""
  assert process.stdin is not None and process.stdout is not None  # _Worker asks for both pipes
  return process.stdin, process.stdout


def _exchange(process: subprocess.Popen, call: list[str], seconds: float) -> Verdict:
  """Sends one call to the process and returns its reply."""
  line = memoryview(json.dumps(call).encode() + b'\n')
  stdin, _ = _pipes(process)
  try:
    while line:
      line = line[stdin.write(line) :]
  except BrokenPipeError:
    return _killed(process)
  return _receive(process, seconds)


def _receive(process: subprocess.Popen, seconds: float) -> Verdict:
  """Returns the next line that the process writes."""
  line, deadline = b'', time.monotonic() + seconds
  _, stdout = _pipes(process)
  poll = select.poll()
  poll.register(stdout, select.POLLIN)
  while not line.endswith(b'\n'):
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
      return Verdict('timeout', f'no verdict within {seconds:g} s')
    chunk = os.read(stdout.fileno(), 1 << 16)
    if not chunk:
      return _killed(process)
    line += chunk
  return Verdict(*json.loads(line))


def _killed(process: subprocess.Popen) -> Verdict:
  return Verdict('worker_killed', f'the process ended with code {process.wait()}')


def _stop_all(workers: list[_Worker]) -> None:
  for worker in workers:
    worker.stop(for_good=True)
