"""The attention rule: each implementation against NumPy on each row, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.models import attention

AVAILABLE = attention.available(jnp.float32, 8)


@pytest.mark.parametrize('at_once', [1, 10**6])
@pytest.mark.parametrize('implementation', AVAILABLE)
def test_attend_equals_numpy_on_each_row(implementation, at_once, monkeypatch):
  monkeypatch.setattr(attention, 'SCORES_AT_ONCE', at_once)
  rng = np.random.default_rng(0)
  P, G, T, S, K, M, H = 2, 2, 3, 5, 2, 3, 4
  q = rng.normal(size=(P * G, T, K, M, H)).astype(np.float32)
  k, v = rng.normal(size=(2, P * G, T, K, H)).astype(np.float32)
  prefix_k, prefix_v = rng.normal(size=(2, P, S, K, H)).astype(np.float32)
  lengths = np.array([0, 4], np.int32)
  prefix = attention.SharedPrefix(prefix_k, prefix_v, lengths)
  begins = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 2], [0, 1, 2]])
  found = np.array(attention.attend(q, k, v, prefix, begins, implementation=implementation))
  alone = np.array(attention.attend(q, k, v, implementation=implementation))
  for b, t, kv, m in np.ndindex(P * G, T, K, M):
    p, own = b // G, slice(begins[b, t], t + 1)
    keys = np.concatenate([prefix_k[p, : lengths[p], kv], k[b, own, kv]])
    values = np.concatenate([prefix_v[p, : lengths[p], kv], v[b, own, kv]])
    scores = np.exp(keys @ q[b, t, kv, m] / np.sqrt(H))
    np.testing.assert_allclose(found[b, t, kv, m], scores @ values / scores.sum(), atol=1e-5)
    scores = np.exp(k[b, : t + 1, kv] @ q[b, t, kv, m] / np.sqrt(H))
    np.testing.assert_allclose(
      alone[b, t, kv, m], scores @ v[b, : t + 1, kv] / scores.sum(), atol=1e-5
    )


@pytest.mark.parametrize('implementation', sorted(set(AVAILABLE) - {'batched'}))
def test_every_implementation_has_the_gradient_of_the_plain_one(implementation, monkeypatch):
  monkeypatch.setattr(attention, 'SCORES_AT_ONCE', 100)
  q = jax.random.normal(jax.random.key(0), (6, 4, 2, 3, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, 6, 4, 2, 8))
  prefix_k, prefix_v = jax.random.normal(jax.random.key(2), (2, 3, 5, 2, 8))
  begins = jnp.array([[0, 1, 1, 3]] * 6)

  def gradient(implementation):
    def f(q, k, v, prefix_k, prefix_v):
      prefix = attention.SharedPrefix(prefix_k, prefix_v, jnp.array([5, 0, 3]))
      out = attention.attend(q, k, v, prefix, begins, implementation=implementation)
      return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

    return jax.grad(f, argnums=range(5))(q, k, v, prefix_k, prefix_v)

  for found, expected in zip(gradient(implementation), gradient('batched')):
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_fully_masked_row_is_finite_in_value_and_gradient():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 3, 2, 1, 4))
  k, v = k[:, :, :, 0], v[:, :, :, 0]
  prefix = attention.SharedPrefix(k[:1], v[:1], jnp.zeros(1, jnp.int32))
  nothing = jnp.full((2, 3), 9)

  def f(q, k, v):
    return (attention.attend(100 * q, k, v, prefix, nothing) ** 2).sum()

  gradients = jax.grad(f, argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(f(q, k, v)) and all(np.isfinite(g).all() for g in gradients)
  assert not gradients[0].any()


def test_large_scores_neither_overflow_nor_lose_the_prefix():
  ones = jnp.ones((1, 1, 1, 1))
  prefix = attention.SharedPrefix(300 * ones, 5 * ones, jnp.ones(1, jnp.int32))
  out = attention.attend(10 * ones[..., None], 299.9 * ones, ones, prefix)
  weight = 1 / (1 + np.exp(-1.0))  # scores 3000 and 2999: a softmax over 1 and 0
  np.testing.assert_allclose(float(out.squeeze()), 5 * weight + 1 - weight, rtol=1e-3)
