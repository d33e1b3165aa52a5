"""KL estimators and entropy masks against float64 loops, and on small exact distributions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import entropy, importance_ratios, kl, masked

ROW = [-3.0, -0.7, -0.2, 0.0, 0.4, 1.1, 2.5]  # log q - log p


def _value(name, x):
  return {
    'k1': -x,
    'abs': abs(x),
    'k2': x * x / 2,
    'k3': math.exp(x) - x - 1,
    'straight_through': math.exp(x) - x - 1,
  }[name]


# ------------------------------------------------------------------ KL of sampled tokens


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('name', kl.ESTIMATORS)
def test_values_and_gradients(name, jit):
  x = np.array(ROW)
  logprobs = np.float32(-1.5 - x / 2)
  reference_logprobs = np.float32(-1.5 + x / 2)
  x = np.float64(reference_logprobs) - np.float64(logprobs)
  function = jax.jit(kl.ESTIMATORS[name]) if jit else kl.ESTIMATORS[name]
  np.testing.assert_allclose(
    function(logprobs, reference_logprobs), [_value(name, v) for v in x], rtol=3e-6, atol=1e-7
  )
  differentiated = 'k2' if name == 'straight_through' else name
  expected = reference.gradient(
    lambda p: sum(_value(differentiated, q - v) for v, q in zip(p, reference_logprobs)), logprobs
  )
  if name == 'abs':
    expected[ROW.index(0.0)] = 0.0
  found = jax.grad(lambda p: function(p, reference_logprobs).sum())(logprobs)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  of_reference = jax.grad(lambda q: function(logprobs, q).sum())(reference_logprobs)
  assert not np.asarray(of_reference).any()


def test_k3_times_a_live_ratio_has_the_gradient_of_k2_at_every_token():
  logprobs, reference_logprobs = np.float32([[-1.0, -2.0, -0.3]]), np.float32([[-2.0, -1.5, -0.3]])
  mask = np.ones((1, 3), np.float32)

  def scored(p):
    return kl.scored_k3(p, reference_logprobs, importance_ratios.token(p, logprobs, mask)).sum()

  np.testing.assert_allclose(scored(logprobs), kl.k3(logprobs, reference_logprobs).sum())
  np.testing.assert_allclose(
    jax.grad(scored)(logprobs),
    jax.grad(lambda p: kl.k2(p, reference_logprobs).sum())(logprobs),
    rtol=1e-5,
    atol=1e-7,
  )


def test_k3_times_a_ratio_by_finite_differences():
  rng = np.random.default_rng(0)
  p, old, q = (np.float32(-rng.exponential(1.0, (2, 3)) - 0.1) for _ in range(3))
  mask = np.ones((2, 3), np.float32)
  found = jax.grad(lambda p: kl.scored_k3(p, q, importance_ratios.token(p, old, mask)).sum())(p)
  expected = reference.gradient(
    lambda p: float((np.exp(p - old) * (np.exp(q - p) - (q - p) - 1)).sum()), p
  )
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


Q = jax.nn.log_softmax(jnp.array([0.3, -0.2, 1.0, 0.0, -1.0]))
THETA = jnp.array([0.5, 0.1, -0.4, 0.9, 0.0])
SAMPLED_FROM = jax.nn.log_softmax(jnp.array([0.0, 0.4, 0.1, -0.3, 0.2]))


def _reverse(theta):
  p = jax.nn.log_softmax(theta)
  return (jnp.exp(p) * (p - Q)).sum()


def _expected(estimator):
  """Value and gradient of the estimator, averaged over tokens of the policy itself, exactly."""
  probabilities = jnp.exp(jax.nn.log_softmax(THETA))
  return jax.value_and_grad(
    lambda theta: (probabilities * estimator(jax.nn.log_softmax(theta), Q)).sum()
  )(THETA)


@pytest.mark.parametrize(
  'name, unbiased',
  [('k1', True), ('k3', True), ('straight_through', True), ('k2', False), ('abs', False)],
)
def test_which_estimators_have_the_kl_as_their_mean(name, unbiased):
  value, _ = _expected(kl.ESTIMATORS[name])
  assert bool(abs(value - _reverse(THETA)) < 1e-6) == unbiased


@pytest.mark.parametrize('name', ['k2', 'straight_through'])
def test_which_estimators_have_the_gradient_of_the_reverse_kl(name):
  np.testing.assert_allclose(
    _expected(kl.ESTIMATORS[name])[1], jax.grad(_reverse)(THETA), atol=1e-6
  )


def test_k3_has_the_gradient_of_the_forward_kl_and_k1_none():
  forward = jax.grad(lambda t: (jnp.exp(Q) * (Q - jax.nn.log_softmax(t))).sum())(THETA)
  np.testing.assert_allclose(_expected(kl.k3)[1], forward, atol=1e-6)
  np.testing.assert_allclose(_expected(kl.k1)[1], 0, atol=1e-6)


def test_tokens_of_an_older_policy_still_give_the_reverse_kl_with_the_live_ratio():
  def mean(theta):
    p = jax.nn.log_softmax(theta)
    ratio = importance_ratios.token(p[None], SAMPLED_FROM[None], jnp.ones((1, 5)))[0]
    return (jnp.exp(SAMPLED_FROM) * kl.scored_k3(p, Q, ratio)).sum()

  value, gradient = jax.value_and_grad(mean)(THETA)
  np.testing.assert_allclose(value, _reverse(THETA), rtol=1e-5)
  np.testing.assert_allclose(gradient, jax.grad(_reverse)(THETA), atol=1e-6)


@pytest.mark.parametrize('far', [1e4, -1e4, 20.5, -20.5])
@pytest.mark.parametrize('name', kl.ESTIMATORS)
def test_far_policies_stay_finite(name, far):
  value, gradient = jax.value_and_grad(kl.ESTIMATORS[name])(jnp.float32(0.0), jnp.float32(far))
  assert np.isfinite(value) and np.isfinite(gradient)


def test_k3_is_not_clamped_where_the_policy_is_far_above_the_reference():
  value, gradient = jax.value_and_grad(kl.k3)(jnp.float32(0.0), jnp.float32(-1e4))
  assert value == 9999 and abs(gradient - 1) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e4, 1e4, width=32))
def test_k3_is_never_negative(x):
  assert kl.k3(jnp.float32(0), jnp.float32(x)) >= 0


def test_masking_first_keeps_nan_out():
  p, q, mask = np.float32([[-1, np.nan]]), np.float32([[-2, np.nan]]), np.float32([[1, 0]])
  for function in kl.ESTIMATORS.values():
    gradient = jax.grad(
      lambda x: masked.over_tokens(function(masked.only(x, mask), masked.only(q, mask)), mask).total
    )(p)
    assert np.isfinite(gradient).all() and gradient[0, 1] == 0


# ------------------------------------------------------------------ KL over the vocabulary


def test_full_kl_and_its_gradient():
  rng = np.random.default_rng(1)
  logits, other = (np.float32(rng.normal(0, 2, (2, 3, 5))) for _ in range(2))

  def full(x):
    total = []
    for a, b in zip(x.reshape(-1, 5), np.float64(other).reshape(-1, 5)):
      p = [math.exp(v) / sum(math.exp(u) for u in a) for v in a]
      q = [math.exp(v) / sum(math.exp(u) for u in b) for v in b]
      total.append(sum(s * math.log(s / t) for s, t in zip(p, q)))
    return np.array(total).reshape(2, 3)

  np.testing.assert_allclose(jax.jit(kl.full)(logits, other), full(np.float64(logits)), rtol=1e-5)
  np.testing.assert_allclose(
    jax.grad(lambda x: kl.full(x, other).sum())(logits),
    reference.gradient(lambda x: full(x).sum(), logits),
    rtol=2e-5,
    atol=1e-6,
  )
  assert not np.asarray(jax.grad(lambda x: kl.full(logits, x).sum())(other)).any()


def test_full_kl_is_what_k1_estimates():
  np.testing.assert_allclose(kl.full(THETA, Q), _reverse(THETA), rtol=1e-6)
  np.testing.assert_allclose(
    jax.grad(lambda t: kl.full(t, Q))(THETA), jax.grad(_reverse)(THETA), atol=1e-6
  )


@pytest.mark.parametrize('out', [-np.inf, -1e30])
def test_ids_ruled_out_add_nothing(out):
  logits, other = np.float32([0.3, -1.0, out]), np.float32([1.0, 0.0, out])
  value, gradient = jax.value_and_grad(kl.full)(logits, other)
  np.testing.assert_allclose(value, kl.full(logits[:2], other[:2]), rtol=1e-6)
  assert np.isfinite(gradient).all() and gradient[2] == 0


# ------------------------------------------------------------------ entropy


def test_the_coefficient_follows_the_target_and_never_turns():
  steps = [(0.0, 0.1), (0.005, 0.15), (0.01, 0.3), (0.005, 0.2), (0.0, 0.9)]
  found = [entropy.adapt_coefficient(c, h) for c, h in steps]
  np.testing.assert_allclose(
    found, [(0.005, 0.0), (0.01, 0.005), (0.005, 0.0), (0.005, 0.005), (0.0, 0.0)]
  )


def test_the_top_share_of_entropies_is_kept():
  values = np.float32([[5, 1, 9, np.nan], [2, 3, 4, 8]])
  mask = np.float32([[1, 1, 1, 0], [1, 1, 1, 1]])
  for share, kept in (
    (0.2, {8, 9}),
    (1 / 7, {9}),
    (1e-6, {9}),
    (3 / 7, {5, 8, 9}),
    (1.0, {1, 2, 3, 4, 5, 8, 9}),
  ):
    threshold = entropy.entropy_threshold(values, mask, share)
    found = entropy.top_entropy_mask(values, mask, threshold)
    assert set(values[np.asarray(found) > 0].tolist()) == kept


def test_no_token_masks_nothing_and_a_share_out_of_range_is_refused():
  assert entropy.entropy_threshold(np.ones((1, 2)), np.zeros((1, 2)), 0.2) == -np.inf
  assert not entropy.top_entropy_mask(jnp.ones((1, 2)), jnp.zeros((1, 2)), -np.inf).any()
  for share in (0.0, 1.5):
    with pytest.raises(ValueError, match=f'share={share}'):
      entropy.entropy_threshold(np.ones((1, 2)), np.ones((1, 2)), share)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1), st.permutations(range(5)))
def test_the_share_kept_does_not_depend_on_order_or_cut(seed, share, order):
  rng = np.random.default_rng(seed)
  values = np.float32(rng.exponential(size=(5, 6)))
  mask = np.float32(np.arange(6) < rng.integers(0, 7, 5)[:, None])
  threshold = entropy.entropy_threshold(values, mask, share)
  order = np.array(order)
  assert entropy.entropy_threshold(values[order], mask[order], share) == threshold
  kept = sum(
    float(entropy.top_entropy_mask(values[[b]], mask[[b]], threshold).sum()) for b in range(5)
  )
  assert kept == math.ceil(share * mask.sum() - 1e-9)


# ------------------------------------------------------------------ covariance


def _covariance_rows():
  rng = np.random.default_rng(3)
  advantages, logprobs = (
    np.float32(rng.normal(size=(4, 50))),
    np.float32(-rng.exponential(1.5, (4, 50))),
  )
  mask = np.float32(np.arange(50) < np.array([50, 20, 0, 35])[:, None])
  return advantages, logprobs, mask


def test_covariances():
  advantages, logprobs, mask = _covariance_rows()
  found = entropy.covariances(np.where(mask > 0, advantages, np.nan), logprobs, mask)
  chosen = [(b, t) for b in range(4) for t in range(50) if mask[b, t]]
  mean_a = sum(float(advantages[i]) for i in chosen) / len(chosen)
  mean_p = sum(float(logprobs[i]) for i in chosen) / len(chosen)
  for i in chosen:
    np.testing.assert_allclose(
      found[i], (float(advantages[i]) - mean_a) * (float(logprobs[i]) - mean_p)
    )
  assert np.isnan(found[mask == 0]).all()
  np.testing.assert_allclose(
    np.nanmean(found), np.cov(advantages[mask > 0], logprobs[mask > 0], ddof=0)[0, 1]
  )


def test_clip_cov_drops_a_random_share_inside_the_band():
  covariance = entropy.covariances(*_covariance_rows())
  found = entropy.clip_cov_mask(covariance, np.random.default_rng(0), share=0.05)
  dropped = covariance[found == 0]
  assert len(dropped) == math.ceil(0.05 * 105) and ((dropped > 1) & (dropped < 5)).all()
  again = entropy.clip_cov_mask(covariance, np.random.default_rng(0), share=0.05)
  np.testing.assert_array_equal(found, again)
  assert entropy.clip_cov_mask(covariance, np.random.default_rng(0), low=90, high=99).all()


def test_kl_cov_chooses_the_largest():
  covariance = entropy.covariances(*_covariance_rows())
  found = entropy.kl_cov_mask(covariance, share=0.1)
  expected = np.sort(covariance[np.isfinite(covariance)])[-11:]
  np.testing.assert_array_equal(np.sort(covariance[found > 0]), expected)
  assert entropy.kl_cov_mask(covariance).sum() == 1


def test_no_token_has_no_covariance():
  covariance = entropy.covariances(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3)))
  assert not entropy.kl_cov_mask(covariance).any()
  assert entropy.clip_cov_mask(covariance, np.random.default_rng(0)).all()


def test_the_penalty_of_kl_cov():
  old, p = np.float32([[-1, -2, -3, np.nan]]), np.float32([[-1.5, -1, -3, np.nan]])
  mask, chosen = np.float32([[1, 1, 1, 0]]), np.float32([[1, 0, 1, 1]])
  function = lambda x: entropy.kl_cov_penalty(x, old, mask, chosen, coefficient=2.0)
  assert function(p).tolist() == [[1.0, 0.0, 0.0, 0.0]]
  assert jax.grad(lambda x: function(x).sum())(p).tolist() == [[-2.0, 0.0, 0.0, 0.0]]
