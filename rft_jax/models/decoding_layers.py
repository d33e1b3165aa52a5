"""The decoder's layers arranged for decoding: joined projections, compute dtype or int8 kernels.

Each layer has arrays of its own: a slice out of the stacked ones would be copied for every token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.models import rotary
from rft_jax.models.blocks import RMSNorm
from rft_jax.models.decoder import Decoder
from rft_jax.models.precision import precision_for

QUANTIZATIONS = ('none', 'int8')


class Kernel(NamedTuple):
  """A linear map x @ (scale * weight) + bias."""

  weight: jax.Array  # [in, ...out], in the compute dtype, or int8
  bias: jax.Array | None  # [...out]
  scale: jax.Array | None = None  # f32[...out], of an int8 weight

  def __call__(self, x):
    """[rows, ...in] -> [rows, ...out], in x's dtype."""
    weight = self.weight.astype(x.dtype)  # exact from int8, also to bfloat16
    y = jax.lax.dot_general(
      x.reshape(len(x), -1),
      weight,
      (((1,), (0,)), ((), ())),
      precision=precision_for(x.dtype),
      preferred_element_type=None if self.scale is None else jnp.float32,
    )
    y = y if self.scale is None else (self.scale * y).astype(x.dtype)
    return y if self.bias is None else y + self.bias.astype(x.dtype)

  def quantized(self):
    """Returns the map rounded to int8: for each output, 127 equal steps to its largest weight."""
    weight = self.weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weight).max(0), 1e-30) / 127
    return Kernel(jnp.round(weight / scale).astype(jnp.int8), self.bias, scale)


class Layer(NamedTuple):
  """A Block with the kernels that have the same input joined: fewer and wider products.

  They are joined on an axis of their own, so that the mesh axis 'tensor' still splits K and F.
  """

  attention_norm: RMSNorm
  qkv: Kernel  # [D, K, M + 2, H]: for each key-value head its queries, then its key and its value
  q_norm: RMSNorm | None
  k_norm: RMSNorm | None
  output: Kernel  # [N * H, D]
  mlp_norm: RMSNorm
  gate_up: Kernel  # [D, 2, F]
  down: Kernel  # [F, D]

  def heads(self, x, rope):
    """x [rows, D] -> q [rows, K, M, H], k and v [rows, K, H]; rope: of one position a row."""
    y = self.qkv(self.attention_norm(x))
    q, k, v = y[:, :, :-2], y[:, :, -2], y[:, :, -1]
    if self.q_norm is not None:
      q, k = self.q_norm(q), self.k_norm(k)
    return (
      rotary.rotate(q.reshape(len(x), 1, -1, q.shape[-1]), rope).reshape(q.shape),
      rotary.rotate(k[:, None], rope)[:, 0],
      v,
    )

  def finish(self, x, attended):
    """x [rows, D], attended [rows, K, M, H] -> the layer's output [rows, D]."""
    x = x + self.output(attended)
    gate_up = self.gate_up(self.mlp_norm(x))
    return x + self.down(jax.nn.silu(gate_up[:, 0]) * gate_up[:, 1])


def layers_of(model: Decoder, quantization='none') -> tuple[Layer, ...]:
  """Returns the L blocks of a model, each with arrays of its own, kernels in the compute dtype.

  Kernels are cast at use anyway, so results are the same; but in bfloat16 a decoding loop reads
  half the bytes. Not for training: bfloat16 weights lose small updates.

  With quantization 'int8' the kernels are rounded, to half the bytes of bfloat16. That is another
  policy, close to the model's; embedding, norms, biases and head are the model's own.
  """
  config = model.config
  D, K, H, dtype = config.dim, config.kv_heads, config.head_dim, config.dtype
  M = config.heads // K

  def kernel(linears, shapes, axis):
    """Joins linear maps, their outputs in the given shapes, on an axis of these."""
    join = lambda arrays: jnp.concatenate(
      [array[...].reshape(-1, *shape) for array, shape in zip(arrays, shapes)], axis
    )
    weight = join([linear.kernel for linear in linears])
    bias = None
    if linears[0].bias is not None:
      bias = join([linear.bias for linear in linears])[0].astype(dtype)
    if quantization == 'int8':
      return Kernel(weight, bias).quantized()
    return Kernel(weight.astype(dtype), bias)

  def layer(number):
    block = jax.tree.map(lambda leaf: leaf[number], model.blocks)
    attention, mlp = block.attention, block.mlp
    return Layer(
      block.attention_norm,
      kernel((attention.q, attention.k, attention.v), ((K, M, H), (K, 1, H), (K, 1, H)), 2),
      attention.q_norm,
      attention.k_norm,
      kernel((attention.o,), ((D,),), 1),
      block.mlp_norm,
      kernel((mlp.gate, mlp.up), ((1, config.mlp_dim),) * 2, 1),
      kernel((mlp.down,), ((D,),), 1),
    )

  return tuple(map(layer, range(config.layers)))
