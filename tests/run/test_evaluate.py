"""Held-out evaluation: pass@k, the measures of rows, and the evaluation of an export."""

import itertools

import numpy as np
import pytest
from episodes import graded_episode

import rft_jax
from rft_jax.bootstrap import intervals
from rft_jax.records import metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run.evaluate import measure, pass_at_k


def graded(reward, tokens=(2, 2, 2), **fields):
  return graded_episode(reward, tokens=tokens, **fields)


@pytest.mark.parametrize('n, k', [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_pass_at_k_is_the_share_of_all_draws_with_a_pass(n, k):
  for correct in range(n + 1):
    passed = [True] * correct + [False] * (n - correct)
    draws = [any(draw) for draw in itertools.combinations(passed, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(np.mean(draws))


def test_measures_of_each_row():
  sampled = [
    [graded(1.0), graded(0.0, errors={'sample_parse_error': True})],
    [graded(0.5, tokens=[2] * 9, stop_reason='length'), graded(1.0)],
  ]
  greedy = [graded(1.0), graded(0.25)]
  columns = measure(sampled, greedy, pass_threshold=1.0)
  assert columns['grade'].tolist() == [0.5, 0.75]
  assert columns['greedy/grade'].tolist() == [1.0, 0.25]
  assert columns['pass@1'].tolist() == [0.5, 0.5] and columns['pass@2'].tolist() == [1.0, 1.0]
  assert columns['truncated'].tolist() == [0.0, 0.5]
  assert columns['unparsable'].tolist() == [0.5, 0.0]
  assert columns['mean_tokens'].tolist() == [3.0, 6.0]


def test_an_ungraded_row_is_left_out_of_the_grades_alone():
  sampled = [[graded(None, tokens=[2] * 5)], [graded(1.0)]]
  columns = measure(sampled, [graded(None), graded(1.0)], pass_threshold=1.0)
  values = intervals(columns)
  assert values['grade']['mean'] == 1.0 and values['pass@1']['mean'] == 1.0
  assert values['mean_tokens']['mean'] == 4.0


def test_the_evaluation_of_the_export_equals_that_of_its_checkpoint(config, finished):
  best = Checkpoints(finished / 'checkpoints').best()
  recorded = {row['step']: row for row in metrics.read(finished / 'evaluation.jsonl')}
  values = rft_jax.evaluate(config, model=str(finished / 'export'))
  assert values == {name: recorded[best][name] for name in values} and 'grade' in values
