"""Sampler corrections and mismatch figures against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import masked, off_policy
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig

# Besides the defaults, bounds that some rows of this data keep and others break.
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


def _rows(seed=0, spread=0.3, T=7):
  rng = np.random.default_rng(seed)
  lengths = np.array([7, 5, 1, 0, 6, 7, 3, 2])
  d = rng.normal(0, spread, (8, T)) * np.linspace(0.2, 2, 8)[:, None]
  mask = np.arange(T) < lengths[:, None]
  mask[4, 1] = False
  return np.float32(d), np.float32(mask)


def _weights(config, d, mask):
  return CORRECTIONS[config.correction](d, mask, config)


# ------------------------------------------------------------------ corrections


def test_values_compiled():
  d, mask = _rows()
  every = lambda d, mask: [_weights(config, d, mask) for config in CONFIGS]
  for config, found, expected in zip(CONFIGS, jax.jit(every)(d, mask), every(d, mask)):
    np.testing.assert_allclose(found, expected, rtol=2e-6, err_msg=str(config))


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_values(config):
  d, mask = _rows()
  found = _weights(config, d, mask)
  expected = np.array([reference.correction(config, *row) for row in zip(np.float64(d), mask)])
  np.testing.assert_allclose(np.where(mask > 0, found, 1), expected, rtol=3e-6)


@pytest.mark.parametrize('config', CONFIGS[len(CORRECTIONS) :], ids=NAMES[len(CORRECTIONS) :])
def test_these_bounds_bind_at_some_tokens_and_not_at_others(config):
  d, mask = _rows()
  found = np.asarray(_weights(config, d, mask))[mask > 0]
  bound = (
    found == 0
    if config.correction not in ('tis', 'sequence_tis')
    else found == np.float32(config.cap)
  )
  assert bound.any() and not bound.all()


@pytest.mark.parametrize('config', CONFIGS[: len(CORRECTIONS)], ids=tuple(CORRECTIONS))
def test_a_correction_is_a_constant(config):
  d, mask = _rows(1)
  assert not np.asarray(jax.grad(lambda x: _weights(config, x, mask).sum())(d)).any()


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_the_same_log_probs_give_exactly_one(config):
  _, mask = _rows()
  assert (np.asarray(_weights(config, np.zeros_like(mask), mask)) == 1).all()


@pytest.mark.parametrize('config', CONFIGS[: len(CORRECTIONS)], ids=tuple(CORRECTIONS))
def test_nan_where_nothing_counts_is_never_read(config):
  d, mask = _rows(2)
  dirty = np.where(mask > 0, d, np.nan)
  np.testing.assert_array_equal(
    np.where(mask > 0, _weights(config, dirty, mask), 0),
    np.where(mask > 0, _weights(config, d, mask), 0),
  )


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
@pytest.mark.parametrize('shape, far', [((1, 1), 1e4), ((3, 4), 1e4), ((3, 4), -1e4)])
def test_extremes_are_finite(config, shape, far):
  mask = np.ones(shape, np.float32)
  mask[1:] = 0
  found = np.asarray(_weights(config, np.full(shape, far, np.float32), mask))
  assert np.isfinite(found).all() and (found >= 0).all()


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(CONFIGS), st.integers(0, 1000), st.permutations(range(8)), st.sampled_from((0, 3))
)
def test_padding_and_the_order_of_rows_change_nothing(config, seed, order, extra):
  d, mask = _rows(seed)
  order = np.array(order)
  found = _weights(config, *(np.pad(x[order], ((0, 0), (0, extra))) for x in (d, mask)))
  np.testing.assert_allclose(
    np.asarray(found)[:, :7] * mask[order],
    np.asarray(_weights(config, d, mask))[order] * mask[order],
    rtol=3e-6,
  )


def test_without_bounds_tis_and_icepop_agree():
  d, mask = _rows(3)
  free = CorrectionConfig(cap=np.inf, icepop_low=0.0, icepop_high=np.inf, mask_cap=np.inf)
  np.testing.assert_array_equal(
    CORRECTIONS['tis'](d, mask, free), CORRECTIONS['icepop'](d, mask, free)
  )
  np.testing.assert_array_equal(
    CORRECTIONS['sequence_tis'](d, mask, free), CORRECTIONS['sequence_mask'](d, mask, free)
  )
  np.testing.assert_allclose(
    CORRECTIONS['tis'](d, mask, free)[mask > 0], np.exp(d)[mask > 0], rtol=1e-6
  )


def test_icepop_keeps_kappa_and_not_one():
  config = CorrectionConfig(correction='icepop')
  d = np.log(np.array([[4.0, 6.0, 0.6, 0.4]], np.float32))
  np.testing.assert_allclose(_weights(config, d, np.ones((1, 4))), [[4.0, 0, 0.6, 0]], rtol=1e-6)


def test_sequence_weights_make_a_mean_over_the_sampler_one_over_the_policy():
  p, q = np.array([0.7, 0.3]), np.array([0.6, 0.4])
  answers = [(a, b) for a in (0, 1) for b in (0, 1)]
  d = np.log([[p[a] / q[a], p[b] / q[b]] for a, b in answers]).astype(np.float32)
  weight = off_policy.sequence_tis(d, np.ones_like(d), CorrectionConfig(cap=np.inf))[:, 0]
  values = np.array([1.0, -2.0, 5.0, 0.5])
  of = lambda x: np.array([x[a] * x[b] for a, b in answers])
  np.testing.assert_allclose((of(q) * weight * values).sum(), (of(p) * values).sum(), rtol=1e-6)


# ------------------------------------------------------------------ self-normalised


@pytest.mark.parametrize('name', ['token_mean', 'sequence_mean', 'prompt_mean'])
def test_self_normalising_divides_by_the_mean_correction_however_the_step_is_cut(name):
  d, mask = _rows(4)
  loss = np.float32(np.random.default_rng(5).normal(size=d.shape))
  loss[mask == 0] = np.nan
  group = np.repeat(np.arange(4), 2)
  tokens = masked.tokens_of_groups(mask, group)
  kappa = off_policy.sequence_tis(d, mask, CorrectionConfig())

  def sums(rows):
    aggregate = lambda values, weights: masked.AGGREGATIONS[name](
      values, weights, masked.Sizes(group_tokens=tokens[rows])
    )
    return off_policy.self_normalised(aggregate, loss[rows], kappa[rows], mask[rows])

  whole, first, second = (sums(np.array(rows)) for rows in (range(8), [0, 3, 5], [1, 2, 4, 6, 7]))
  np.testing.assert_allclose(whole.total, first.total + second.total, rtol=1e-5)
  np.testing.assert_allclose(whole.weight, first.weight + second.weight, rtol=1e-6)
  weights64 = np.array(
    [
      reference.correction(CorrectionConfig(correction='sequence_tis'), *row)
      for row in zip(np.float64(d), mask)
    ]
  )
  mean = lambda values: reference.aggregate(name, values, mask, group=list(group))
  np.testing.assert_allclose(
    whole.total / whole.weight, mean(weights64 * loss) / mean(weights64), rtol=1e-5
  )


def test_self_normalised_weights_of_one_are_the_plain_mean():
  loss, mask = np.float32([[1, 2, 3]]), np.float32([[1, 1, 0]])
  found = off_policy.self_normalised(masked.over_tokens, loss, jnp.ones((1, 3)), mask)
  assert found == masked.over_tokens(loss, mask)


# ------------------------------------------------------------------ staleness


def test_stale_sequences_lose_their_bad_tokens_alone():
  sampler = np.zeros((4, 2), np.float32)
  logprobs = np.float32([[-0.4, -0.4], [-0.9, -0.3], [-0.9, -0.3], [-9, -9]])
  advantages = np.float32([[-1, -1], [-1, -1], [1, 1], [0, 0]])
  found = off_policy.stale_sequence_mask(logprobs, sampler, advantages, np.ones((4, 2)))
  assert found.tolist() == [[1, 1], [0, 0], [1, 1], [1, 1]]


def test_staleness_is_a_masked_mean_and_a_constant():
  logprobs, sampler = np.float32([[-0.9, np.nan]]), np.float32([[0, np.nan]])
  mask, bad = np.float32([[1, 0]]), np.float32([[-1, -1]])
  mask_of = lambda x, limit: off_policy.stale_sequence_mask(x, sampler, bad, mask, limit=limit)
  assert mask_of(logprobs, 0.8)[0, 0] == 0 and mask_of(logprobs, 1.0)[0, 0] == 1
  assert not np.asarray(jax.grad(lambda x: mask_of(x, 1.0)[0, 0])(np.float32([[-1, 0]]))).any()


# ------------------------------------------------------------------ figures


def test_mismatch_figures():
  d, mask = _rows(6, spread=0.1)
  logprobs = np.float32(-np.random.default_rng(7).exponential(1.0, d.shape) - 1)
  sums = jax.jit(off_policy.mismatch_metrics)(d, mask, logprobs)
  figures = off_policy.mismatch_figures(masked.means(sums))
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
  assert set(figures) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(figures[name], value, rtol=2e-5, err_msg=name)


def test_mismatch_figures_of_parts_are_those_of_the_whole():
  d, mask = _rows(8)
  logprobs = np.float32(-np.random.default_rng(9).exponential(1.0, d.shape) - 1)
  whole = off_policy.mismatch_metrics(d, mask, logprobs)
  parts = [
    off_policy.mismatch_metrics(d[rows], mask[rows], logprobs[rows])
    for rows in (slice(0, 3), slice(3, 8))
  ]
  added = masked.added(parts)
  for name, value in off_policy.mismatch_figures(masked.means(whole)).items():
    np.testing.assert_allclose(
      off_policy.mismatch_figures(masked.means(added))[name], value, rtol=1e-4, err_msg=name
    )


def test_a_sampler_that_is_the_policy_has_no_mismatch():
  _, mask = _rows()
  logprobs = np.float32(-np.random.default_rng(0).exponential(1.0, mask.shape))
  sums = off_policy.mismatch_metrics(0 * mask, mask, logprobs)
  figures = off_policy.mismatch_figures(masked.means(sums))
  assert figures['sampling/sampling_logp_difference/max'] == 0
  assert figures['sampling/chi2'] == 0 and figures['sampling/k3'] == 0
  assert figures['sampling/effective_sample_share'] == 1
  np.testing.assert_allclose(figures['sampling/probability_correlation'], 1, rtol=1e-6)


@pytest.mark.parametrize('far', [1e4, -1e4])
@pytest.mark.parametrize('weight', [0, 1])
def test_figures_of_extremes_are_finite_and_hide_nothing(far, weight):
  d, mask = np.full((2, 3), far, np.float32), np.full((2, 3), weight, np.float32)
  sums = off_policy.mismatch_metrics(d, mask, np.zeros((2, 3), np.float32))
  figures = off_policy.mismatch_figures(masked.means(sums))
  assert np.isfinite(list(figures.values())).all()
  assert figures['sampling/sampling_logp_difference/max'] == 1e4 * weight
  assert figures['sampling/sampling_logp_difference/mean'] == 1e4 * weight
  assert figures['sampling/k3'] >= 9998 * weight


def test_settings():
  assert CorrectionConfig().validate() == []
  for changes, says in (
    ({'correction': 'vtrace'}, "correction='vtrace'"),
    ({'cap': 0}, 'cap=0'),
    ({'icepop_low': 1.1}, 'icepop_low=1.1'),
    ({'mask_cap': 0.5}, 'mask_cap'),
    ({'geometric_high': 0.9}, 'geometric_high=0.9'),
    ({'filter_limit': 0.0}, 'filter_limit=0.0'),
    ({'stale_limit': -1.0}, 'stale_limit=-1.0'),
  ):
    problems = CorrectionConfig(**changes).validate()
    assert len(problems) == 1 and says in problems[0]
