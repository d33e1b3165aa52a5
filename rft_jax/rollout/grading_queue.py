"""Grading as a stage: answers are graded in a thread of their own while others are sampled."""

import collections
import concurrent.futures
import threading
import time
from typing import Any

from rft_jax import graders
from rft_jax.graders.base import Tally

WAITING = 4096  # answers that may wait; then sampling waits for the graders


class GradingQueue:
  """Takes answers in while they come, and has all their grades in the end.

      with Desk(grader) as desk:
        desk.hand_in(key, item, sample)   # soon back, unless WAITING answers wait already
      desk.grades[key], desk.counts()

  An exception out of the grading thread is raised where the block ends. A grader that waits for
  all gets them there too, in one call.
  """

  def __init__(self, grader):
    self.grader, self.grades = grader, {}
    self._tally = Tally()
    self._free_places = threading.BoundedSemaphore(WAITING)
    self._waiting, self._work = collections.deque(), []
    self._waits_for_all = getattr(grader, 'waits_for_all', False)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'grading')

  def __enter__(self):
    for tally in getattr(self.grader, 'tallies', {}).values():
      tally.take()  # of grades that were not ours
    return self

  def __exit__(self, kind, *_):
    self._thread.shutdown(cancel_futures=kind is not None)
    if kind is None and self._waits_for_all:
      self._grade()
    elif kind is None:
      for work in self._work:
        work.result()

  def submit(self, key, item: dict[str, Any], sample: dict[str, Any]) -> None:
    """Queues one answer; its Grade will be grades[key]."""
    if self._waits_for_all:
      self._waiting.append((key, (item, sample)))
      return
    self._free_places.acquire()
    self._waiting.append((key, (item, sample)))
    self._work.append(self._thread.submit(self._grade))

  def _grade(self):
    """Grades everything that waits, at once: graders with workers keep them all busy."""
    some = [self._waiting.popleft() for _ in range(len(self._waiting))]
    if not some:
      return
    began = time.monotonic()
    try:
      grades = graders.grade_many(self.grader, [pair for _, pair in some])
    finally:
      if not self._waits_for_all:
        self._free_places.release(len(some))
    seconds = (time.monotonic() - began) / len(some)
    for (key, _), grade in zip(some, grades):
      self.grades[key] = grade
      self._tally.add(grade.errors, seconds)

  def counts(self) -> dict[str, dict[str, float]]:
    """Returns what each grader did, {name: {'grades', 'seconds', 'errors/KEY', 'usage/KEY'}}: of
    the parts where the grader has parts. Once: the next call counts from here."""
    inner = {name: tally.take() for name, tally in getattr(self.grader, 'tallies', {}).items()}
    whole = self._tally.take()
    if set(inner) - {self.grader.name}:
      return inner
    return {self.grader.name: whole | inner.get(self.grader.name, {})}


def metrics(counts: dict[str, dict[str, float]]) -> dict[str, float]:
  """Returns counts as flat metrics: seconds/grading/NAME and graders/NAME/errors/KEY of a grade,
  graders/NAME/usage/KEY of them all."""
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
  """Returns what each grader did in several rollouts together."""
  total = {}
  for one in counts:
    for name, count in one.items():
      into = total.setdefault(name, {})
      for key, value in count.items():
        into[key] = into.get(key, 0) + value
  return total
