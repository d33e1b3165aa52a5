"""KL estimators against float64 loops, and on small exact distributions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import importance_ratios, kl, masked

ROW = [-3.0, -0.7, -0.2, 0.0, 0.4, 1.1, 2.5]  # log q - log p


def reference_value(name, x):
  return {
    'k1': -x,
    'abs': abs(x),
    'k2': x * x / 2,
    'k3': math.exp(x) - x - 1,
    'straight_through': math.exp(x) - x - 1,
  }[name]


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('name', kl.ESTIMATORS)
def test_values_and_gradients(name, jit):
  x = np.array(ROW)
  logprobs = np.float32(-1.5 - x / 2)
  reference_logprobs = np.float32(-1.5 + x / 2)
  x = np.float64(reference_logprobs) - np.float64(logprobs)
  function = jax.jit(kl.ESTIMATORS[name]) if jit else kl.ESTIMATORS[name]
  np.testing.assert_allclose(
    function(logprobs, reference_logprobs),
    [reference_value(name, v) for v in x],
    rtol=3e-6,
    atol=1e-7,
  )
  differentiated = 'k2' if name == 'straight_through' else name
  expected = reference.gradient(
    lambda p: sum(reference_value(differentiated, q - v) for v, q in zip(p, reference_logprobs)),
    logprobs,
  )
  if name == 'abs':
    expected[ROW.index(0.0)] = 0.0
  gradient = jax.grad(lambda p: function(p, reference_logprobs).sum())(logprobs)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)
  reference_gradient = jax.grad(lambda q: function(logprobs, q).sum())(reference_logprobs)
  assert not np.asarray(reference_gradient).any()


def test_scored_k3_has_the_gradient_of_k2_at_every_token():
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


def test_scored_k3_by_finite_differences():
  rng = np.random.default_rng(0)
  p, old, q = (np.float32(-rng.exponential(1.0, (2, 3)) - 0.1) for _ in range(3))
  mask = np.ones((2, 3), np.float32)
  gradient = jax.grad(lambda p: kl.scored_k3(p, q, importance_ratios.token(p, old, mask)).sum())(p)
  expected = reference.gradient(
    lambda p: float((np.exp(p - old) * (np.exp(q - p) - (q - p) - 1)).sum()), p
  )
  np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-6)


Q = jax.nn.log_softmax(jnp.array([0.3, -0.2, 1.0, 0.0, -1.0]))
THETA = jnp.array([0.5, 0.1, -0.4, 0.9, 0.0])
SAMPLED_FROM = jax.nn.log_softmax(jnp.array([0.0, 0.4, 0.1, -0.3, 0.2]))


def reverse_kl(theta):
  p = jax.nn.log_softmax(theta)
  return (jnp.exp(p) * (p - Q)).sum()


def expected_value_and_gradient(estimator):
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
  value, _ = expected_value_and_gradient(kl.ESTIMATORS[name])
  assert bool(abs(value - reverse_kl(THETA)) < 1e-6) == unbiased


@pytest.mark.parametrize('name', ['k2', 'straight_through'])
def test_which_estimators_have_the_gradient_of_the_reverse_kl(name):
  np.testing.assert_allclose(
    expected_value_and_gradient(kl.ESTIMATORS[name])[1], jax.grad(reverse_kl)(THETA), atol=1e-6
  )


def test_k3_has_the_gradient_of_the_forward_kl_and_k1_none():
  forward = jax.grad(lambda t: (jnp.exp(Q) * (Q - jax.nn.log_softmax(t))).sum())(THETA)
  np.testing.assert_allclose(expected_value_and_gradient(kl.k3)[1], forward, atol=1e-6)
  np.testing.assert_allclose(expected_value_and_gradient(kl.k1)[1], 0, atol=1e-6)


def test_scored_k3_gives_the_reverse_kl_from_tokens_of_an_older_policy():
  def mean(theta):
    p = jax.nn.log_softmax(theta)
    ratio = importance_ratios.token(p[None], SAMPLED_FROM[None], jnp.ones((1, 5)))[0]
    return (jnp.exp(SAMPLED_FROM) * kl.scored_k3(p, Q, ratio)).sum()

  value, gradient = jax.value_and_grad(mean)(THETA)
  np.testing.assert_allclose(value, reverse_kl(THETA), rtol=1e-5)
  np.testing.assert_allclose(gradient, jax.grad(reverse_kl)(THETA), atol=1e-6)


@pytest.mark.parametrize('log_ratio', [1e4, -1e4, 20.5, -20.5])
@pytest.mark.parametrize('name', kl.ESTIMATORS)
def test_large_log_ratios_stay_finite(name, log_ratio):
  value, gradient = jax.value_and_grad(kl.ESTIMATORS[name])(
    jnp.float32(0.0), jnp.float32(log_ratio)
  )
  assert np.isfinite(value) and np.isfinite(gradient)


def test_k3_is_not_clamped_where_the_policy_is_far_above_the_reference():
  value, gradient = jax.value_and_grad(kl.k3)(jnp.float32(0.0), jnp.float32(-1e4))
  assert value == 9999 and abs(gradient - 1) < 1e-6


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e4, 1e4, width=32))
def test_k3_is_never_negative(x):
  assert kl.k3(jnp.float32(0), jnp.float32(x)) >= 0


def test_masking_before_the_estimator_excludes_nan():
  p, q, mask = np.float32([[-1, np.nan]]), np.float32([[-2, np.nan]]), np.float32([[1, 0]])
  for function in kl.ESTIMATORS.values():
    gradient = jax.grad(
      lambda x: (
        masked.over_tokens(
          function(masked.apply_mask(x, mask), masked.apply_mask(q, mask)), mask
        ).total
      )
    )(p)
    assert np.isfinite(gradient).all() and gradient[0, 1] == 0
