"""Kernels against the plain products, emulated on a CPU, and that they lower for accelerators."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.models import kernels
from rft_jax.models.attention_rule import ATTENTION_OUTPUT, SharedPrefix, batched

KERNELS = {
  'cudnn': functools.partial(kernels.cudnn, implementation='xla'),  # its arithmetic
  'pallas': functools.partial(kernels.pallas, interpret=True),
  'splash': functools.partial(kernels.splash, interpret=True),
}


def _inputs(P=3, G=2, T=7, S=5, K=2, M=3, H=8, dtype=jnp.float32):
  """q, k, v, prefix.k, prefix.v; lengths of 0, all and between; segment_starts of packed rows."""
  keys = jax.random.split(jax.random.key(0), 5)
  shapes = ((P * G, T, K, M, H), *2 * [(P * G, T, K, H)], *2 * [(P, S, K, H)])
  arrays = [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes)]
  lengths = jnp.array([0, S, S // 2], jnp.int32)[:P]
  segment_starts = (jnp.arange(T, dtype=jnp.int32) // 3 * 3)[None] * (jnp.arange(P * G) % 2)[
    :, None
  ]
  return arrays, lengths, segment_starts


def _value_and_gradient(implementation, arrays, lengths, segment_starts):
  def f(q, k, v, *prefix):
    prefix = SharedPrefix(*prefix, lengths) if prefix else None
    out = implementation(q, k, v, prefix, segment_starts)
    weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return (out * weights).sum(), out

  gradients, out = jax.jit(jax.grad(f, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)
  return out, *gradients


def _assert_close(computed, expected, atol=2e-5):
  for x, y in zip(computed, expected, strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_allclose(np.float32(x), np.float32(y), atol=atol)


@pytest.mark.parametrize('name', KERNELS)
def test_a_kernel_equals_the_plain_products_in_value_and_gradient(name):
  inputs = _inputs()
  _assert_close(_value_and_gradient(KERNELS[name], *inputs), _value_and_gradient(batched, *inputs))


@pytest.mark.full
@pytest.mark.parametrize('name', KERNELS)
def test_a_kernel_needs_no_prefix(name):
  arrays, _, segment_starts = _inputs()
  _assert_close(
    _value_and_gradient(KERNELS[name], arrays[:3], None, segment_starts),
    _value_and_gradient(batched, arrays[:3], None, segment_starts),
  )


@pytest.mark.full
@pytest.mark.parametrize('name', KERNELS)
def test_a_kernel_equals_the_plain_products_over_several_blocks(name):
  # 'pallas': 520 queries (T * M) in blocks of 64, 260 own and 70 prefix keys in blocks of 32;
  # 'splash': blocks of 128, 3 of queries, 1 + 3 of keys, of which a query's block runs 2, 3 or 4
  arrays, _, _ = _inputs(P=1, G=1, T=260, S=70, K=1, M=2)
  inputs = arrays, jnp.array([67], jnp.int32), jnp.maximum(jnp.arange(260) - 150, 0)[None]
  _assert_close(_value_and_gradient(KERNELS[name], *inputs), _value_and_gradient(batched, *inputs))


@pytest.mark.full
@pytest.mark.parametrize('name', KERNELS)
def test_a_kernel_takes_bfloat16(name):
  inputs = _inputs(H=16, dtype=jnp.bfloat16)  # 1 / sqrt(16): scaling rounds nothing
  computed, expected = (_value_and_gradient(f, *inputs) for f in (KERNELS[name], batched))
  _assert_close(computed, expected, atol=0.025)  # each is within 0.0125 of the float32 result


@pytest.mark.full
@pytest.mark.parametrize('name', KERNELS)
def test_a_fully_masked_query_gives_0_and_has_no_gradient(name):
  arrays, _, segment_starts = _inputs(P=2)
  lengths = jnp.array([0, 3], jnp.int32)
  segment_starts = (
    segment_starts.at[0, 2].set(9).at[1].set(9).at[2, 1].set(9)
  )  # the last attends to its prefix
  out, *gradients = _value_and_gradient(KERNELS[name], arrays, lengths, segment_starts)
  assert all(np.isfinite(x).all() for x in (out, *gradients))
  assert not out[0, 2].any() and not out[1].any() and out[2, 1].all()
  assert not any(gradients[i][1].any() for i in range(3)) and not gradients[0][0, 2].any()
  _assert_close((out, *gradients), _value_and_gradient(batched, arrays, lengths, segment_starts))


@pytest.mark.parametrize('name', ['pallas', 'splash'])
def test_rematerialisation_can_save_the_output_of_a_kernel(name):
  arrays, lengths, segment_starts = _inputs()

  def f(*arrays):
    prefix = SharedPrefix(*arrays[3:], lengths)
    return (KERNELS[name](*arrays[:3], prefix, segment_starts) ** 2).sum()

  def calls(policy):
    gradient = jax.grad(jax.checkpoint(f, policy=policy), argnums=range(5))
    return _pallas_calls(jax.jit(gradient).trace(*arrays).jaxpr.jaxpr)

  backward = {'pallas': 0, 'splash': 2}[name]
  policies = jax.checkpoint_policies
  assert calls(policies.nothing_saveable) == 2 + backward
  assert calls(policies.save_only_these_names(ATTENTION_OUTPUT)) == 1 + backward


def _pallas_calls(jaxpr):
  """Counts pallas_calls, except in a jit without results: XLA drops that one, JAX does not."""
  inner = [
    sub
    for equation in jaxpr.eqns
    if equation.primitive.name != 'pallas_call' and equation.outvars
    for sub in jax.extend.core.jaxprs_in_params(equation.params)
  ]
  return sum(equation.primitive.name == 'pallas_call' for equation in jaxpr.eqns) + sum(
    map(_pallas_calls, inner)
  )


@pytest.mark.parametrize(
  'name, platform, dtype',
  [
    ('pallas', 'cuda', jnp.float32),
    ('pallas', 'cuda', jnp.bfloat16),
    ('splash', 'tpu', jnp.bfloat16),
  ],
)
def test_a_kernel_lowers_for_its_accelerator(name, platform, dtype):
  f = functools.partial(getattr(kernels, name), interpret=False)
  arrays, lengths, segment_starts = _inputs(T=70, S=40, H=64, dtype=dtype)
  g = lambda *arrays: _value_and_gradient(f, arrays, lengths, segment_starts)
  text = jax.jit(g).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
  assert {'cuda': 'triton', 'tpu': 'tpu_custom_call'}[platform] in text
