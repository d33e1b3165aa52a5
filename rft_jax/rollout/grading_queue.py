"""The grading queue: answers are graded in a thread while others are still being sampled."""

import collections
import concurrent.futures
import threading
import time
from typing import Any

from rft_jax import graders
from rft_jax.graders.base import Tally

MAX_QUEUED = 4096  # answers; a full queue blocks sampling until some are graded


class GradingQueue:
  """Collects answers as they are sampled, and holds all their grades at the end.

      with GradingQueue(grader) as queue:
        queue.submit(key, item, sample)   # returns at once unless MAX_QUEUED answers are waiting
      queue.grades[key], queue.counts()

  An exception in the grading thread is raised at the end of the block. A grader with
  `waits_for_all` gets all answers in one call, there too.
  """

  def __init__(self, grader):
    self.grader, self.grades = grader, {}
    self._tally = Tally()
    self._capacity = threading.BoundedSemaphore(MAX_QUEUED)
    self._queued, self._futures = collections.deque(), []
    self._waits_for_all = getattr(grader, 'waits_for_all', False)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'grading')

  def __enter__(self):
    for tally in getattr(self.grader, 'tallies', {}).values():
      tally.take()  # drops the counts of earlier grades
    return self

  def __exit__(self, kind, *_):
    self._thread.shutdown(cancel_futures=kind is not None)
    if kind is None and self._waits_for_all:
      self._grade()
    elif kind is None:
      for future in self._futures:
        future.result()

  def submit(self, key, item: dict[str, Any], sample: dict[str, Any]) -> None:
    """Queues one answer; its Grade will be grades[key]."""
    if self._waits_for_all:
      self._queued.append((key, (item, sample)))
      return
    self._capacity.acquire()
    self._queued.append((key, (item, sample)))
    self._futures.append(self._thread.submit(self._grade))

  def _grade(self):
    """Grades everything in the queue in one call, so that all workers of a grader are busy."""
    batch = [self._queued.popleft() for _ in range(len(self._queued))]
    if not batch:
      return
    began = time.monotonic()
    try:
      grades = graders.grade_many(self.grader, [pair for _, pair in batch])
    finally:
      if not self._waits_for_all:
        self._capacity.release(len(batch))
    seconds = (time.monotonic() - began) / len(batch)
    for (key, _), grade in zip(batch, grades):
      self.grades[key] = grade
      self._tally.add(grade.errors, seconds)

  def counts(self) -> dict[str, dict[str, float]]:
    """Returns {grader: {'grades', 'seconds', 'errors/KEY', 'usage/KEY'}}, and resets the counts.

    Of the graders inside it, where the grader has some.
    """
    inner = {name: tally.take() for name, tally in getattr(self.grader, 'tallies', {}).items()}
    total = self._tally.take()
    if set(inner) - {self.grader.name}:
      return inner
    return {self.grader.name: total | inner.get(self.grader.name, {})}


def metrics(counts: dict[str, dict[str, float]]) -> dict[str, float]:
  """Returns counts as flat metrics.

  seconds/grading/NAME and graders/NAME/errors/KEY are means over the grades, graders/NAME/usage/KEY
  is a sum.
  """
  values = {}
  for name, count in counts.items():
    grades = max(count.get('grades', 0), 1)
    for key, value in count.items():
      if key == 'seconds':
        values[f'seconds/grading/{name}'] = value / grades
      elif key.startswith('errors/'):
        values[f'graders/{name}/{key}'] = value / grades
      elif key.startswith('usage/'):
        values[f'graders/{name}/{key}'] = value
  return values


def added(counts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
  """Returns the sum of the counts of several rollouts."""
  total = {}
  for rollout_counts in counts:
    for name, count in rollout_counts.items():
      sums = total.setdefault(name, {})
      for key, value in count.items():
        sums[key] = sums.get(key, 0) + value
  return total
