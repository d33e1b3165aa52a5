"""Advantage estimators against loops over floats, golden numbers, and invariances."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives.advantage_estimators import ESTIMATORS
from rft_jax.objectives.advantages import SCALES, AdvantageConfig, group_advantages

EPSILON = 1e-4
GROUP_ONLY = ('group', 'rloo', 'opo', 'gpg', 'maxrl', 'pass_at_k', 'best_of_n')


# ------------------------------------------------------------------ the reference: plain loops


def mean_of(values):
  return math.fsum(values) / len(values)


def std_of(values, ddof):
  mean = mean_of(values)
  return math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - ddof))


def white_of(rows, lengths):
  tokens = [x for row, counts in zip(rows, lengths) for x, n in zip(row, counts) for _ in range(n)]
  mean, std = mean_of(tokens), std_of(tokens, 0)
  return [
    [(x - mean) / (std + 1e-8) if n else 0.0 for x, n in zip(row, counts)]
    for row, counts in zip(rows, lengths)
  ]


def reference(
  name, rewards, *, lengths=None, baseline=None, component_weights=None, ddof=1, scale='group'
):
  """The estimators, one formula a branch, for groups that are not all equal."""
  rows = [list(map(float, row)) for row in rewards] if name != 'gdpo' else rewards
  if name == 'group':
    flat = [x for row in rows for x in row]
    scales = {
      'group': lambda row: std_of(row, ddof) + EPSILON,
      'batch': lambda row: std_of(flat, ddof) + EPSILON,
      'none': lambda row: 1.0,
    }[scale]
    return [[(x - mean_of(row)) / scales(row) for x in row] for row in rows]
  if name == 'rloo':
    return [[x - mean_of(row[:i] + row[i + 1 :]) for i, x in enumerate(row)] for row in rows]
  if name == 'opo':
    bases = [sum(n * x for n, x in zip(ns, row)) / sum(ns) for ns, row in zip(lengths, rows)]
    return [[x - base for x in row] for base, row in zip(bases, rows)]
  if name == 'gpg':
    groups_with_variance = sum(len(row) for row in rows if len(set(row)) > 1)
    alpha = sum(map(len, rows)) / groups_with_variance
    return [[alpha * (x - mean_of(row)) for x in row] for row in rows]
  if name == 'maxrl':
    return [[(x - mean_of(row)) / (mean_of(row) + EPSILON) for x in row] for row in rows]
  if name == 'pass_at_k':
    return [[x - sorted(row)[-2] if x == max(row) else 0.0 for x in row] for row in rows]
  if name == 'best_of_n':
    return [[1 / row.count(max(row)) if x == max(row) else 0.0 for x in row] for row in rows]
  if name in ('reinforce', 'remax'):
    return [[x - base for x in row] for base, row in zip(baseline, rows)]
  if name == 'reinforce_plus_plus':
    return white_of(rows, lengths)
  if name == 'reinforce_plus_plus_baseline':
    return white_of([[x - mean_of(row) for x in row] for row in rows], lengths)
  assert name == 'gdpo'
  sums = []
  for group in rows:
    sums.append([0.0] * len(group))
    for k, weight in enumerate(component_weights):
      present = [sample[k] for sample in group if not math.isnan(sample[k])]
      for i, sample in enumerate(group):
        if not math.isnan(sample[k]) and len(set(present)) > 1:
          sums[-1][i] += weight * (sample[k] - mean_of(present)) / (std_of(present, ddof) + EPSILON)
  flat = [
    s
    for row, group in zip(sums, rows)
    for s, sample in zip(row, group)
    if not all(map(math.isnan, sample))
  ]
  return [
    [
      0.0 if all(map(math.isnan, sample)) else (s - mean_of(flat)) / (std_of(flat, ddof) + EPSILON)
      for s, sample in zip(row, group)
    ]
    for row, group in zip(sums, rows)
  ]


def example(name, seed=0, P=3, G=5, K=3):
  """Rewards of rising spread, lengths that include 0, a baseline for each prompt."""
  rng = np.random.default_rng(seed)
  rewards = rng.uniform(0, 1, (P, G)) * np.arange(1, P + 1)[:, None]
  extra = {}
  if name in ('opo', 'reinforce_plus_plus', 'reinforce_plus_plus_baseline'):
    extra['lengths'] = rng.integers(1, 9, (P, G)) * (np.arange(G) > 0)
  if name in ('reinforce', 'remax'):
    extra['baseline'] = rng.uniform(0, 1, P)
  if name == 'gdpo':
    rewards = rng.normal(size=(P, G, K))
    rewards[0, 0], rewards[1, 2, 0], rewards[2, :, 1] = np.nan, np.nan, 0.3
    extra['component_weights'] = np.array([1.0, 0.5, 2.0])
  return rewards, extra


@pytest.mark.parametrize('ddof', [0, 1])
@pytest.mark.parametrize('name', ESTIMATORS)
def test_every_estimator_equals_its_formula(name, ddof):
  rewards, extra = example(name)
  advantages = group_advantages(rewards, AdvantageConfig(estimator=name, ddof=ddof), **extra)
  assert advantages.dtype == np.float32 and advantages.shape == rewards.shape[:2]
  expected = reference(name, rewards.tolist(), ddof=ddof, **extra)
  np.testing.assert_allclose(advantages, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('scale', SCALES)
def test_the_three_scales_equal_their_formula(scale):
  rewards, _ = example('group')
  advantages = group_advantages(rewards, AdvantageConfig(scale=scale))
  expected = reference('group', rewards, scale=scale)
  np.testing.assert_allclose(advantages, expected, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------ golden numbers


@pytest.mark.parametrize(
  'name, rewards, extra, expected',
  [
    ('rloo', [[1, 0, 0, 1]], {}, [[2 / 3, -2 / 3, -2 / 3, 2 / 3]]),
    # 10 tokens of 1 and 30 of 0: the baseline is 1/4
    ('opo', [[1, 0]], {'lengths': [[10, 30]]}, [[0.75, -0.25]]),
    # one of two groups has variance: twice the centred reward
    ('gpg', [[1, 0], [0, 0]], {}, [[1, -1], [0, 0]]),
    ('maxrl', [[0.75, 0.25]], {}, [[0.25 / 0.5001, -0.25 / 0.5001]]),
    ('pass_at_k', [[0.2, 0.9, 0.5], [1, 1, 0]], {}, [[0, 0.4, 0], [0, 0, 0]]),
    ('best_of_n', [[0, 1, 1, 0], [0, 0, 0, 0]], {}, [[0, 0.5, 0.5, 0], [0, 0, 0, 0]]),
    ('reinforce', [[1, 0]], {'baseline': 0.25}, [[0.75, -0.25]]),
    ('remax', [[1, 0], [1, 0]], {'baseline': [1, 0]}, [[0, -1], [1, 0]]),
    # tokens 1 0 0 0: mean 1/4, std sqrt(3)/4
    ('reinforce_plus_plus', [[1, 0]], {'lengths': [[1, 3]]}, [[math.sqrt(3), -1 / math.sqrt(3)]]),
  ],
)
def test_golden_numbers(name, rewards, extra, expected):
  advantages = group_advantages(rewards, AdvantageConfig(estimator=name), **extra)
  np.testing.assert_allclose(advantages, expected, rtol=1e-6, atol=1e-7)


def test_gdpo_distinguishes_samples_with_equal_sums():
  # (right, short): the sums of the first group are 1 and 1, those of the second 2 and 0
  rewards = np.array([[[1, 0], [0, 1]], [[1, 1], [0, 0]]], float)
  config = AdvantageConfig(estimator='gdpo', epsilon=0.0)
  # each z is +-1/sqrt(2), the sums are 0 0 sqrt(2) -sqrt(2), of std sqrt(4/3)
  np.testing.assert_allclose(
    group_advantages(rewards, config, component_weights=[1, 1]),
    np.array([[0, 0], [1, -1]]) * math.sqrt(1.5),
    rtol=1e-6,
  )
  # one component a hundred times as large: other sums, the same advantages
  large = group_advantages(rewards * [100, 1], config, component_weights=[1, 1])
  np.testing.assert_allclose(large, np.array([[0, 0], [1, -1]]) * math.sqrt(1.5), rtol=1e-6)


def test_a_group_of_two_under_rloo_is_twice_the_centred_reward():
  rewards = np.array([[3.0, 1.0], [0.25, 0.5]])
  centred = group_advantages(rewards, AdvantageConfig(scale='none'))
  np.testing.assert_array_equal(
    group_advantages(rewards, AdvantageConfig(estimator='rloo')), 2 * centred
  )


@pytest.mark.parametrize('G', [2, 3, 8])
def test_rloo_and_the_centred_reward_differ_by_exactly_the_group_factor(G):
  rewards = np.random.default_rng(G).normal(size=(4, G))
  np.testing.assert_allclose(
    group_advantages(rewards, AdvantageConfig(estimator='rloo')),
    G / (G - 1) * group_advantages(rewards, AdvantageConfig(scale='none')),
    rtol=1e-6,
  )


def test_opo_with_equal_lengths_is_the_centred_reward():
  rewards, _ = example('group')
  advantages = group_advantages(
    rewards, AdvantageConfig(estimator='opo'), lengths=np.full(rewards.shape, 7)
  )
  np.testing.assert_allclose(
    advantages, group_advantages(rewards, AdvantageConfig(scale='none')), rtol=1e-6
  )


def test_whitened_advantages_have_mean_0_and_std_1_over_tokens():
  for name in ('reinforce_plus_plus', 'reinforce_plus_plus_baseline'):
    rewards, extra = example(name)
    advantages = group_advantages(rewards, AdvantageConfig(estimator=name), **extra)
    tokens = np.repeat(advantages.ravel(), extra['lengths'].ravel())
    np.testing.assert_allclose([tokens.mean(), tokens.std()], [0, 1], atol=1e-5)


# ------------------------------------------------------------------ invariances


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(list(ESTIMATORS)), seed=st.integers(0, 10**6))
def test_the_order_of_groups_and_samples_does_not_matter(name, seed):
  rewards, extra = example(name, seed)
  rng = np.random.default_rng(seed)
  rows, columns = rng.permutation(rewards.shape[0]), rng.permutation(rewards.shape[1])
  permuted = {
    key: value
    if key == 'component_weights'
    else value[rows]
    if value.ndim == 1
    else value[rows][:, columns]
    for key, value in extra.items()
  }
  config = AdvantageConfig(estimator=name)
  np.testing.assert_allclose(
    group_advantages(rewards[rows][:, columns], config, **permuted),
    group_advantages(rewards, config, **extra)[rows][:, columns],
    rtol=1e-5,
    atol=1e-6,
  )


@settings(max_examples=40, deadline=None)
@given(
  name=st.sampled_from([name for name in GROUP_ONLY if name != 'gpg'] + ['remax']),
  seed=st.integers(0, 10**6),
)
def test_groups_are_independent_where_no_batch_statistic_is_used(name, seed):
  rewards, extra = example(name, seed)
  config = AdvantageConfig(estimator=name)
  alone = [
    group_advantages(
      rewards[p : p + 1], config, **{key: value[p : p + 1] for key, value in extra.items()}
    )
    for p in range(len(rewards))
  ]
  np.testing.assert_array_equal(group_advantages(rewards, config, **extra), np.concatenate(alone))


@settings(max_examples=40, deadline=None)
@given(
  name=st.sampled_from(['group', 'rloo', 'opo', 'gpg', 'pass_at_k', 'best_of_n']),
  seed=st.integers(0, 10**6),
  shift=st.floats(-10, 10),
  factor=st.floats(0.1, 10),
)
def test_shifting_rewards_changes_nothing_and_scaling_them_is_linear_or_nothing(
  name, seed, shift, factor
):
  rewards, extra = example(name, seed)
  config = AdvantageConfig(estimator=name, epsilon=0.0)
  before = group_advantages(rewards, config, **extra)
  after = group_advantages(factor * rewards + shift, config, **extra)
  power = 0 if name in ('group', 'best_of_n') else 1
  np.testing.assert_allclose(after, factor**power * before, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('name', GROUP_ONLY)
@pytest.mark.parametrize('G', [1, 2, 7])
def test_equal_rewards_and_singletons_are_exactly_zero(name, G):
  rewards = np.full((3, G), 0.1 + 0.2)
  extra = {'lengths': np.arange(1, 3 * G + 1).reshape(3, G)} if name == 'opo' else {}
  assert (group_advantages(rewards, AdvantageConfig(estimator=name), **extra) == 0).all()


def test_equal_rewards_are_zero_also_after_whitening_and_in_gdpo():
  rewards = np.full((7, 3), 0.1 + 0.2)
  for name in ('reinforce_plus_plus', 'reinforce_plus_plus_baseline'):
    config = AdvantageConfig(estimator=name)
    assert not group_advantages(rewards, config, lengths=np.ones((7, 3))).any()
    assert not group_advantages(rewards, config, lengths=np.zeros((7, 3))).any()
  gdpo = AdvantageConfig(estimator='gdpo', epsilon=0.0)
  for value in (0.1 + 0.2, np.nan):
    assert not group_advantages(np.full((3, 7, 2), value), gdpo, component_weights=[1, 1]).any()


def test_opo_of_a_group_without_trainable_tokens_is_zero():
  advantages = group_advantages(
    [[1.0, 0.0], [1.0, 0.0]], AdvantageConfig(estimator='opo'), lengths=[[0, 0], [0, 4]]
  )
  np.testing.assert_array_equal(advantages, [[0, 0], [1, 0]])


def test_gdpo_excludes_a_sample_without_components_from_all_statistics():
  rewards, extra = example('gdpo')
  config = AdvantageConfig(estimator='gdpo')
  assert np.isnan(rewards[0, 0]).all() and not np.isnan(rewards[0, 1:]).any()
  whole = group_advantages(rewards, config, **extra)
  without = group_advantages(rewards[:1, 1:], AdvantageConfig(estimator='gdpo'), **extra)
  assert whole[0, 0] == 0
  alone = group_advantages(rewards[:1], config, **extra)
  np.testing.assert_allclose(alone[:, 1:], without, rtol=1e-6)


@pytest.mark.parametrize('name', ESTIMATORS)
@pytest.mark.parametrize('shape', [(0, 4), (4, 0)])
def test_no_groups_give_no_advantages(name, shape):
  rewards, extra = example(name)
  rewards = rewards[: shape[0], : shape[1]]
  extra = {
    key: value if key == 'component_weights' else value[: shape[0]] for key, value in extra.items()
  }
  advantages = group_advantages(rewards, AdvantageConfig(estimator=name), **extra)
  assert advantages.shape == rewards.shape[:2]


def test_advantages_of_large_and_tiny_rewards_are_finite():
  offenders = []
  for name in ESTIMATORS:
    rewards, extra = example(name)
    config = AdvantageConfig(estimator=name, epsilon=0.0)
    for size in (1e-300, 1e4, 1e30):
      if not np.isfinite(group_advantages(size * rewards, config, **extra)).all():
        offenders.append((name, size))
  assert not offenders
