"""The clipped value loss against float64 loops over the trainable tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import masked
from rft_jax.objectives.value_loss import value_loss

B, T = 5, 9  # one shape wherever possible: every other is compiled anew


def reference_value_loss(values, old_values, returns, loss_mask, clip):
  losses = np.zeros(np.shape(loss_mask))
  for b, t in zip(*np.nonzero(loss_mask)):
    v, old, target = float(values[b, t]), float(old_values[b, t]), float(returns[b, t])
    clipped = min(max(v, old - clip), old + clip) if clip is not None else v
    losses[b, t] = 0.5 * max((v - target) ** 2, (clipped - target) ** 2)
  return losses


def example(seed):
  """Returns, values and loss mask; one row has no trainable token; NaN outside the mask."""
  rng = np.random.default_rng(seed)
  loss_mask = (rng.uniform(size=(B, T)) < 0.6).astype(np.float32)
  loss_mask[rng.integers(B)] = 0
  arrays = rng.normal(size=(2, B, T)).astype(np.float32)
  return *np.where(loss_mask > 0, arrays, np.nan), loss_mask


compiled_value_loss = jax.jit(value_loss, static_argnames='clip')


@functools.partial(jax.jit, static_argnames='clip')
def value_gradient(values, old_values, returns, loss_mask, clip):
  loss = lambda v: value_loss(v, old_values, returns, loss_mask, clip=clip)[0]
  return jax.grad(lambda v: masked.over_tokens(loss(v), loss_mask).total)(values)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), clip=st.sampled_from([0.2, 1.0, None]))
def test_the_value_loss_and_its_gradient_equal_their_formula(seed, clip):
  returns, values, loss_mask = example(seed)
  old_values = values + np.random.default_rng(seed).normal(size=(B, T)).astype(np.float32)
  loss, is_clipped = compiled_value_loss(values, old_values, returns, loss_mask, clip=clip)
  reference = functools.partial(
    reference_value_loss, old_values=old_values, returns=returns, loss_mask=loss_mask, clip=clip
  )
  np.testing.assert_allclose(loss, reference(values), rtol=1e-5, atol=1e-6)
  assert not is_clipped[loss_mask == 0].any() and (clip is not None or not is_clipped.any())

  gradient = value_gradient(values, old_values, returns, loss_mask, clip=clip)
  step, double = 1e-6, values.astype(np.float64)
  center = reference(double)
  sides = ((center - reference(double - step)) / step, (reference(double + step) - center) / step)
  # the two differ at a kink, where any slope between them is right
  assert (gradient >= np.minimum(*sides) - 1e-5).all()
  assert (gradient <= np.maximum(*sides) + 1e-5).all()


def test_the_value_loss_by_hand():
  # far from the target the clipped value is worse, and stops the gradient; near it does not
  values, old, returns = np.array([[1.0, 1.0, 0.1]]), np.zeros((1, 3)), np.array([[2.0, 0.0, 3.0]])
  loss, is_clipped = value_loss(values, old, returns, np.ones((1, 3)), clip=0.2)
  np.testing.assert_allclose(loss, [[1.8**2 / 2, 0.5, 2.9**2 / 2]], rtol=1e-6)
  assert is_clipped.tolist() == [[True, False, False]]
  gradient = jax.grad(lambda v: value_loss(v, old, returns, np.ones((1, 3)), clip=0.2)[0].sum())(
    jnp.asarray(values)
  )
  np.testing.assert_allclose(gradient, [[0.0, 1.0, -2.9]], rtol=1e-6)
  at_old, _ = value_loss(old, old, returns, np.ones((1, 3)), clip=0.2)
  np.testing.assert_allclose(at_old, returns**2 / 2)


@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (1, 6), (0, 4)])
@pytest.mark.parametrize('trained', [0.0, 1.0])
def test_one_token_and_all_masked_are_finite(shape, trained):
  loss_mask = np.full(shape, trained, np.float32)
  values = jnp.full(shape, 0.3 if trained else jnp.nan)
  loss, gradient = jax.value_and_grad(lambda v: value_loss(v, v, values, loss_mask)[0].sum())(
    values
  )
  assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_large_values_stay_finite(size):
  *_, loss_mask = example(6)
  returns = np.where(loss_mask > 0, -0.1 * size, 0.0)
  loss, gradient = jax.value_and_grad(
    lambda v: value_loss(v, np.zeros((B, T)), returns, loss_mask)[0].sum()
  )(jnp.full((B, T), size))
  assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_shapes_that_differ_raise():
  x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
  with pytest.raises(ValueError, match=r'shapes differ: .*\(2, 3\)'):
    value_loss(x, x, x, y)
