"""Decoding: one token of many rows at a time, against keys and values kept from before.

The same numbers as Decoder.completion_hidden, arranged for reading: each layer has arrays of its
own (a slice out of stacked ones is copied on every token), and keys lie with their positions
innermost. Measured on two CPU cores (attention of 4 layers, 32 rows, 128 positions, 4 key-value
heads of 32): keys [N, K, H, T] with values [N, K, T, H] 0.57 ms a token, both [N, K, T, H]
1.03 ms, both [N, T, K, H] 1.40 ms.

Letters beyond those of types.py: N rows that decode side by side, A parts in which a mesh holds
them (1 on one device), Q places for prompts and R rows of a prompt at most, both in each part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.models import attention, rotary
from rft_jax.models.attention import MASKED
from rft_jax.models.blocks import RMSNorm
from rft_jax.models.decoder import Decoder


class KVCache(NamedTuple):
  """Of one layer, in the compute dtype: of N rows' completions, or of A * Q prompts."""

  k: jax.Array  # [N, K, H, T] or [A * Q, K, H, S]
  v: jax.Array  # [N, K, T, H] or [A * Q, K, S, H]


class SlotAssignment(NamedTuple):
  """Which rows complete which prompt. Rows and places are numbered within their part."""

  rows: jax.Array  # i32[A, Q, R], the rows at each place; any number where there is none
  prompt_slots: jax.Array  # i32[A, N / A], q * R + r for each row; any number for a row of no prompt


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
      precision=attention.precision_for(x.dtype),
      preferred_element_type=None if self.scale is None else jnp.float32,
    )
    y = y if self.scale is None else (self.scale * y).astype(x.dtype)
    return y if self.bias is None else y + self.bias.astype(x.dtype)

  def quantized(self):
    """Returns the same map in int8: each output's weights in 127 equal steps to their largest."""
    weight = self.weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(weight).max(0), 1e-30) / 127
    return Kernel(jnp.round(weight / scale).astype(jnp.int8), self.bias, scale)


