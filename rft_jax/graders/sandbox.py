"""Runs a user's source in processes of its own, many calls to one process.

What is protected: the trainer's memory, time and files in use. The source runs in a process
started afresh (never forked from one that holds jax), in its own session, with few environment
variables (sandbox_process.py), in a temporary directory, under limits for address space, file
size and core dumps, and under a wall-clock limit that starts with the work on each call and ends
in SIGKILL for the whole process group. What it prints goes nowhere and cannot pass for a result.

What is not protected: the source has the rights of the user who runs it. It can read and write
that user's files, use the network, start processes that leave the group, and, if it means to,
write into the descriptor on which results travel. The disk limit is for each file, not for
their sum. So run here sources that you would run by hand; a source that executes text written by
the policy needs a sandbox of its own.
"""
import collections
import dataclasses
import math
import select
import threading
import time
import weakref

from rft_jax.graders.sandbox_process import Outcome, Process

CALLS_AHEAD = 64  # calls handed to a worker before it has answered; hides the pipe's latency


@dataclasses.dataclass(slots=True, kw_only=True)
class SandboxConfig:
  """What a python grader may use. The defaults are those of the hosted service."""
  time_limit_seconds: float = 120.0  # wall clock, of one call; also of the source's top level
  memory_limit_mb: int = 2048  # address space of one worker
  disk_limit_mb: int = 1024  # of each file that it writes
  source_limit_kb: int = 256
  workers: int = 1  # processes for each grader

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = (
        (0 < self.time_limit_seconds < math.inf,
         f'time_limit_seconds={self.time_limit_seconds}, need > 0 and finite'),
        (self.memory_limit_mb >= 64, f'memory_limit_mb={self.memory_limit_mb}, need >= 64'),
        (self.disk_limit_mb >= 1, f'disk_limit_mb={self.disk_limit_mb}, need >= 1'),
        (self.source_limit_kb >= 1, f'source_limit_kb={self.source_limit_kb}, need >= 1'),
        (self.workers >= 1, f'workers={self.workers}, need >= 1'),
    )
    return [problem for good, problem in checks if not good]


class Sandbox:
  """Workers that have loaded one source, and the calls made to them.

      Sandbox(source, 'exact.py', SandboxConfig()).run([b'[{"output_text":"7"},{}]'])

  Raises:
    ValueError: the top level of source raises, does not end, or defines no grade.
    RuntimeError: no worker can be started here.
  """

  def __init__(self, source: str, filename: str, config: SandboxConfig):
    self._config = dataclasses.replace(config)
    megabyte = 1 << 20
    limits = {'AS': config.memory_limit_mb * megabyte, 'FSIZE': config.disk_limit_mb * megabyte,
              'CORE': 0}
    self._setup = {'source': source, 'filename': filename, 'limits': limits}
    self._lock = threading.Lock()
    self._workers: list[Process] = []
    self._closed = False
    self._stop = weakref.finalize(self, _kill_all, self._workers)
    failure = self._first_start()
    if failure:
      self.close()
      error = RuntimeError if failure.kind == 'worker_killed' else ValueError
      raise error(f'{filename}: {failure.kind} at the top level of the source:\n{failure.details}')

  def run(self, calls: list[bytes]) -> list[Outcome]:
    """Returns the outcome of each call, a JSON text [sample, item], in the order of calls."""
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
    """Kills a failed worker; its first open call failed, the others return to the queue."""
    failure = worker.kill()
    self._workers.remove(worker)
    if worker.asked:
      outcomes[worker.asked.popleft()] = failure
      waiting.extendleft(reversed(worker.asked))
    elif not worker.ready and not self._workers:  # the next would fare no better: end this run
      while waiting:
        outcomes[waiting.popleft()] = Outcome('worker_failed', None, failure.details)


def _kill_all(workers: list[Process]) -> None:
  while workers:
    workers.pop().kill()
