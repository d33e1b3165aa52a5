"""The KL penalty in the reward, and its adaptive coefficient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives import kl_penalty

B, T = 5, 9


def example(seed):
  """Rewards, log-probs, reference log-probs and loss mask; NaN outside the mask."""
  rng = np.random.default_rng(seed)
  loss_mask = (rng.uniform(size=(B, T)) < 0.6).astype(np.float32)
  loss_mask[rng.integers(B)] = 0
  arrays = rng.normal(size=(3, B, T)).astype(np.float32)
  return *np.where(loss_mask > 0, arrays, np.nan), loss_mask


def test_the_penalty_is_k1_and_a_constant():
  rewards, logprobs, reference, loss_mask = example(4)
  penalised = kl_penalty.subtract_kl(rewards, logprobs, reference, loss_mask, coefficient=0.05)
  for b in range(B):
    for t in range(T):
      expected = rewards[b, t] - 0.05 * (logprobs[b, t] - reference[b, t]) if loss_mask[b, t] else 0
      np.testing.assert_allclose(penalised[b, t], expected, rtol=1e-5, atol=1e-6)
  gradient = jax.grad(
    lambda x: kl_penalty.subtract_kl(rewards, x, reference, loss_mask, coefficient=0.05).sum()
  )(jnp.asarray(logprobs))
  assert not gradient.any()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_log_ratios_of_10000_stay_finite(size):
  *_, loss_mask = example(6)
  logprobs, reference = np.zeros((B, T), np.float32), np.full((B, T), -size, np.float32)
  rewards = kl_penalty.subtract_kl(
    np.zeros((B, T)), logprobs, reference, loss_mask, coefficient=0.1
  )
  np.testing.assert_allclose(rewards, np.where(loss_mask > 0, -0.1 * size, 0.0), rtol=1e-6)


def test_the_coefficient_follows_the_kl_by_a_fifth_at_most():
  adapt = functools.partial(
    kl_penalty.adapt_kl_coefficient, 0.2, target=6.0, samples=64, horizon=6400
  )
  assert adapt(6.0) == 0.2
  assert adapt(6.6) == pytest.approx(0.2 * 1.001)
  assert adapt(600.0) == adapt(float('inf')) == pytest.approx(0.2 * 1.002)
  assert adapt(-3.0) == pytest.approx(0.2 * 0.998)
  for invalid in ({'target': 0.0}, {'horizon': 1}, {'samples': -1}):
    with pytest.raises(ValueError, match='need a number'):
      adapt(6.0, **invalid)
  with pytest.raises(ValueError, match='measured=nan'):
    adapt(float('nan'))


def test_shapes_that_differ_raise():
  x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
  with pytest.raises(ValueError, match=r'shapes differ: .*\(2, 3\)'):
    kl_penalty.subtract_kl(x, x, y, x, coefficient=1.0)