class Layer(NamedTuple):
  """A Block with the kernels that read the same input joined: fewer and wider products.

  They are joined on an axis of their own, so that 'tensor' still splits K and F.
  """

  attention_norm: RMSNorm
  qkv: Kernel  # [D, K, M + 2, H]: of each key-value head its queries, then its key and its value
  q_norm: RMSNorm | None
  k_norm: RMSNorm | None
  output: Kernel  # [N * H, D]
  mlp_norm: RMSNorm
  gate_up: Kernel  # [D, 2, F]
  down: Kernel  # [F, D]

  def heads(self, x, rope):
    """x [rows, D] -> q [rows, K, M, H], k and v [rows, K, H]; rope: of a position a row."""
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

  Kernels are cast at use anyway, so results stay; but a decoding loop reads half the bytes in
  bfloat16. Not for training: small updates vanish in bfloat16.

  With quantization 'int8' the kernels are rounded, and half as large again. That is another
  policy, near to the model's; embedding, norms, biases and head are the model's own.
  """
  config = model.config
  D, K, H, dtype = config.dim, config.kv_heads, config.head_dim, config.dtype
  M = config.heads // K

  def kernel(linears, shapes, axis):
    """Joins linear maps, their outputs in the given shapes, on an axis of these."""
    join = lambda parts: jnp.concatenate(
      [part[...].reshape(-1, *shape) for part, shape in zip(parts, shapes)], axis
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
    a, mlp = block.attention, block.mlp
    return Layer(
      block.attention_norm,
      kernel((a.q, a.k, a.v), ((K, M, H), (K, 1, H), (K, 1, H)), 2),
      a.q_norm,
      a.k_norm,
      kernel((a.o,), ((D,),), 1),
      block.mlp_norm,
      kernel((mlp.gate, mlp.up), ((1, config.mlp_dim),) * 2, 1),
      kernel((mlp.down,), ((D,),), 1),
    )

  return tuple(map(layer, range(config.layers)))


def empty(config, rows: int, length: int) -> tuple[KVCache, ...]:
  """Returns zeros for `rows` rows of `length` positions, a KeysValues for each layer."""
  K, H = config.kv_heads, config.head_dim
  return tuple(
    KVCache(
      jnp.zeros((rows, K, H, length), config.dtype), jnp.zeros((rows, K, length, H), config.dtype)
    )
    for _ in range(config.layers)
  )


def prefill(
  model: Decoder, layers, prompts: tuple[KVCache, ...], prompt_slots, tokens, offset, *, first: bool
) -> tuple[KVCache, ...]:
  """Reads a stretch of some prompts, and returns prompts with its keys and values written.

  Args:
    prompts: what was read so far, of which the columns before offset are attended to.
    places: i32[A, p], where in `prompts` each stretch belongs; Q: nowhere, it is padding.
    tokens: i32[A, p, C]; what stands beyond a prompt's end leaves garbage that decode() masks.
    offset: i32[], the position of the first of the C columns.
    first: static; True where offset is 0, and nothing stands before.
  """
  A, p, C = tokens.shape
  rope = model.rope(jnp.broadcast_to(offset + jnp.arange(C), (A * p, C)).reshape(-1, 1))
  x = model.embedded(tokens.reshape(-1))
  by_prompt = lambda y: y.reshape(A * p, C, *y.shape[1:])
  written = []
  for layer, kept in zip(layers, prompts):
    rows = jax.tree.map(lambda array: take(array, prompt_slots), kept)
    q, k, v = map(by_prompt, layer.heads(x, rope))
    prefix = (
      None
      if first
      else attention.SharedPrefix(
        rows.k.transpose(0, 3, 1, 2), rows.v.transpose(0, 2, 1, 3), jnp.full(A * p, offset)
      )
    )
    attended = attention.attend(q, k, v, prefix, implementation=model.config.attention)
    x = layer.finish(x, attended.reshape(A * p * C, -1))
    rows = _write(rows, k, v, offset)
    written.append(jax.tree.map(lambda array, new: _put(array, prompt_slots, new), kept, rows))
  return tuple(written)


def decode(
  model: Decoder,
  layers,
  tokens,
  positions,
  completions: tuple[KVCache, ...],
  column,
  mask,
  prompts: tuple[KVCache, ...],
  lengths,
  slot_assignment: SlotAssignment,
):
  """Reads one token of each row; returns (final-normed hidden [N, D], completions).

  Args:
    tokens, positions: i32[N].
    completions: own keys and values; donate them, or each token pays for a copy.
    column: i32[], where the new keys and values are written, the same for every row.
    mask: bool[N, T], the columns that a row may see, `column` among them.
    prompts: of prefill.
    lengths: i32[A * Q], how many columns of each place may be seen.
    members: which rows belong to which place.
  """
  rope = model.rope(positions[:, None])
  x = model.embedded(tokens)
  written = []
  for layer, own, prompt in zip(layers, completions, prompts):
    q, k, v = layer.heads(x, rope)
    own = _write(own, k[:, None], v[:, None], column)
    x = layer.finish(x, attend_one(q, own, mask, prompt, lengths, slot_assignment))
    written.append(own)
  return model.final_norm(x), tuple(written)


def attend_one(q, own: KVCache, mask, prompts: KVCache, lengths, slot_assignment: SlotAssignment):
  """The attention rule of attention.attend for one query of each row, [N, K, M, H] -> the same.

  The keys of a prompt are read once for all its rows: their queries are gathered by prompt, and
  the two blocks join by their maxima and sums, which is exact.
  """
  _, K, M, H = q.shape
  exact = attention.precision_for(q.dtype)

  def einsum(equation, x, y):
    return jnp.einsum(equation, x, y, precision=exact, preferred_element_type=jnp.float32)

  with jax.named_scope('attention'):
    scores = H**-0.5 * einsum('NKMH,NKHT->NKMT', q, own.k)
    scores = jnp.where(mask[:, None, None], scores, MASKED)

    # One axis for all queries of a prompt: products of other forms are slow on a CPU.
    A, Q, R = slot_assignment.rows.shape
    of_prompt = take(q, slot_assignment.rows.reshape(A, Q * R)).reshape(A * Q, R, K, M, H)
    of_prompt = of_prompt.swapaxes(1, 2).reshape(A * Q, K, R * M, H)
    shared = H**-0.5 * einsum('QKXH,QKHS->QKXS', of_prompt, prompts.k)
    seen = (jnp.arange(prompts.k.shape[-1]) < lengths[:, None])[:, None, None]
    shared = jnp.where(seen, shared, MASKED)
    shared_top = shared.max(-1, keepdims=True)
    shared = jnp.exp(shared - shared_top) * seen
    shared_mixed = einsum('QKXS,QKSH->QKXH', shared.astype(prompts.v.dtype), prompts.v)

    def of_row(x):  # [A * Q, K, R * M, _] -> [N, K, M, _]
      x = x.reshape(A * Q, K, R, M, -1).swapaxes(1, 2)
      return take(x.reshape(A * Q * R, K, M, -1), slot_assignment.prompt_slots)

    shared_top = of_row(shared_top)[..., 0]
    top = jnp.maximum(scores.max(-1), shared_top)
    weights = jnp.exp(scores - top[..., None])
    rescale = jnp.exp(shared_top - top)
    total = weights.sum(-1) + of_row(shared.sum(-1, keepdims=True))[..., 0] * rescale
    mixed = einsum('NKMT,NKTH->NKMH', weights.astype(own.v.dtype), own.v)
    mixed += of_row(shared_mixed) * rescale[..., None]
    return (mixed / total[..., None]).astype(q.dtype)


def _write(kept: KVCache, k, v, column):
  """Writes k, v [rows, C, K, H] from a column on."""
  put = jax.lax.dynamic_update_slice
  return KVCache(
    put(kept.k, k.transpose(0, 2, 3, 1), (0, 0, 0, column)),
    put(kept.v, v.transpose(0, 2, 1, 3), (0, 0, column, 0)),
  )


def take(array, index):
  """array[A * n, ...], index i32[A, m] within each part -> [A * m, ...]."""
  A, m = index.shape
  parts = array.reshape(A, len(array) // A, *array.shape[1:])
  taken = jax.vmap(lambda part, i: part.at[i].get(mode='clip'))(parts, index)
  return taken.reshape(A * m, *array.shape[1:])


def _put(array, index, new):
  """The inverse of take: writes new [A * m, ...]; an index out of range writes nothing."""
  A, m = index.shape
  parts = array.reshape(A, len(array) // A, *array.shape[1:])
  put = jax.vmap(lambda part, i, x: part.at[i].set(x, mode='drop'))
  return put(parts, index, new.reshape(A, m, *array.shape[1:])).reshape(array.shape)
