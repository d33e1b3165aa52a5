"""Preference losses against a float64 reference in plain loops, identities, and invariances."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from reference_policy import gradient as numeric_gradient
from reference_policy import log_sigma, sigma

from rft_jax.objectives import preference_losses
from rft_jax.objectives.preference_losses import LOSSES, NEEDS
from rft_jax.objectives.preference_objective import PreferenceConfig, pair_losses
from rft_jax.objectives.preference_pairs import over_pairs

SETTINGS = {
  'cdpo': dict(loss='dpo', label_smoothing=0.2),
  'robust': dict(label_smoothing=0.1),
  'exo': dict(label_smoothing=1e-3),
  'simpo': dict(beta=2.0, gamma=0.7),
  'cpo': dict(label_smoothing=0.1, nll_coef=1.0),
  'orpo': dict(beta=0.3, nll_coef=1.0),
  'dpo_mean': dict(beta=3.0),
  'forward_kl': dict(loss='dpo', divergence='forward_kl'),
  'js': dict(loss='hinge', divergence='js'),
  'alpha': dict(loss='dpo_mean', divergence='alpha', alpha=0.3),
}
CASES = {
  name: PreferenceConfig(**{'loss': name, **SETTINGS.get(name, {})})
  for name in (*LOSSES, *SETTINGS)
}


# ------------------------------------------------------------------ the reference


def reference_score(logprobs, reference, loss_mask, row, config):
  """x of one row, by a loop over its tokens."""
  is_reference_free = config.loss in ('simpo', 'cpo', 'orpo')
  total = length = 0.0
  for t in range(loss_mask.shape[1]):
    if loss_mask[row, t]:
      total += logprobs[row, t] - (0 if is_reference_free else reference[row, t])
      length += 1
  a = config.alpha
  total = {
    'reverse_kl': lambda x: x,
    'forward_kl': lambda x: 1 - math.exp(-x),
    'js': lambda x: math.log(2 * math.exp(x) / (1 + math.exp(x))),
    'alpha': lambda x: (math.exp(x) ** (a - 1) - 1) / (a - 1),
  }[config.divergence](total)
  by_mean = config.loss in ('dpo_mean', 'ipo_mean', 'simpo', 'orpo')
  return total / length if by_mean else total


def reference_loss(w, r, config):
  """The formulas, one pair at a time."""
  b, e, h = config.beta, config.label_smoothing, config.beta * (w - r)
  odds = lambda x: math.exp(x) / (1 - math.exp(x))
  mu = sigma(h / config.tau)
  return {
    'dpo': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'dpo_mean': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'hinge': lambda: max(0.0, 1 - h),
    'ipo': lambda: (w - r - 1 / (2 * b)) ** 2,
    'ipo_mean': lambda: (w - r - 1 / (2 * b)) ** 2,
    'robust': lambda: (-(1 - e) * log_sigma(h) + e * log_sigma(-h)) / (1 - 2 * e),
    'exo': lambda: (
      sigma(h) * (log_sigma(h) - math.log(1 - e)) + sigma(-h) * (log_sigma(-h) - math.log(e))
    ),
    'nca': lambda: -log_sigma(b * w) - log_sigma(-b * w) / 2 - log_sigma(-b * r) / 2,
    'bco': lambda: -log_sigma(b * w) - log_sigma(-b * r),
    'sppo': lambda: (w - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    'apo_zero': lambda: 1 - sigma(b * w) + sigma(b * r),
    'apo_down': lambda: sigma(b * w) + 1 - sigma(h),
    'discopop': lambda: (1 - mu) * -log_sigma(h) + mu * math.exp(-h),
    'simpo': lambda: -log_sigma(h - config.gamma),
    'cpo': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'orpo': lambda: -b * log_sigma(math.log(odds(w)) - math.log(odds(r))),
  }[config.loss]()


def reference_sum(logprobs, reference, loss_mask, chosen, rejected, config):
  score = lambda row: reference_score(logprobs, reference, loss_mask, row, config)
  return sum(reference_loss(score(w), score(r), config) for w, r in zip(chosen, rejected))


def inputs(seed=0, B=5, T=4):
  """Log-probs of the policy and of the reference, and loss mask; NaN on padding."""
  rng = np.random.default_rng(seed)
  loss_mask = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(float)
  nan_padded = lambda x: np.where(loss_mask > 0, x, np.nan)
  logprobs = -rng.exponential(1.5, (B, T)) - 0.05
  return nan_padded(logprobs), nan_padded(logprobs + 0.7 * rng.normal(size=(B, T))), loss_mask


CHOSEN, REJECTED = np.array([0, 3, 0]), np.array([1, 2, 4])


# ------------------------------------------------------------------ golden values


@pytest.mark.parametrize('case', CASES)
def test_loss_and_gradient_are_those_of_the_formula(case):
  config = CASES[case]
  logprobs, reference, loss_mask = inputs()
  total = lambda x: reference_sum(x, reference, loss_mask, CHOSEN, REJECTED, config)
  with jax.enable_x64(True):

    def loss(x):
      return pair_losses(
        x,
        jnp.array(reference),
        jnp.array(loss_mask),
        jnp.array(CHOSEN),
        jnp.array(REJECTED),
        config=config,
      ).losses.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.array(logprobs))
  np.testing.assert_allclose(value, total(logprobs), rtol=1e-12)
  expected = numeric_gradient(total, np.nan_to_num(logprobs), step=1e-5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('case', CASES)
def test_float32_is_near_the_formula(case):
  logprobs, reference, loss_mask = inputs(seed=1)
  losses = pair_losses(
    *map(jnp.float32, (logprobs, reference, loss_mask)), CHOSEN, REJECTED, config=CASES[case]
  ).losses
  expected = reference_sum(logprobs, reference, loss_mask, CHOSEN, REJECTED, CASES[case])
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses.sum(), expected, rtol=1e-5)


def test_every_loss_states_its_needs():
  assert set(LOSSES) == set(NEEDS)
  assert not [problem for config in CASES.values() for problem in config.validate()]


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize('eps', [0.0, 0.2])
def test_dpo_at_the_reference_is_log_2_with_a_known_gradient(eps):
  logprobs, _, loss_mask = inputs(seed=2)
  logprobs = jnp.float32(np.nan_to_num(logprobs))
  config = PreferenceConfig(beta=0.3, label_smoothing=eps)
  loss = lambda x: pair_losses(
    x, logprobs, jnp.float32(loss_mask), np.array([0]), np.array([1]), config=config
  ).losses.sum()
  value, gradient = jax.value_and_grad(loss)(logprobs)
  expected = np.zeros_like(loss_mask)
  expected[0], expected[1] = (
    -0.15 * (1 - 2 * eps) * loss_mask[0],
    0.15 * (1 - 2 * eps) * loss_mask[1],
  )
  np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_robust_is_unbiased_under_flipped_labels():
  # with share eps of the labels flipped, the expected robust loss is the clean DPO loss
  x_w, x_l, eps = jnp.float32(1.3), jnp.float32(-0.4), 0.2
  config = PreferenceConfig(loss='robust', label_smoothing=eps)
  mean = (1 - eps) * LOSSES['robust'](x_w, x_l, config=config) + eps * LOSSES['robust'](
    x_l, x_w, config=config
  )
  np.testing.assert_allclose(mean, LOSSES['dpo'](x_w, x_l, config=PreferenceConfig()), rtol=1e-6)


@pytest.mark.parametrize('divergence', preference_losses.DIVERGENCES)
def test_every_divergence_is_0_with_a_known_slope_at_the_reference(divergence):
  function = lambda x: preference_losses.DIVERGENCES[divergence](x, 0.5)
  slope = 0.5 if divergence == 'js' else 1.0
  np.testing.assert_allclose(function(jnp.float32(0.0)), 0.0, atol=1e-7)
  np.testing.assert_allclose(jax.grad(function)(jnp.float32(0.0)), slope, rtol=1e-6)


def test_alpha_near_1_is_reverse_kl_and_0_is_forward_kl():
  x = jnp.linspace(-3, 3, 13)
  at = lambda name, alpha: preference_losses.DIVERGENCES[name](x, alpha)
  np.testing.assert_allclose(at('alpha', 0.999), x, atol=6e-3)
  np.testing.assert_allclose(at('alpha', 0.0), at('forward_kl', None), rtol=1e-6)


def test_log_odds_are_accurate_at_both_ends():
  x = np.array([-1e-7, -1e-3, -0.5, -0.6931, -0.6932, -5.0, -80.0])
  expected = [logprob - math.log(-math.expm1(logprob)) for logprob in x]
  np.testing.assert_allclose(
    preference_losses.log_odds(jnp.float32(x)), expected, rtol=2e-6, atol=1e-6
  )


# ------------------------------------------------------------------ invariances


def sums_of(case, logprobs, reference, loss_mask, chosen, rejected):
  """The sum over the pairs, their number, and the gradient, float64."""

  def loss(x):
    pairs = pair_losses(
      x,
      jnp.array(reference),
      jnp.array(loss_mask),
      jnp.array(chosen, int),
      jnp.array(rejected, int),
      config=CASES[case],
    )
    sums = over_pairs(pairs.losses, pairs.present)
    return sums.total, sums.weight

  with jax.enable_x64(True):
    (total, weight), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array(logprobs))
    return float(total), float(weight), np.asarray(gradient)


@pytest.mark.full
@settings(max_examples=10, deadline=None)
@given(strategies.integers(0, 10**6), strategies.sampled_from(sorted(CASES)))
def test_padding_order_and_cuts_change_nothing(seed, case):
  rng = np.random.default_rng(seed)
  logprobs, reference, loss_mask = inputs(seed)
  chosen, rejected = CHOSEN, REJECTED
  total, count, gradient = sums_of(case, logprobs, reference, loss_mask, chosen, rejected)
  # columns and a row of padding, and pairs of it
  pad = lambda x, value: np.pad(x, [(0, 1), (0, 1)], constant_values=value)
  padded = sums_of(
    case,
    pad(logprobs, np.nan),
    pad(reference, np.nan),
    pad(loss_mask, 0.0),
    [*chosen, -1, 5],
    [*rejected, -1, 0],
  )
  np.testing.assert_allclose(padded[:2], (total, count), rtol=1e-9)
  np.testing.assert_allclose(padded[2][:5, :4], gradient, rtol=1e-9, atol=1e-15)
  assert not padded[2][5:].any() and not padded[2][:, 4:].any()
  # rows in another order
  order = rng.permutation(5)
  place = np.argsort(order)
  permuted = sums_of(
    case, logprobs[order], reference[order], loss_mask[order], place[chosen], place[rejected]
  )
  np.testing.assert_allclose(permuted[:2], (total, count), rtol=1e-9)
  np.testing.assert_allclose(permuted[2][place], gradient, rtol=1e-9, atol=1e-15)
  # pairs in two parts
  parts = [
    sums_of(case, logprobs, reference, loss_mask, chosen[cut], rejected[cut])
    for cut in (slice(0, 1), slice(1, 3))
  ]
  np.testing.assert_allclose(parts[0][0] + parts[1][0], total, rtol=1e-9)
  np.testing.assert_allclose(parts[0][2] + parts[1][2], gradient, rtol=1e-9, atol=1e-12)
  assert parts[0][1] + parts[1][1] == count == 3


# ------------------------------------------------------------------ extremes


@pytest.mark.full
def test_huge_log_ratios_stay_finite():
  # one token (T = 1), log-ratios of +-1e4 on both sides, a masked row, a pair of padding
  reference = jnp.array([[-1.0], [-1.0], [jnp.nan], [-1.0]])
  loss_mask = jnp.array([[1.0], [1.0], [0.0], [1.0]])
  chosen, rejected = jnp.array([0, 2, 3, -1]), jnp.array([1, 0, 0, -1])
  offenders = []
  for case, shift in itertools.product(CASES, (1e4, -1e4)):

    def loss(x):
      pairs = pair_losses(x, reference, loss_mask, chosen, rejected, config=CASES[case])
      return over_pairs(pairs.losses, pairs.present).total, pairs.present

    logprobs = jnp.array([[shift], [-shift], [jnp.nan], [0.0]])
    (value, present), gradient = jax.value_and_grad(loss, has_aux=True)(logprobs)
    assert present.tolist() == [1, 0, 1, 0]
    if not (np.isfinite(value) and np.isfinite(gradient).all() and gradient[2] == 0):
      offenders.append((case, shift, value, gradient))
  assert not offenders
