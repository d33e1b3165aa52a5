"""Prefill and decode with a KV cache: one token of many rows at a time, prompts stored once.

The same numbers as Decoder.completion_hidden. Cache: kv_cache.py; layers: decoding_layers.py; the
loop that samples: sampling/slots.py.

Letters beyond those of types.py: N rows that decode together, A shards in which a mesh holds them
(1 on one device), Q prompt slots and at most R rows of a prompt, both in each shard, M query heads
to a key-value head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.models import attention, kv_cache
from rft_jax.models.attention_rule import MASKED, SharedPrefix
from rft_jax.models.decoder import Decoder
from rft_jax.models.kv_cache import KVCache
from rft_jax.models.precision import precision_for


class SlotAssignment(NamedTuple):
  """Which rows complete which prompt. Rows and prompt slots are numbered within their shard."""

  rows: jax.Array  # i32[A, Q, R], the rows of each prompt slot; arbitrary where there is none
  prompt_slots: jax.Array  # i32[A, N / A], q * R + r of each row; arbitrary for a row of no prompt


def prefill(
  model: Decoder, layers, prompts: tuple[KVCache, ...], prompt_slots, tokens, offset, *, first: bool
) -> tuple[KVCache, ...]:
  """Computes keys and values of C columns of some prompts; returns `prompts` with these written.

  Args:
    layers: of decoding_layers.layers_of.
    prompts: the prompts' cache, of which the columns before offset are attended to.
    prompt_slots: i32[A, p], the slot in `prompts` that each row is written to; Q: none, the row is
      padding.
    tokens: i32[A, p, C]; columns beyond a prompt's end get garbage, which decode() masks.
    offset: i32[], the position of the first of the C columns.
    first: static; True where offset is 0, so that no columns come before.
  """
  A, p, C = tokens.shape
  rope = model.rope(jnp.broadcast_to(offset + jnp.arange(C), (A * p, C)).reshape(-1, 1))
  x = model.embeddings(tokens.reshape(-1))
  by_prompt = lambda y: y.reshape(A * p, C, *y.shape[1:])
  updated = []
  for layer, cache in zip(layers, prompts):
    rows = jax.tree.map(lambda array: kv_cache.gather(array, prompt_slots), cache)
    q, k, v = map(by_prompt, layer.heads(x, rope))
    prefix = (
      None
      if first
      else SharedPrefix(
        rows.k.transpose(0, 3, 1, 2), rows.v.transpose(0, 2, 1, 3), jnp.full(A * p, offset)
      )
    )
    attended = attention.attend(q, k, v, prefix, implementation=model.config.attention)
    x = layer.finish(x, attended.reshape(A * p * C, -1))
    rows = kv_cache.write(rows, k, v, offset)
    updated.append(
      jax.tree.map(lambda array, row: kv_cache.scatter(array, prompt_slots, row), cache, rows)
    )
  return tuple(updated)


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
  """Computes one token of each row; returns (final-normed hidden [N, D], completions).

  Args:
    layers: of decoding_layers.layers_of.
    tokens, positions: i32[N].
    completions: the rows' own cache; donate it, or each token costs a copy of it.
    column: i32[], where the new keys and values are written, the same for every row.
    mask: bool[N, T], the columns that a row attends to, `column` among them.
    prompts: the cache that prefill() has written.
    lengths: i32[A * Q], the number of columns of each prompt slot that are attended to.
    slot_assignment: which rows belong to which prompt slot.
  """
  rope = model.rope(positions[:, None])
  x = model.embeddings(tokens)
  updated = []
  for layer, own, prompt in zip(layers, completions, prompts):
    q, k, v = layer.heads(x, rope)
    own = kv_cache.write(own, k[:, None], v[:, None], column)
    x = layer.finish(x, attend_one_query(q, own, mask, prompt, lengths, slot_assignment))
    updated.append(own)
  return model.final_norm(x), tuple(updated)


def attend_one_query(
  q, own: KVCache, mask, prompts: KVCache, lengths, slot_assignment: SlotAssignment
):
  """Computes attention.attend for one query of each row, [N, K, M, H] -> the same shape.

  The keys of a prompt are read once for all its rows: their queries are gathered by prompt, and
  the scores of prompt and completion share their maximum and add their sums, which is exact.
  """
  _, K, M, H = q.shape
  precision = precision_for(q.dtype)

  def einsum(equation, x, y):
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=jnp.float32)

  with jax.named_scope('attention'):
    scores = H**-0.5 * einsum('NKMH,NKHT->NKMT', q, own.k)
    scores = jnp.where(mask[:, None, None], scores, MASKED)

    # One axis for all queries of a prompt: products of other forms are slow on a CPU.
    A, Q, R = slot_assignment.rows.shape
    prompt_q = kv_cache.gather(q, slot_assignment.rows.reshape(A, Q * R))
    prompt_q = prompt_q.reshape(A * Q, R, K, M, H).swapaxes(1, 2).reshape(A * Q, K, R * M, H)
    prompt_scores = H**-0.5 * einsum('QKXH,QKHS->QKXS', prompt_q, prompts.k)
    prompt_mask = (jnp.arange(prompts.k.shape[-1]) < lengths[:, None])[:, None, None]
    prompt_scores = jnp.where(prompt_mask, prompt_scores, MASKED)
    prompt_maximum = prompt_scores.max(-1, keepdims=True)
    prompt_weights = jnp.exp(prompt_scores - prompt_maximum) * prompt_mask
    prompt_values = einsum('QKXS,QKSH->QKXH', prompt_weights.astype(prompts.v.dtype), prompts.v)

    def by_row(x):  # [A * Q, K, R * M, _] -> [N, K, M, _]
      x = x.reshape(A * Q, K, R, M, -1).swapaxes(1, 2)
      return kv_cache.gather(x.reshape(A * Q * R, K, M, -1), slot_assignment.prompt_slots)

    prompt_maximum = by_row(prompt_maximum)[..., 0]
    maximum = jnp.maximum(scores.max(-1), prompt_maximum)
    weights = jnp.exp(scores - maximum[..., None])
    rescale = jnp.exp(prompt_maximum - maximum)
    total = weights.sum(-1) + by_row(prompt_weights.sum(-1, keepdims=True))[..., 0] * rescale
    weighted_values = einsum('NKMT,NKTH->NKMH', weights.astype(own.v.dtype), own.v)
    weighted_values += by_row(prompt_values) * rescale[..., None]
    return (weighted_values / total[..., None]).astype(q.dtype)
