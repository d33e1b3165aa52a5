"""The one attention rule: own keys and values, and those of a prefix that several rows share.

Letters beyond those of types.py: M query heads to a key-value head (N = K * M), S key positions.
Queries are [B, T, K, M, H], so that no key is ever repeated for its M query heads.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Masked scores. Large and finite: -inf would make a fully masked row NaN, in its value and,
# through 0 * NaN, in everybody's gradient, also where the loss masks that row.
MASKED = -1e30


class SharedPrefix(NamedTuple):
  """Keys and values that the G rows of a prompt attend to, stored once for all of them."""
  k: jax.Array  # [P, S, K, H]
  v: jax.Array  # [P, S, K, H]
  lengths: jax.Array  # i32[P], keys from here on are masked; 0 is fine


def precision_for(dtype):
  """The precision of matrix products: float32 means float32, also where the hardware's default
  for float32 operands is coarser (TF32 on GPUs, bfloat16 on TPUs)."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def attend(q, k, v, mask, prefix: SharedPrefix | None = None):
  """Returns each query's mean of the values it may see, [B, T, K, M, H], weighted by

      softmax over (prefix keys below prefix.lengths, own keys where mask) of q . k / sqrt(H)

  in one joint softmax. The prefix block is a single product of the G * T queries of a prompt with
  its S keys. The two blocks are never concatenated: they share their maximum and add
  their sums, which is exact. Scores, softmax and sums are float32; the result has q's dtype.

  A row whose keys are all masked gives the plain mean of all values: meaningless, finite, and of
  zero gradient to the scores.

  Args:
    q: [B, T, K, M, H], B = P * G, the G rows of a prompt next to each other.
    k, v: [B, S, K, H].
    mask: bool[B or 1, T or 1, S], True where the query may see the own key.
    prefix: shared keys and values, or None.
  """
  rows, length, kv_heads, group, head_dim = q.shape
  exact = precision_for(q.dtype)

  def einsum(equation, x, y):
    return jnp.einsum(equation, x, y, precision=exact, preferred_element_type=jnp.float32)

  scale = head_dim**-0.5
  with jax.named_scope('attention'):
    own = scale * einsum('BTKMH,BSKH->BKTMS', q, k)
    own = jnp.where(mask[:, None, :, None], own, MASKED)
    top = own.max(-1)  # [B, K, T, M]
    if prefix is not None:
      prompts, width = prefix.k.shape[:2]
      # Statistics of the two blocks differ in the order of G and K: [B, K, T, M] is
      # [P, G, K, T, M], where the prefix block has [P, K, G, T, M].
      by_prompt = (prompts, rows // prompts, kv_heads, length, group)
      to_rows = lambda x: x.swapaxes(1, 2).reshape(rows, kv_heads, length, group)
      to_prompts = lambda x: x.reshape(by_prompt).swapaxes(1, 2)
      grouped_q = q.reshape(prompts, -1, length, kv_heads, group, head_dim)
      shared = scale * einsum('PGTKMH,PSKH->PKGTMS', grouped_q, prefix.k)
      seen = jnp.arange(width) < prefix.lengths[:, None]
      shared = jnp.where(seen[:, None, None, None, None], shared, MASKED)
      top = jnp.maximum(top, to_rows(shared.max(-1)))
    top = jax.lax.stop_gradient(top)  # it cancels, so its gradient is 0
    own = jnp.exp(own - top[..., None])
    total = own.sum(-1)
    mixed = einsum('BKTMS,BSKH->BTKMH', own.astype(v.dtype), v)
    if prefix is not None:
      shared = jnp.exp(shared - to_prompts(top)[..., None])
      total += to_rows(shared.sum(-1))
      mixed += einsum('PKGTMS,PSKH->PGTKMH', shared.astype(prefix.v.dtype),
                      prefix.v).reshape(mixed.shape)
    return (mixed / total.swapaxes(1, 2)[..., None]).astype(q.dtype)


def causal_mask(length: int, lengths=None):
  """bool[B or 1, T, T]: a token sees itself and what precedes it, below lengths i32[B] if given."""
  here = jnp.arange(length)
  mask = here[None, :, None] >= here
  return mask if lengths is None else mask & (here < lengths[:, None, None])


# --- rotary position embedding -------------------------------------------------------------------
def rotary_frequencies(head_dim: int, theta: float, scaling=None):
  """Returns f32[H / 2] radians per token: theta ** (-2 i / H), Su et al. 2021, arXiv 2104.09864.

  With a Llama3Rope, wavelengths are stretched as Llama 3.1 does (see config.py). A constant, made
  in numpy: an accelerator's own power function may be coarse, and positions multiply the error.
  """
  frequencies = np.float32(1) / np.float32(theta)**(np.arange(0, head_dim, 2, dtype=np.float32) /
                                                    np.float32(head_dim))
  if scaling is None:
    return frequencies
  turns = scaling.original_max_positions * frequencies / (2 * np.pi)  # over the old context
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((turns - low) / (high - low), 0.0, 1.0)  # 0 below low turns, 1 above high turns
  return np.float32(frequencies * (kept + (1.0 - kept) / scaling.factor))


def rotary_table(positions, frequencies):
  """Returns (cos, sin), f32[B, T, H / 2], of positions i32[B, T]."""
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, table):
  """Rotates the pairs (x[i], x[i + H / 2]) of [B, T, heads, H] by the table's angles, in f32."""
  cos, sin = (part[:, :, None] for part in table)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin],
                         axis=-1).astype(x.dtype)
