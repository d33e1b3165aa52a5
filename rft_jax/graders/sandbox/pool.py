"""Runs what users and policies wrote in processes of their own, many calls to one worker.

The trainer shares nothing with them: a worker is started afresh (never forked from a process that
holds jax) with few environment variables, goes into the strongest isolation that this machine
offers (isolation.py, worker_kernel.py) and is given one folder, which is emptied. Limits hold for
the address space of each process, the number of processes, files on disk, and wall-clock time,
which starts with the work on each call. When a call fails or a worker ends, all that it started is
killed, in a session of its own or not. What is printed goes nowhere and cannot pass for a result.

At level namespace or landlock nothing but the interpreter, its packages and the own folder can be
read, and no network reached. At level rlimits the code has no network, but reads what the user
who runs it may read. What remains at every level: the memory limit is of each process (the kernel
ends graders first when memory runs out), and at levels below namespace the disk limit is of each
file. Calls to one python worker share a process until calls_per_worker; a source that executes
text of the policy's should set that to 1, or be a `code` grader.
"""

import collections
import dataclasses
import math
import select
import threading
import time
import weakref

from rft_jax.graders.sandbox import isolation
from rft_jax.graders.sandbox.process import Outcome, Process

CALLS_AHEAD = 64  # calls handed to a worker before it has answered; hides the pipe's latency


@dataclasses.dataclass(slots=True, kw_only=True)
class SandboxConfig:
  """What a python or code grader may use. The defaults are those of the hosted service."""

  time_limit_seconds: float = 120.0  # wall clock, of one call; also of the source's top level
  memory_limit_mb: int = 2048  # address space of one process
  disk_limit_mb: int = 1024  # of all files; at levels below namespace of each
  source_limit_kb: int = 256
  workers: int = 1  # for each grader
  calls_per_worker: int = 1000  # of a python grader, after which its process is a fresh one
  require: str = 'rlimits'  # none, rlimits, landlock or namespace: less than this is refused

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = (
      (
        0 < self.time_limit_seconds < math.inf,
        f'time_limit_seconds={self.time_limit_seconds}, need > 0 and finite',
      ),
      (self.memory_limit_mb >= 64, f'memory_limit_mb={self.memory_limit_mb}, need >= 64'),
      (self.disk_limit_mb >= 1, f'disk_limit_mb={self.disk_limit_mb}, need >= 1'),
      (self.source_limit_kb >= 1, f'source_limit_kb={self.source_limit_kb}, need >= 1'),
      (self.workers >= 1, f'workers={self.workers}, need >= 1'),
      (self.calls_per_worker >= 1, f'calls_per_worker={self.calls_per_worker}, need >= 1'),
      (
        self.require in isolation.LEVELS,
        f'require={self.require!r}, need one of {", ".join(isolation.LEVELS)}',
      ),
    )
    return [problem for good, problem in checks if not good]

  def problems(self) -> list[str]:
    """Returns those of validate(), or, if there is none, what this machine lacks for it."""
    return self.validate() or isolation.problems(self.require)


