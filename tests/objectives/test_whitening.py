"""Whitening against float64 loops over the trainable tokens, and of a batch in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import whitening

B, T = 5, 9  # one shape wherever possible: every other is compiled anew
whiten = jax.jit(whitening.whiten)


def reference_whiten(values, loss_mask):
  trained = [float(v) for v, m in zip(values.ravel(), loss_mask.ravel()) if m > 0]
  mean = sum(trained) / len(trained)
  std = (sum((x - mean) ** 2 for x in trained) / len(trained)) ** 0.5
  return np.where(loss_mask > 0, (np.nan_to_num(values) - mean) / (std + 1e-8), 0.0)


def example(seed):
  """Values and loss mask; one row has no trainable token; NaN outside the mask."""
  rng = np.random.default_rng(seed)
  loss_mask = (rng.uniform(size=(B, T)) < 0.6).astype(np.float32)
  loss_mask[rng.integers(B)] = 0
  values = rng.normal(size=(B, T)).astype(np.float32)
  return np.where(loss_mask > 0, values, np.nan), loss_mask


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.sampled_from([0.0, 100.0]))
def test_whitening_equals_its_formula_over_trainable_tokens(seed, shift):
  values, loss_mask = example(seed)
  values = (values + shift).astype(np.float32)
  # at 100 a float32 has steps of 8e-6, and a mean over 30 tokens is exact to about one of them
  np.testing.assert_allclose(
    whiten(values, loss_mask),
    reference_whiten(values, loss_mask),
    rtol=1e-4,
    atol=1e-4 if shift else 1e-5,
  )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, B - 1))
def test_a_batch_whitened_in_parts_is_whitened_as_a_whole(seed, cut):
  values, loss_mask = example(seed)
  whole = whiten(values, loss_mask)
  parts = [(values[:cut], loss_mask[:cut]), (values[cut:], loss_mask[cut:])]
  batch_moments = functools.reduce(whitening.join, (whitening.moments(*part) for part in parts))
  white = np.concatenate([whitening.whiten(*part, batch_moments) for part in parts])
  np.testing.assert_allclose(white, whole, rtol=1e-5, atol=1e-5)


def test_joining_the_moments_of_no_tokens_changes_nothing():
  values, loss_mask = example(5)
  moments, empty = whitening.moments(values, loss_mask), whitening.moments(values, 0 * loss_mask)
  for joined in (whitening.join(moments, empty), whitening.join(empty, moments)):
    np.testing.assert_allclose(joined, moments, rtol=1e-6)
  assert np.isfinite(whitening.join(empty, empty)[:3]).all()


def test_a_large_mean_does_not_hide_the_std():
  values = np.array([[4096.0, 4097.0, 4098.0, 4099.0]], np.float32)
  white = whitening.whiten(values, np.ones((1, 4)))
  np.testing.assert_allclose(white, [np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)], rtol=1e-6)


def test_equal_values_are_whitened_to_exactly_zero():
  values = np.full((7, 3), 0.1 + 0.2, np.float32)
  assert not whitening.whiten(values, np.ones((7, 3), np.float32)).any()


@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (1, 6), (0, 4)])
def test_one_value_and_all_masked_give_zero(shape):
  ones = np.ones(shape, np.float32)
  assert not whitening.whiten(0.3 * ones, ones).any()
  assert not whitening.whiten(np.nan * ones, 0 * ones).any()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_large_values_stay_finite(size):
  values, loss_mask = example(6)
  assert np.isfinite(whitening.whiten(values * np.float32(size), loss_mask)).all()


def test_whitened_values_are_constants():
  values, loss_mask = (np.nan_to_num(x) for x in example(3))
  assert not jax.grad(lambda x: whitening.whiten(x, loss_mask).sum())(values).any()


def test_shapes_that_differ_raise():
  x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
  for function in (whitening.moments, whitening.whiten):
    with pytest.raises(ValueError, match=r'shapes differ: .*\(2, 3\)'):
      function(x, y)
