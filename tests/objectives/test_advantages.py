"""Group advantages by hand, the scales, dynamic sampling, and arguments that raise."""

import numpy as np
import pytest

from rft_jax.objectives.advantages import (
  SCALES,
  AdvantageConfig,
  group_advantages,
  groups_with_variance,
  running_baseline,
)


@pytest.mark.parametrize('ddof, expected', [(1, 0.70710678), (0, 1.0)])
def test_a_group_of_two_is_plus_and_minus_a_known_number(ddof, expected):
  config = AdvantageConfig(ddof=ddof, epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages([[3.0, 1.0]], config), [[expected, -expected]], rtol=1e-6
  )


def test_group_scale_by_hand():
  # rewards 0 0 0 1: mean 1/4, variance (3/16 + 9/16) / 3 = 1/4, std 1/2
  advantages = group_advantages([[0, 0, 0, 1]], AdvantageConfig(epsilon=1e-4))
  np.testing.assert_allclose(
    advantages, np.array([[-0.25, -0.25, -0.25, 0.75]]) / 0.5001, rtol=1e-6
  )


def test_batch_scale_divides_every_group_by_one_std():
  rewards = np.array([[0.0, 1.0], [0.0, 10.0]])
  advantages = group_advantages(rewards, AdvantageConfig(scale='batch', epsilon=0.0))
  expected = [[-0.5, 0.5], [-5, 5]] / np.std(rewards, ddof=1)
  np.testing.assert_allclose(advantages, expected, rtol=1e-6)


def test_scale_none_only_centres():
  np.testing.assert_allclose(
    group_advantages([[1.0, 4.0]], AdvantageConfig(scale='none')), [[-1.5, 1.5]]
  )


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('G', [1, 2, 8])
def test_an_equal_group_has_advantage_exactly_zero(scale, G):
  # centring in floating point need not turn 0.1 + 0.2 into exactly 0
  rewards = np.full((3, G), 0.1 + 0.2)
  assert (group_advantages(rewards, AdvantageConfig(scale=scale)) == 0).all()


@pytest.mark.parametrize('scale', SCALES)
def test_group_advantages_sum_to_zero(scale):
  rewards = np.random.default_rng(0).normal(size=(5, 8))
  advantages = group_advantages(rewards, AdvantageConfig(scale=scale))
  np.testing.assert_allclose(advantages.sum(1), 0, atol=1e-5)


def test_rescaling_rewards_leaves_group_scale_unchanged_and_none_linear():
  rewards = np.random.default_rng(1).normal(size=(4, 6))
  by_std = AdvantageConfig(epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages(7 * rewards, by_std), group_advantages(rewards, by_std), rtol=1e-5
  )
  unscaled = AdvantageConfig(scale='none')
  np.testing.assert_allclose(
    group_advantages(7 * rewards, unscaled), 7 * group_advantages(rewards, unscaled), rtol=1e-5
  )


def test_the_running_baseline_by_hand():
  assert running_baseline(None, [[1, 0]]) == 0.5
  assert running_baseline(0.5, [[1, 1]], decay=0.8) == pytest.approx(0.6)


def test_groups_with_variance_are_those_whose_rewards_differ():
  rewards = [[0, 0, 0], [0, 0, 1], [0.1 + 0.2] * 3, [1, 1, 1], [-1, 1, 0]]
  assert groups_with_variance(rewards).tolist() == [False, True, False, False, True]
  assert not groups_with_variance([[1.0], [0.0]]).any()
  assert groups_with_variance(np.zeros((0, 4))).shape == (0,)


@pytest.mark.parametrize(
  'name, rewards, extra, message',
  [
    ('group', [[1.0, np.nan]], {}, 'not all finite'),
    ('rloo', [[1.0, np.inf]], {}, 'not all finite'),
    ('gdpo', [[[1.0, np.inf]]], {'component_weights': [1, 1]}, 'not all finite'),
    ('rloo', [1.0, 2.0], {}, r'\[P, G\]'),
    ('gdpo', [[1.0, 2.0]], {'component_weights': [1]}, r'\[P, G, K\]'),
    ('gdpo', [[[1.0], [2.0]]], {'component_weights': [1]}, '2 components'),
    ('gdpo', [[[1.0, 2.0]]], {'component_weights': [1]}, '2 finite numbers'),
    ('gdpo', [[[1.0, 2.0]]], {}, 'needs component_weights'),
    ('opo', [[1.0, 2.0]], {}, 'needs lengths'),
    ('opo', [[1.0, 2.0]], {'lengths': [3, 4]}, r'lengths \(2,\)'),
    ('opo', [[1.0, 2.0]], {'lengths': [[3, -4]]}, 'numbers >= 0'),
    ('maxrl', [[1.0, -1.0]], {}, 'rewards >= 0'),
    ('remax', [[1.0, 2.0]], {'baseline': 0.5}, 'greedy'),
    ('reinforce', [[1.0, 2.0]], {'baseline': [0.5, 0.5]}, r'need \[\] or \[P\]'),
    ('reinforce', [[1.0, 2.0]], {'baseline': np.nan}, 'finite'),
    ('reinforce', [[1e300, 0.0]], {'baseline': 0.0}, 'beyond float32'),
    ('best', [[1.0, 2.0]], {}, 'need one of'),
  ],
)
def test_invalid_arguments_raise(name, rewards, extra, message):
  with pytest.raises(ValueError, match=message):
    group_advantages(rewards, AdvantageConfig(estimator=name), **extra)


def test_settings_out_of_range_are_named():
  assert AdvantageConfig().validate() == []
  assert AdvantageConfig(estimator='rloo', scale='none').validate() == []
  assert 'estimator' in AdvantageConfig(estimator='grpo').validate()[0]
  assert 'belongs to' in AdvantageConfig(estimator='rloo', scale='batch').validate()[0]
