"""SandboxConfig, and Sandbox: a pool of isolated worker processes that run calls of graders.

The trainer shares nothing with the workers: a worker is started as a fresh process (never forked
from one that holds jax) with few environment variables, enters the strongest isolation that this
machine offers (isolation.py, worker_isolation.py) and has one writable folder, which is emptied
with each new process for calls. Limits hold for the address space of each process, the number of
processes, files on disk, and wall-clock time, which starts with the work on each call. When a call
fails or a worker ends, all processes that it started are killed, also those in sessions of their
own. Printed output is discarded and cannot pass for a result.

At level namespace or landlock only the interpreter, its packages and the worker's own folder can
be read, and there is no network. At level rlimits there is no network, but the code can read what
the user who runs it may read. Limitations of every level: the memory limit is per process (when
the machine runs out of memory, the kernel kills graders first), and at levels below namespace the
disk limit is per file. Calls to one python worker share a process until calls_per_worker; a source
that executes text of the policy should set that to 1, or be a `code` grader.
"""

import collections
import dataclasses
import math
import select
import threading
import time
import weakref

from rft_jax.graders.sandbox import isolation
from rft_jax.graders.sandbox.process import Outcome, WorkerProcess

MAX_PENDING_CALLS = 64  # sent to a worker before it has replied; hides the pipe's latency


@dataclasses.dataclass(slots=True, kw_only=True)
class SandboxConfig:
  """Resource limits of python and code graders. The defaults are those of the hosted service."""

  time_limit_seconds: float = 120.0  # wall clock, of one call; also of the source's top level
  memory_limit_mb: int = 2048  # address space of one process
  disk_limit_mb: int = 1024  # of all files; at levels below namespace of each file
  source_limit_kb: int = 256
  workers: int = 1  # processes of each grader
  calls_per_worker: int = 1000  # of a python grader, after which its process is replaced
  require: str = 'rlimits'  # none, rlimits, landlock or namespace: the weakest level accepted

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
    return [problem for is_valid, problem in checks if not is_valid]

  def problems(self) -> list[str]:
    """Returns validate(), or, if that is empty, why this machine cannot offer `require`."""
    return self.validate() or isolation.problems(self.require)


class Sandbox:
  """Workers with one setup, and the calls made to them.

      setup = {'mode': 'python', 'source': source, 'filename': 'exact.py'}
      Sandbox(setup, SandboxConfig()).run([[b'[{"output_text":"7"},{}]']])

  level: the isolation level of the workers, one of isolation.LEVELS.

  Raises:
    ValueError: the top level of the source raises, does not end, or defines no grade.
    RuntimeError: no worker can be started on this machine.
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
    self._workers: list[WorkerProcess] = []
    self._closed = False
    self._stop = weakref.finalize(self, _kill_all, self._workers)
    failure = self._start_first_worker()
    if failure:
      self.close()
      error = RuntimeError if failure.kind == 'worker_killed' else ValueError
      raise error(
        f'{setup["filename"]}: {failure.kind} at the top level of the source:\n{failure.details}'
      )

  def run(self, calls: list[list[bytes]]) -> list[Outcome]:
    """Returns the outcome of each call, in order; a call is one or two JSON texts."""
    outcomes: dict[int, Outcome] = {}
    queue = collections.deque(range(len(calls)))  # indices of calls not sent to a worker yet
    with self._lock:
      if self._closed:
        raise ValueError('this grader has been closed')
      try:
        self._remove_ended_workers()
        while len(outcomes) < len(calls):
          self._start_workers(queue)
          for worker in self._workers:
            self._submit_calls(worker, queue, calls)
          self._exchange_messages(outcomes)
          for worker in [worker for worker in self._workers if worker.failure]:
            self._remove_failed_worker(worker, queue, outcomes)
      except OSError as error:  # no process, pipe or folder is available
        _kill_all(self._workers)
        return [Outcome('worker_failed', None, str(error))] * len(calls)
      except BaseException:  # a reply may be in transit: a later call must not receive it
        _kill_all(self._workers)
        raise
    return [outcomes[index] for index in range(len(calls))]

  def close(self) -> None:
    """Kills the workers. May be repeated; also done when the program ends."""
    self._closed = True
    _kill_all(self._workers)

  def _start_first_worker(self) -> Outcome | None:
    """Starts a worker and waits until its source is loaded; returns the failure, if any."""
    worker = WorkerProcess(self._setup, self._config.time_limit_seconds)
    self._workers.append(worker)
    while not worker.is_ready and not worker.failure:
      self._exchange_messages({})
    return worker.failure

  def _remove_ended_workers(self) -> None:
    """Removes workers that ended between two runs."""
    for worker in [worker for worker in self._workers if worker.has_ended()]:
      worker.kill()
      self._workers.remove(worker)

  def _start_workers(self, queue) -> None:
    """Starts as many workers as the queue needs and the config allows."""
    idle_count = sum(not worker.pending for worker in self._workers)
    for _ in range(min(self._config.workers - len(self._workers), len(queue) - idle_count)):
      self._workers.append(WorkerProcess(self._setup, self._config.time_limit_seconds))

  def _submit_calls(self, worker, queue, calls) -> None:
    """Submits calls to a worker: fewer as the queue empties, so that all workers end together."""
    max_pending = MAX_PENDING_CALLS
    if self._config.workers > 1:
      max_pending = max(1, min(max_pending, len(queue) // (2 * self._config.workers)))
    while worker.is_ready and queue and len(worker.pending) < max_pending:
      index = queue.popleft()
      worker.submit(index, calls[index])

  def _exchange_messages(self, outcomes) -> None:
    """Waits for a message or a deadline; then sends, receives, and checks deadlines."""
    poll = select.poll()
    for worker in self._workers:
      poll.register(worker.replies, select.POLLIN)
      if worker.send_buffer:
        poll.register(worker.requests, select.POLLOUT)
    deadline = min(worker.deadline() for worker in self._workers)
    seconds = min(max(0.0, deadline - time.monotonic()), 3600.0)
    poll.poll(None if deadline == math.inf else math.ceil(1000 * seconds))
    for worker in self._workers:
      worker.send()
      outcomes.update(worker.receive())
      # After reading: if this process was suspended, the reply may have come in time.
      if not worker.failure and time.monotonic() > worker.deadline():
        seconds = self._config.time_limit_seconds
        worker.failure = Outcome('timeout', None, f'no result within {seconds:g} s')

  def _remove_failed_worker(self, worker, queue, outcomes) -> None:
    """Kills a failed worker; its first pending call failed, the others return to the queue.

    A worker that retired has replied to its last call, and no call failed.
    """
    failure = worker.kill()
    self._workers.remove(worker)
    if failure.kind == 'retired':
      queue.extendleft(reversed(worker.pending))
    elif worker.pending:
      outcomes[worker.pending.popleft()] = failure
      queue.extendleft(reversed(worker.pending))
    elif not worker.is_ready and not self._workers:  # another worker would fail too: end this run
      while queue:
        outcomes[queue.popleft()] = Outcome('worker_failed', None, failure.details)


def _kill_all(workers: list[WorkerProcess]) -> None:
  while workers:
    workers.pop().kill()