class Sandbox:
  """Workers that do one thing, and the calls made to them.

      setup = {'mode': 'python', 'source': source, 'filename': 'exact.py'}
      Sandbox(setup, SandboxConfig()).run([[b'[{"output_text":"7"},{}]']])

  level: of isolation.LEVELS, that they run at.

  Raises:
    ValueError: the top level of a source raises, does not end, or defines no grade.
    RuntimeError: no worker can be started here.
  """

  def __init__(self, setup: dict, config: SandboxConfig):
    self.level = isolation.isolation_level()
    self._config = dataclasses.replace(config)
    megabyte = 1 << 20
    limits = {'AS': config.memory_limit_mb * megabyte, 'FSIZE': config.disk_limit_mb * megabyte}
    self._setup = {
      **setup,
      'limits': limits,
      'level': self.level,
      'time_limit_seconds': config.time_limit_seconds,
      'calls_per_worker': config.calls_per_worker,
    }
    self._lock = threading.Lock()
    self._workers: list[Process] = []
    self._closed = False
    self._stop = weakref.finalize(self, _kill_all, self._workers)
    failure = self._first_start()
    if failure:
      self.close()
      error = RuntimeError if failure.kind == 'worker_killed' else ValueError
      raise error(
        f'{setup["filename"]}: {failure.kind} at the top level of the source:\n{failure.details}'
      )

  def run(self, calls: list[list[bytes]]) -> list[Outcome]:
    """Returns the outcome of each call, in order; a call is one or two texts in JSON."""
    outcomes: dict[int, Outcome] = {}
    waiting = collections.deque(range(len(calls)))
    with self._lock:
      if self._closed:
        raise ValueError('this grader has been closed')
      try:
        self._bury()
        while len(outcomes) < len(calls):
          self._hire(waiting)
          for worker in self._workers:
            self._hand_out(worker, waiting, calls)
          self._exchange(outcomes)
          for worker in [one for one in self._workers if one.failure]:
            self._dismiss(worker, waiting, outcomes)
      except OSError as error:  # no process, pipe or folder to be had
        _kill_all(self._workers)
        return [Outcome('worker_failed', None, str(error))] * len(calls)
      except BaseException:  # answers may be under way: no later call shall take them for its own
        _kill_all(self._workers)
        raise
    return [outcomes[index] for index in range(len(calls))]

  def close(self) -> None:
    """Kills the workers. Harmless when repeated; also done when the program ends."""
    self._closed = True
    _kill_all(self._workers)

  def _first_start(self) -> Outcome | None:
    worker = Process(self._setup, self._config.time_limit_seconds)
    self._workers.append(worker)
    while not worker.ready and not worker.failure:
      self._exchange({})
    return worker.failure

  def _bury(self) -> None:
    """Removes workers that ended between two runs."""
    for worker in [one for one in self._workers if one.has_ended()]:
      worker.kill()
      self._workers.remove(worker)

  def _hire(self, waiting) -> None:
    """Starts the workers that are needed and allowed."""
    idle = sum(not worker.asked for worker in self._workers)
    for _ in range(min(self._config.workers - len(self._workers), len(waiting) - idle)):
      self._workers.append(Process(self._setup, self._config.time_limit_seconds))

  def _hand_out(self, worker, waiting, calls) -> None:
    """Gives worker calls ahead: fewer as the queue empties, so that workers end together."""
    ahead = CALLS_AHEAD
    if self._config.workers > 1:
      ahead = max(1, min(ahead, len(waiting) // (2 * self._config.workers)))
    while worker.ready and waiting and len(worker.asked) < ahead:
      index = waiting.popleft()
      worker.ask(index, calls[index])

  def _exchange(self, outcomes) -> None:
    """Waits until some worker has news or is overdue; sends, receives, and looks at the clock."""
    poll = select.poll()
    for worker in self._workers:
      poll.register(worker.replies, select.POLLIN)
      if worker.outbox:
        poll.register(worker.requests, select.POLLOUT)
    deadline = min(worker.deadline() for worker in self._workers)
    seconds = min(max(0.0, deadline - time.monotonic()), 3600.0)
    poll.poll(None if deadline == math.inf else math.ceil(1000 * seconds))
    for worker in self._workers:
      worker.send()
      outcomes.update(worker.receive())
      # Only after reading: while this process slept, the answer may have come in time.
      if not worker.failure and time.monotonic() > worker.deadline():
        seconds = self._config.time_limit_seconds
        worker.failure = Outcome('timeout', None, f'no result within {seconds:g} s')

  def _dismiss(self, worker, waiting, outcomes) -> None:
    """Kills a failed worker; its first open call failed, the others return to the queue.

    One that says itself that it is used up has answered its call, and none has failed.
    """
    failure = worker.kill()
    self._workers.remove(worker)
    if failure.kind == 'used_up':
      waiting.extendleft(reversed(worker.asked))
    elif worker.asked:
      outcomes[worker.asked.popleft()] = failure
      waiting.extendleft(reversed(worker.asked))
    elif not worker.ready and not self._workers:  # the next would fare no better: end this run
      while waiting:
        outcomes[waiting.popleft()] = Outcome('worker_failed', None, failure.details)


def _kill_all(workers: list[Process]) -> None:
  while workers:
    workers.pop().kill()
