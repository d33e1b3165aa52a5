"""Sampler corrections and mismatch metrics against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import masked, off_policy
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig, truncated_importance

# Besides the defaults, bounds that some rows of this data exceed and others do not.
CONFIGS = [CorrectionConfig(correction=name) for name in CORRECTIONS] + [
  CorrectionConfig(correction='tis', cap=1.1),
  CorrectionConfig(correction='icepop', icepop_low=0.8, icepop_high=1.2),
  CorrectionConfig(correction='sequence_tis', cap=1.05),
  CorrectionConfig(correction='sequence_mask', mask_cap=1.0),
  CorrectionConfig(correction='geometric_mask', geometric_low=0.9, geometric_high=1.1),
  CorrectionConfig(
    correction='sequence_mask_tis', geometric_low=0.9, geometric_high=1.1, cap=np.inf
  ),
  CorrectionConfig(correction='outlier_mask', outlier_low=0.6, outlier_high=1.6),
  CorrectionConfig(correction='k2_filter', filter_limit=0.03),
  CorrectionConfig(correction='k3_filter', filter_limit=0.03),
]
NAMES = [f'{config.correction}-{index}' for index, config in enumerate(CONFIGS)]


def example(seed=0, spread=0.3, T=7):
  rng = np.random.default_rng(seed)
  lengths = np.array([7, 5, 1, 0, 6, 7, 3, 2])
  d = rng.normal(0, spread, (8, T)) * np.linspace(0.2, 2, 8)[:, None]
  mask = np.arange(T) < lengths[:, None]
  mask[4, 1] = False
  return np.float32(d), np.float32(mask)


def correction(config, d, mask):
  return CORRECTIONS[config.correction](d, mask, config)


# ------------------------------------------------------------------ corrections


def test_values_compiled():
  d, mask = example()
  every = lambda d, mask: [correction(config, d, mask) for config in CONFIGS]
  for config, compiled, eager in zip(CONFIGS, jax.jit(every)(d, mask), every(d, mask)):
    np.testing.assert_allclose(compiled, eager, rtol=2e-6, err_msg=str(config))


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_values(config):
  d, mask = example()
  weights = correction(config, d, mask)
  expected = np.array([reference.correction(config, *row) for row in zip(np.float64(d), mask)])
  np.testing.assert_allclose(np.where(mask > 0, weights, 1), expected, rtol=3e-6)


@pytest.mark.parametrize('config', CONFIGS[len(CORRECTIONS) :], ids=NAMES[len(CORRECTIONS) :])
def test_these_bounds_are_active_at_some_tokens_and_not_at_others(config):
  d, mask = example()
  weights = np.asarray(correction(config, d, mask))[mask > 0]
  bound = np.float32(config.cap) if config.correction in ('tis', 'sequence_tis') else 0
  assert (weights == bound).any() and not (weights == bound).all()


@pytest.mark.parametrize('config', CONFIGS[: len(CORRECTIONS)], ids=tuple(CORRECTIONS))
def test_a_correction_is_a_constant(config):
  d, mask = example(1)
  assert not np.asarray(jax.grad(lambda x: correction(config, x, mask).sum())(d)).any()


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_the_same_log_probs_give_exactly_one(config):
  _, mask = example()
  assert (np.asarray(correction(config, np.zeros_like(mask), mask)) == 1).all()


@pytest.mark.parametrize('config', CONFIGS[: len(CORRECTIONS)], ids=tuple(CORRECTIONS))
def test_nan_outside_the_mask_is_never_read(config):
  d, mask = example(2)
  with_nan = np.where(mask > 0, d, np.nan)
  np.testing.assert_array_equal(
    np.where(mask > 0, correction(config, with_nan, mask), 0),
    np.where(mask > 0, correction(config, d, mask), 0),
  )


def test_extremes_are_finite():
  offenders = []
  for shape, log_ratio in (((1, 1), 1e4), ((3, 4), 1e4), ((3, 4), -1e4)):
    mask = np.ones(shape, np.float32)
    mask[1:] = 0
    d = np.full(shape, log_ratio, np.float32)
    for config in CONFIGS:
      weights = np.asarray(correction(config, d, mask))
      if not (np.isfinite(weights).all() and (weights >= 0).all()):
        offenders.append((config, shape, log_ratio, weights))
  assert not offenders


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(CONFIGS), st.integers(0, 1000), st.permutations(range(8)), st.sampled_from((0, 3))
)
def test_padding_and_the_order_of_rows_change_nothing(config, seed, order, extra):
  d, mask = example(seed)
  order = np.array(order)
  padded = correction(config, *(np.pad(x[order], ((0, 0), (0, extra))) for x in (d, mask)))
  np.testing.assert_allclose(
    np.asarray(padded)[:, :7] * mask[order],
    np.asarray(correction(config, d, mask))[order] * mask[order],
    rtol=3e-6,
  )


def test_without_bounds_tis_and_icepop_agree():
  d, mask = example(3)
  unbounded = CorrectionConfig(cap=np.inf, icepop_low=0.0, icepop_high=np.inf, mask_cap=np.inf)
  np.testing.assert_array_equal(
    CORRECTIONS['tis'](d, mask, unbounded), CORRECTIONS['icepop'](d, mask, unbounded)
  )
  np.testing.assert_array_equal(
    CORRECTIONS['sequence_tis'](d, mask, unbounded),
    CORRECTIONS['sequence_mask'](d, mask, unbounded),
  )
  np.testing.assert_allclose(
    CORRECTIONS['tis'](d, mask, unbounded)[mask > 0], np.exp(d)[mask > 0], rtol=1e-6
  )


def test_icepop_weights_by_kappa_and_not_by_one():
  config = CorrectionConfig(correction='icepop')
  d = np.log(np.array([[4.0, 6.0, 0.6, 0.4]], np.float32))
  np.testing.assert_allclose(correction(config, d, np.ones((1, 4))), [[4.0, 0, 0.6, 0]], rtol=1e-6)


def test_sequence_weights_make_a_mean_over_the_sampler_one_over_the_policy():
  p, q = np.array([0.7, 0.3]), np.array([0.6, 0.4])
  completions = [(a, b) for a in (0, 1) for b in (0, 1)]
  d = np.log([[p[a] / q[a], p[b] / q[b]] for a, b in completions]).astype(np.float32)
  weight = off_policy.sequence_tis(d, np.ones_like(d), CorrectionConfig(cap=np.inf))[:, 0]
  values = np.array([1.0, -2.0, 5.0, 0.5])
  probability = lambda x: np.array([x[a] * x[b] for a, b in completions])
  np.testing.assert_allclose(
    (probability(q) * weight * values).sum(), (probability(p) * values).sum(), rtol=1e-6
  )


def test_truncated_importance_weights_make_the_mean_over_the_sampler_that_over_the_trainer():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1])
  values = np.array([1.0, -2.0, 5.0])
  weights = truncated_importance(jnp.log(p), jnp.log(q), cap=10.0)
  np.testing.assert_allclose((q * weights * values).sum(), (p * values).sum(), rtol=1e-6)
  np.testing.assert_allclose(
    truncated_importance(jnp.log(p), jnp.log(q), cap=1.5), [5 / 6, 1.0, 1.5], rtol=1e-6
  )
  gradient = jax.grad(lambda x: truncated_importance(x, jnp.log(q), cap=2.0).sum())(jnp.log(p))
  assert not gradient.any()


# ------------------------------------------------------------------ staleness


def test_in_stale_sequences_tokens_of_negative_advantage_are_dropped():
  sampler = np.zeros((4, 2), np.float32)
  logprobs = np.float32([[-0.4, -0.4], [-0.9, -0.3], [-0.9, -0.3], [-9, -9]])
  advantages = np.float32([[-1, -1], [-1, -1], [1, 1], [0, 0]])
  mask = off_policy.stale_sequence_mask(logprobs, sampler, advantages, np.ones((4, 2)))
  assert mask.tolist() == [[1, 1], [0, 0], [1, 1], [1, 1]]


def test_staleness_is_a_masked_mean_and_a_constant():
  logprobs, sampler = np.float32([[-0.9, np.nan]]), np.float32([[0, np.nan]])
  mask, advantages = np.float32([[1, 0]]), np.float32([[-1, -1]])
  stale_mask = lambda x, limit: off_policy.stale_sequence_mask(
    x, sampler, advantages, mask, limit=limit
  )
  assert stale_mask(logprobs, 0.8)[0, 0] == 0 and stale_mask(logprobs, 1.0)[0, 0] == 1
  assert not np.asarray(jax.grad(lambda x: stale_mask(x, 1.0)[0, 0])(np.float32([[-1, 0]]))).any()


# ------------------------------------------------------------------ mismatch metrics


def test_mismatch_metrics():
  d, mask = example(6, spread=0.1)
  logprobs = np.float32(-np.random.default_rng(7).exponential(1.0, d.shape) - 1)
  sums = jax.jit(off_policy.mismatch_metrics)(d, mask, logprobs)
  metrics = off_policy.finish_mismatch_metrics(masked.means(sums))
  x, p = np.float64(d)[mask > 0], np.exp(np.float64(logprobs)[mask > 0])
  kappa = np.exp(x)
  expected = {
    'sampling/sampling_logp_difference/mean': np.abs(x).mean(),
    'sampling/sampling_logp_difference/max': np.abs(x).max(),
    'sampling/k3': (kappa - 1 - x).mean(),
    'sampling/chi2': (kappa**2).mean() - 1,
    'sampling/token_mult_prob_error': np.exp(np.abs(x)).mean(),
    'sampling/importance_sampling_ratio/mean': kappa.mean(),
    'sampling/effective_sample_share': kappa.sum() ** 2 / (len(x) * (kappa**2).sum()),
    'sampling/probability_correlation': np.corrcoef(p, p / kappa)[0, 1],
  }
  assert set(metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(metrics[name], value, rtol=2e-5, err_msg=name)


def test_mismatch_metrics_of_parts_are_those_of_the_whole():
  d, mask = example(8)
  logprobs = np.float32(-np.random.default_rng(9).exponential(1.0, d.shape) - 1)
  whole = off_policy.mismatch_metrics(d, mask, logprobs)
  parts = [
    off_policy.mismatch_metrics(d[rows], mask[rows], logprobs[rows])
    for rows in (slice(0, 3), slice(3, 8))
  ]
  total = masked.add_sums(parts)
  for name, value in off_policy.finish_mismatch_metrics(masked.means(whole)).items():
    np.testing.assert_allclose(
      off_policy.finish_mismatch_metrics(masked.means(total))[name], value, rtol=1e-4, err_msg=name
    )


def test_a_sampler_that_is_the_policy_has_no_mismatch():
  _, mask = example()
  logprobs = np.float32(-np.random.default_rng(0).exponential(1.0, mask.shape))
  sums = off_policy.mismatch_metrics(0 * mask, mask, logprobs)
  metrics = off_policy.finish_mismatch_metrics(masked.means(sums))
  assert metrics['sampling/sampling_logp_difference/max'] == 0
  assert metrics['sampling/chi2'] == 0 and metrics['sampling/k3'] == 0
  assert metrics['sampling/effective_sample_share'] == 1
  np.testing.assert_allclose(metrics['sampling/probability_correlation'], 1, rtol=1e-6)


@pytest.mark.parametrize('log_ratio', [1e4, -1e4])
@pytest.mark.parametrize('trained', [0, 1])
def test_metrics_of_extremes_are_finite_and_not_clamped(log_ratio, trained):
  d, mask = np.full((2, 3), log_ratio, np.float32), np.full((2, 3), trained, np.float32)
  sums = off_policy.mismatch_metrics(d, mask, np.zeros((2, 3), np.float32))
  metrics = off_policy.finish_mismatch_metrics(masked.means(sums))
  assert np.isfinite(list(metrics.values())).all()
  assert metrics['sampling/sampling_logp_difference/max'] == 1e4 * trained
  assert metrics['sampling/sampling_logp_difference/mean'] == 1e4 * trained
  assert metrics['sampling/k3'] >= 9998 * trained


def test_settings_out_of_range_are_named():
  assert CorrectionConfig().validate() == []
  for changes, message in (
    ({'correction': 'vtrace'}, "correction='vtrace'"),
    ({'cap': 0}, 'cap=0'),
    ({'icepop_low': 1.1}, 'icepop_low=1.1'),
    ({'mask_cap': 0.5}, 'mask_cap'),
    ({'geometric_high': 0.9}, 'geometric_high=0.9'),
    ({'filter_limit': 0.0}, 'filter_limit=0.0'),
    ({'stale_limit': -1.0}, 'stale_limit=-1.0'),
  ):
    problems = CorrectionConfig(**changes).validate()
    assert len(problems) == 1 and message in problems[0]
