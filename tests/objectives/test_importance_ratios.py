"""Importance ratios against loops in float64, their gradients, and masked positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import importance_ratios

LEVELS = tuple(importance_ratios.LEVELS)


def example(seed, lengths=(4, 1, 0, 6), T=6, spread=0.3):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(1.5, (len(lengths), T)) - 0.05
  old = logprobs + rng.normal(0, spread, logprobs.shape)
  mask = np.arange(T) < np.array(lengths)[:, None]
  mask[-1, 2] = False  # a tool token between trainable ones
  return logprobs.astype(np.float32), old.astype(np.float32), mask.astype(np.float32)


def reference_ratios(level, logprobs, constant, old, mask):
  return np.array(
    [
      [1.0 if r is None else r for r in reference.ratio(level, *row)]
      for row in zip(logprobs, constant, old, mask)
    ]
  )


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('level', LEVELS)
def test_values(level, jit):
  logprobs, old, mask = example(0)
  function = importance_ratios.LEVELS[level]
  ratios = (jax.jit(function) if jit else function)(logprobs, old, mask)
  expected = reference_ratios(level, *map(np.float64, (logprobs, logprobs, old)), mask)
  np.testing.assert_allclose(np.asarray(ratios)[mask > 0], expected[mask > 0], rtol=3e-6)
  assert ratios.dtype == jnp.float32


@pytest.mark.parametrize('level', LEVELS)
def test_gradients(level):
  logprobs, old, mask = example(1)
  weight = np.random.default_rng(2).normal(size=mask.shape) * mask
  gradient = jax.grad(lambda x: (importance_ratios.LEVELS[level](x, old, mask) * weight).sum())(
    logprobs
  )
  constant, old = np.float64(logprobs), np.float64(old)
  expected = reference.gradient(
    lambda x: (reference_ratios(level, x, constant, old, mask) * weight).sum(), constant
  )
  np.testing.assert_allclose(gradient, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('level', LEVELS)
def test_old_log_probs_are_constants(level):
  logprobs, old, mask = example(3)
  gradient = jax.grad(lambda x: importance_ratios.LEVELS[level](logprobs, x, mask).sum())(old)
  assert not np.asarray(gradient).any()


@pytest.mark.parametrize('level', LEVELS)
def test_the_same_policy_has_ratio_exactly_one(level):
  logprobs, _, mask = example(4)
  assert (np.asarray(importance_ratios.LEVELS[level](logprobs, logprobs, mask)) == 1).all()


@pytest.mark.parametrize('level', LEVELS)
def test_nan_outside_the_mask_is_never_read(level):
  logprobs, old, mask = example(5)
  function = lambda x, y: jnp.where(
    mask > 0, importance_ratios.LEVELS[level](x, y, mask), 0.0
  ).sum()
  expected = jax.value_and_grad(function)(logprobs, old)
  with_nan = jax.value_and_grad(function)(
    np.where(mask > 0, logprobs, np.nan), np.where(mask > 0, old, np.nan)
  )
  for a, b in zip(expected, with_nan):
    np.testing.assert_array_equal(a, b)


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(LEVELS), st.integers(0, 1000), st.permutations(range(4)), st.sampled_from((0, 3))
)
def test_padding_and_the_order_of_rows_change_nothing(level, seed, order, extra):
  logprobs, old, mask = example(seed)
  order = np.array(order)
  wide = [np.pad(x[order], ((0, 0), (0, extra))) for x in (logprobs, old, mask)]
  padded = np.asarray(importance_ratios.LEVELS[level](*wide))[:, : mask.shape[1]]
  expected = np.asarray(importance_ratios.LEVELS[level](logprobs, old, mask))[order]
  np.testing.assert_allclose(padded, expected, rtol=1e-6)


@pytest.mark.parametrize('level', LEVELS)
@pytest.mark.parametrize('log_ratio', [1e4, -1e4])
def test_extreme_ratios_stay_finite(level, log_ratio):
  old = np.zeros((2, 3), np.float32)
  logprobs = np.full((2, 3), log_ratio, np.float32)
  mask = np.array([[1, 1, 1], [0, 0, 0]], np.float32)
  value, gradient = jax.value_and_grad(
    lambda x: importance_ratios.LEVELS[level](x, old, mask).sum()
  )(logprobs)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_a_sequence_ratio_is_the_geometric_mean_and_the_product_its_power():
  logprobs, old, mask = example(6)
  lengths = mask.sum(1, keepdims=True)
  sequence, product, token = (
    np.asarray(importance_ratios.LEVELS[name](logprobs, old, mask))
    for name in ('sequence', 'product', 'token')
  )
  np.testing.assert_allclose(sequence**lengths, product, rtol=1e-5)
  np.testing.assert_allclose(np.where(mask > 0, token, 1).prod(1), product[:, 0], rtol=1e-5)


def test_a_single_token_has_one_ratio_at_every_level():
  logprobs, old = np.array([[-1.0]], np.float32), np.array([[-1.5]], np.float32)
  for level in ('token', 'sequence', 'sequence_token', 'product'):
    np.testing.assert_allclose(
      importance_ratios.LEVELS[level](logprobs, old, np.ones((1, 1))), [[np.exp(0.5)]], rtol=1e-6
    )


def test_shapes_that_differ_raise():
  with pytest.raises(ValueError, match=r'\(1, 2\).*\(1, 3\)'):
    importance_ratios.token(jnp.zeros((1, 2)), jnp.zeros((1, 3)), jnp.ones((1, 2)))


# ------------------------------------------------------------------ reasoning steps


def test_the_ratio_of_a_step_is_that_of_its_tokens_as_a_sequence():
  logprobs, old, mask = example(6)
  steps = np.array([[0, 0, 1, 1, 2, 2]] * 4, np.int32)
  ratios = np.asarray(importance_ratios.reasoning_step(logprobs, old, mask, steps))
  for b in range(4):
    for number in range(3):
      tokens = (steps[b] == number) & (mask[b] > 0)
      if tokens.any():
        delta = np.float64(logprobs[b, tokens]) - np.float64(old[b, tokens])
        np.testing.assert_allclose(ratios[b, tokens], np.exp(delta.mean()), rtol=3e-6)


def test_one_step_is_a_sequence_and_a_step_for_each_token_is_a_token():
  logprobs, old, mask = example(7)
  whole, each = np.zeros(mask.shape, np.int32), np.tile(np.arange(6, dtype=np.int32), (4, 1))
  for steps, level in ((whole, 'sequence'), (each, 'token')):
    gradient = lambda f: jax.grad(lambda x: (f(x) * mask).sum())(logprobs)
    by_step = lambda x, steps=steps: importance_ratios.reasoning_step(x, old, mask, steps)
    by_level = lambda x, level=level: importance_ratios.LEVELS[level](x, old, mask)
    np.testing.assert_allclose(by_step(logprobs) * mask, by_level(logprobs) * mask, rtol=3e-6)
    np.testing.assert_allclose(gradient(by_step), gradient(by_level), rtol=3e-6, atol=1e-7)


def test_the_ratio_of_a_step_reads_nothing_outside_the_mask():
  logprobs, old, mask = example(8)
  steps = np.array([[0, 0, 1, 1, 2, 2]] * 4, np.int32)
  value = lambda x, y, s: (
    jnp.where(mask > 0, importance_ratios.reasoning_step(x, y, mask, s), 0.0)
  ).sum()
  with_nan = np.where(mask > 0, logprobs, np.nan), np.where(mask > 0, old, np.nan)
  odd_steps = np.where(mask > 0, steps, 99)
  assert value(*with_nan, odd_steps) == value(logprobs, old, steps)
  np.testing.assert_array_equal(
    jax.grad(value)(*with_nan, odd_steps), jax.grad(value)(logprobs, old, steps)
  )
