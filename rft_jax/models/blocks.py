"""The parts of a transformer layer: RMS norm, linear, attention projections, MLP, and the block.

Each is written for one layer; the decoder stacks L of them by jax.vmap over the constructor.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from rft_jax.models import attention, rotary
from rft_jax.models.config import DecoderConfig
from rft_jax.models.precision import precision_for

INIT_STD = 0.02


def residual_std(config: DecoderConfig) -> float:
  """Returns the initial std of projections into the residual stream, which sums 2 L of them."""
  return INIT_STD / math.sqrt(2 * config.layers)


class RMSNorm(nnx.Module):
  """Scales x to unit root mean square over its last axis, then by scale: [..., D] -> [..., D].

  Zhang and Sennrich 2019, arXiv 1910.07467. Computed in f32; the result has x's dtype.
  """

  def __init__(self, dim, epsilon):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones((dim,)))

  def __call__(self, x):
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.epsilon)
    return (y * self.scale[...]).astype(x.dtype)


class Linear(nnx.Module):
  """x @ kernel + bias, [..., in] -> [..., out], in x's dtype with the weights cast at use."""

  def __init__(self, inputs, outputs, *, bias, std=INIT_STD, rngs):
    self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros((outputs,))) if bias else None

  def __call__(self, x):
    # One row axis, not two: the gradient of the kernel contracts over the rows, and a contraction
    # over two axes made a training step on a CPU a fifth slower.
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.matmul(rows, self.kernel[...].astype(x.dtype), precision=precision_for(x.dtype))
    y = y if self.bias is None else y + self.bias[...].astype(x.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


class Attention(nnx.Module):
  """The projections around attention: q, k, v before it and o after it."""

  def __init__(self, config: DecoderConfig, *, rngs):
    self.config = config
    dim, head_dim = config.dim, config.head_dim
    wide, narrow = config.heads * head_dim, config.kv_heads * head_dim
    self.q = Linear(dim, wide, bias=config.qkv_bias, rngs=rngs)
    self.k = Linear(dim, narrow, bias=config.qkv_bias, rngs=rngs)
    self.v = Linear(dim, narrow, bias=config.qkv_bias, rngs=rngs)
    self.o = Linear(wide, dim, bias=config.output_bias, std=residual_std(config), rngs=rngs)
    self.q_norm = RMSNorm(head_dim, config.norm_epsilon) if config.qk_norm else None
    self.k_norm = RMSNorm(head_dim, config.norm_epsilon) if config.qk_norm else None

  def qkv(self, x, rope):
    """[B, T, D] -> q [B, T, K, M, H] (M = N / K), k and v [B, T, K, H]; q and k rotated."""
    config = self.config
    with jax.named_scope('qkv'):
      q, k, v = (
        linear(x).reshape(*x.shape[:2], -1, config.head_dim) for linear in (self.q, self.k, self.v)
      )
      if config.qk_norm:
        q, k = self.q_norm(q), self.k_norm(k)
      q, k = rotary.rotate(q, rope), rotary.rotate(k, rope)
      return q.reshape(*x.shape[:2], config.kv_heads, -1, config.head_dim), k, v

  def output(self, attended):
    """[B, T, K, M, H] -> [B, T, D]."""
    with jax.named_scope('attention_output'):
      return self.o(attended.reshape(*attended.shape[:2], -1))


class MLP(nnx.Module):
  """The gated unit down(silu(gate(x)) * up(x)), Shazeer 2020, arXiv 2002.05202."""

  def __init__(self, config: DecoderConfig, *, rngs):
    dim, mlp_dim, bias = config.dim, config.mlp_dim, config.mlp_bias
    self.gate = Linear(dim, mlp_dim, bias=bias, rngs=rngs)
    self.up = Linear(dim, mlp_dim, bias=bias, rngs=rngs)
    self.down = Linear(mlp_dim, dim, bias=bias, std=residual_std(config), rngs=rngs)

  def __call__(self, x):
    with jax.named_scope('mlp'):
      return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
  """One layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, config: DecoderConfig, *, rngs):
    self.attention_norm = RMSNorm(config.dim, config.norm_epsilon)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config.dim, config.norm_epsilon)
    self.mlp = MLP(config, rngs=rngs)

  def __call__(self, x, rope, prefix=None, segment_starts=None):
    """Returns (x, (k, v)): the layer's output and the keys and values of its own tokens."""
    q, k, v = self.qkv(x, rope)
    attended = attention.attend(
      q, k, v, prefix, segment_starts, implementation=self.attention.config.attention
    )
    return self.finish(x, attended), (k, v)

  def qkv(self, x, rope):
    return self.attention.qkv(self.attention_norm(x), rope)

  def finish(self, x, attended):
    x = x + self.attention.output(attended)
    return x + self.mlp(self.mlp_norm(x))
