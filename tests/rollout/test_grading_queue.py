"""The grading queue: keys, overlap with sampling, its bound, errors, and counts."""

import threading
import time

import pytest

from rft_jax import graders
from rft_jax.rollout import grading_queue
from rft_jax.types import Grade


class Slow:
  """A grader that takes a while, like a remote judge, and records batch sizes and threads."""

  name, ungradable_reward = 'slow', 0.0

  def __init__(self, seconds=0.0):
    self.seconds, self.batches, self.threads = seconds, [], set()

  def many(self, pairs):
    self.batches.append(len(pairs))
    self.threads.add(threading.current_thread())
    time.sleep(self.seconds)
    return [Grade(item['n'], {'slow': item['n']}, {}) for item, _ in pairs]


def test_answers_are_graded_in_another_thread_under_their_keys():
  grader = Slow(0.02)
  with grading_queue.GradingQueue(grader) as queue:
    for n in range(40):
      queue.submit(n, {'n': float(n)}, {})
      time.sleep(0.005)
  assert {key: grade.reward for key, grade in queue.grades.items()} == {n: n for n in range(40)}
  assert sum(grader.batches) == 40 and 1 < len(grader.batches) < 40  # waiting answers in one call
  assert threading.main_thread() not in grader.threads


def test_submit_blocks_while_the_queue_is_full(monkeypatch):
  monkeypatch.setattr(grading_queue, 'MAX_QUEUED', 3)
  grader = Slow(0.05)
  with grading_queue.GradingQueue(grader) as queue:
    for n in range(10):
      queue.submit(n, {'n': 0.0}, {})
  assert max(grader.batches) <= 3 and sum(grader.batches) == 10


def test_an_error_in_the_grading_thread_is_raised_at_the_end_of_the_block():
  class Failing(Slow):
    def many(self, pairs):
      raise RuntimeError('out of order')

  with pytest.raises(RuntimeError, match='out of order'):
    with grading_queue.GradingQueue(Failing()) as queue:
      for n in range(3):
        queue.submit(n, {}, {})


def test_grades_errors_and_seconds_are_counted_and_reset():
  grader = graders.make(
    {
      'type': 'string_check',
      'name': 'exact',
      'operation': 'eq',
      'input': '{{ sample.output_text }}',
      'reference': '{{ item.answer }}',
    }
  )
  with grading_queue.GradingQueue(grader) as queue:
    for n, item in enumerate(({'answer': 'a'}, {'answer': 'b'}, {})):
      queue.submit(n, item, {'output_text': 'a'})
  counts = queue.counts()
  assert set(counts) == {'exact'} and counts['exact']['seconds'] > 0
  assert counts['exact']['grades'] == 3 and counts['exact']['errors/invalid_variable_error'] == 1
  assert queue.counts() == {'exact': {}}
  flat = grading_queue.metrics(counts)
  assert flat['graders/exact/errors/invalid_variable_error'] == pytest.approx(1 / 3)
  assert flat['seconds/grading/exact'] == pytest.approx(counts['exact']['seconds'] / 3)
