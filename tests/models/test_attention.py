"""Attention: each implementation against NumPy in value and gradient, and which is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.models import attention, attention_rule
from rft_jax.models.attention_rule import SharedPrefix

AVAILABLE = attention.available_implementations(jnp.float32, 8)


@pytest.mark.parametrize('chunk_scores', [1, 10**6])
@pytest.mark.parametrize('implementation', AVAILABLE)
def test_attend_equals_numpy_on_each_row(implementation, chunk_scores, monkeypatch):
  monkeypatch.setattr(attention_rule, 'MAX_CHUNK_SCORES', chunk_scores)
  rng = np.random.default_rng(0)
  P, G, T, S, K, M, H = 2, 2, 3, 5, 2, 3, 4
  q = rng.normal(size=(P * G, T, K, M, H)).astype(np.float32)
  k, v = rng.normal(size=(2, P * G, T, K, H)).astype(np.float32)
  prefix_k, prefix_v = rng.normal(size=(2, P, S, K, H)).astype(np.float32)
  lengths = np.array([0, 4], np.int32)
  prefix = SharedPrefix(prefix_k, prefix_v, lengths)
  segment_starts = np.array([[0, 0, 0], [0, 1, 1], [0, 0, 2], [0, 1, 2]])
  attended = np.array(
    attention.attend(q, k, v, prefix, segment_starts, implementation=implementation)
  )
  alone = np.array(attention.attend(q, k, v, implementation=implementation))
  for b, t, kv, m in np.ndindex(P * G, T, K, M):
    p, own = b // G, slice(segment_starts[b, t], t + 1)
    keys = np.concatenate([prefix_k[p, : lengths[p], kv], k[b, own, kv]])
    values = np.concatenate([prefix_v[p, : lengths[p], kv], v[b, own, kv]])
    scores = np.exp(keys @ q[b, t, kv, m] / np.sqrt(H))
    np.testing.assert_allclose(attended[b, t, kv, m], scores @ values / scores.sum(), atol=1e-5)
    scores = np.exp(k[b, : t + 1, kv] @ q[b, t, kv, m] / np.sqrt(H))
    np.testing.assert_allclose(
      alone[b, t, kv, m], scores @ v[b, : t + 1, kv] / scores.sum(), atol=1e-5
    )


@pytest.mark.full
@pytest.mark.parametrize('implementation', sorted(set(AVAILABLE) - {'batched'}))
def test_every_implementation_has_the_gradient_of_the_plain_one(implementation, monkeypatch):
  monkeypatch.setattr(attention_rule, 'MAX_CHUNK_SCORES', 100)
  q = jax.random.normal(jax.random.key(0), (6, 4, 2, 3, 8))
  k, v = jax.random.normal(jax.random.key(1), (2, 6, 4, 2, 8))
  prefix_k, prefix_v = jax.random.normal(jax.random.key(2), (2, 3, 5, 2, 8))
  segment_starts = jnp.array([[0, 1, 1, 3]] * 6)

  def gradient(implementation):
    def f(q, k, v, prefix_k, prefix_v):
      prefix = SharedPrefix(prefix_k, prefix_v, jnp.array([5, 0, 3]))
      out = attention.attend(q, k, v, prefix, segment_starts, implementation=implementation)
      return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()

    return jax.grad(f, argnums=range(5))(q, k, v, prefix_k, prefix_v)

  for computed, expected in zip(gradient(implementation), gradient('batched')):
    np.testing.assert_allclose(computed, expected, atol=1e-5)


@pytest.mark.full
def test_a_fully_masked_row_is_finite_in_value_and_gradient():
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 3, 2, 1, 4))
  k, v = k[:, :, :, 0], v[:, :, :, 0]
  prefix = SharedPrefix(k[:1], v[:1], jnp.zeros(1, jnp.int32))
  nothing = jnp.full((2, 3), 9)

  def f(q, k, v):
    return (attention.attend(100 * q, k, v, prefix, nothing) ** 2).sum()

  gradients = jax.grad(f, argnums=(0, 1, 2))(q, k, v)
  assert np.isfinite(f(q, k, v)) and all(np.isfinite(g).all() for g in gradients)
  assert not gradients[0].any()


def test_large_scores_neither_overflow_nor_lose_the_prefix():
  ones = jnp.ones((1, 1, 1, 1))
  prefix = SharedPrefix(300 * ones, 5 * ones, jnp.ones(1, jnp.int32))
  out = attention.attend(10 * ones[..., None], 299.9 * ones, ones, prefix)
  weight = 1 / (1 + np.exp(-1.0))  # scores 3000 and 2999: a softmax over 1 and 0
  np.testing.assert_allclose(float(out.squeeze()), 5 * weight + 1 - weight, rtol=1e-3)


def test_an_implementation_that_cannot_run_here_is_an_error_that_lists_the_others():
  q, k = jnp.zeros((2, 3, 2, 3, 8)), jnp.zeros((2, 3, 2, 8))
  with pytest.raises(
    ValueError,
    match=r"'cudnn' does not run here \(cpu, float32, head_dim 8\), "
    r"need one of \('batched', 'chunked', 'pallas', 'splash'\)",
  ):
    attention.attend(q, k, k, implementation='cudnn')


@pytest.mark.parametrize(
  'backend, capability, devices, dtype, head_dim, expected',
  [
    ('cpu', None, 8, 'bfloat16', 64, 'chunked'),
    ('gpu', '9.0', 1, 'bfloat16', 128, 'cudnn'),
    ('gpu', '8.0', 1, 'float16', 64, 'cudnn'),
    ('gpu', '9.0', 8, 'bfloat16', 64, 'batched'),
    ('gpu', '9.0', 1, 'float32', 64, 'batched'),
    ('gpu', '9.0', 1, 'bfloat16', 256, 'batched'),
    ('gpu', '9.0', 1, 'bfloat16', 20, 'batched'),
    ('gpu', '7.5', 1, 'float16', 64, 'batched'),
    ('gpu', 'gfx942', 1, 'bfloat16', 64, 'batched'),
    ('tpu', None, 1, 'bfloat16', 64, 'splash'),
    ('tpu', None, 1, 'float32', 64, 'batched'),
    ('tpu', None, 4, 'bfloat16', 64, 'batched'),
  ],
)
def test_auto_depends_on_the_backend(
  backend, capability, devices, dtype, head_dim, expected, monkeypatch
):
  class Device:
    compute_capability = capability

  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  monkeypatch.setattr(jax, 'devices', lambda: [Device] * devices)
  assert attention.select_implementation('auto', dtype, head_dim) == expected
