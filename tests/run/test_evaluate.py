"""Held-out figures: exact where they can be worked out, honest intervals, one's own stream."""

import itertools

import numpy as np
import pytest

from rft_jax.bootstrap import intervals
from rft_jax.run.evaluate import measure, pass_at_k
from rft_jax.types import Episode, Grade, Item, Sample


def _episode(reward, tokens=3, stop='stop', errors=None):
  return Episode(
    Item({}, 'made:1'),
    0,
    0,
    [1],
    Sample([2] * tokens, [0.0] * tokens, None, stop),
    '',
    '',
    1,
    Grade(reward, {}, errors or {}),
    0,
  )


@pytest.mark.parametrize('n, k', [(4, 1), (4, 2), (6, 3), (5, 5)])
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_pass(n, k):
  for correct in range(n + 1):
    passed = [True] * correct + [False] * (n - correct)
    draws = [any(draw) for draw in itertools.combinations(passed, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(np.mean(draws))


def test_measures_by_hand():
  sampled = [
    [_episode(1.0), _episode(0.0, errors={'sample_parse_error': True})],
    [_episode(0.5, tokens=9, stop='length'), _episode(1.0)],
  ]
  greedy = [_episode(1.0), _episode(0.25)]
  columns = measure(sampled, greedy, pass_threshold=1.0)
  assert columns['grade'].tolist() == [0.5, 0.75]
  assert columns['greedy/grade'].tolist() == [1.0, 0.25]
  assert columns['pass@1'].tolist() == [0.5, 0.5] and columns['pass@2'].tolist() == [1.0, 1.0]
  assert columns['truncated'].tolist() == [0.0, 0.5]
  assert columns['unparsable'].tolist() == [0.5, 0.0]
  assert columns['mean_tokens'].tolist() == [3.0, 6.0]


def test_a_row_that_could_not_be_graded_is_left_out_of_grades_alone():
  sampled = [[_episode(None, tokens=5)], [_episode(1.0)]]
  columns = measure(sampled, [_episode(None), _episode(1.0)], pass_threshold=1.0)
  values = intervals(columns)
  assert values['grade']['mean'] == 1.0 and values['pass@1']['mean'] == 1.0
  assert values['mean_tokens']['mean'] == 4.0
