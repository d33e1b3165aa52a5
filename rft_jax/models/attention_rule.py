"""Attention in plain matrix products, forward and backward: causal, with a shared prompt prefix.

A query attends to the keys of the prefix that its row shares with other rows, and to the keys of
its own row up to itself. This is the rule that the kernels in kernels.py are tested against, and
what runs where none of them is chosen (attention.py chooses).

Letters beyond those of types.py: M query heads to a key-value head (N = K * M), X = T * M queries
of a key-value head. Queries are [B, T, K, M, H], so that no key is ever repeated for its M query
heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rft_jax.models.precision import precision_for

# Masked scores. Large and finite: -inf would make a fully masked row NaN, in its value and,
# through 0 * NaN, in every gradient, also where the loss masks that row.
MASKED = -1e30
ATTENTION_OUTPUT = 'attended'  # name of what rematerialisation saves of attention, decoder.REMAT
MAX_CHUNK_SCORES = 2**20  # of chunked(): 4 MiB, about what the caches of a CPU core hold


class SharedPrefix(NamedTuple):
  """Keys and values that the G rows of a prompt attend to, stored once for all of them."""

  k: jax.Array  # [P, S, K, H]
  v: jax.Array  # [P, S, K, H]
  lengths: jax.Array  # i32[P], keys from here on are masked; 0 is allowed


class Rows(NamedTuple):
  """G rows of each of P prompts, in the axis order of the matrix products."""

  q: jax.Array  # [P, G, K, X, H]
  k: jax.Array  # [P, G, K, H, T]
  v: jax.Array  # [P, G, K, T, H]
  segment_starts: jax.Array  # i32[P, G, X]


def batched(q, k, v, prefix, segment_starts):
  """Attention with all scores at once, f32[P, G, K, X, T]: for accelerators without a kernel.

  Arguments and result as in attention.attend.
  """
  return with_row_layout(lambda *args: _attend(*args, None), q, k, v, prefix, segment_starts)


def chunked(q, k, v, prefix, segment_starts):
  """Attention a few rows at a time, so that only their scores exist at once, in a CPU's caches.

  Arguments and result as in attention.attend. Measured on two cores (8 prompts of 64, 8 rows each
  of 128, 8 heads of 32): 27 ms, against 60 ms for batched().
  """
  return with_row_layout(
    lambda *args: _attend(*args, MAX_CHUNK_SCORES), q, k, v, prefix, segment_starts
  )


def with_row_layout(attend_rows, q, k, v, prefix, segment_starts):
  """Returns attention [B, T, K, M, H] as computed by attend_rows.

  Args:
    attend_rows: called with Rows and with a SharedPrefix of k [P, K, H, S] and v [P, K, S, H] (or
      None); returns [P, G, K, X, H].
    q, k, v, prefix, segment_starts: as in attention.attend.
  """
  B, T, K, M, H = q.shape
  P = B if prefix is None else len(prefix.k)
  by_prompt = lambda x: x.reshape(P, B // P, *x.shape[1:])
  # Every product is a plain one, rows x inner times inner x columns for each key-value head:
  # of other forms XLA copies the scores into another order, the largest array there is.
  queries = q.transpose(0, 2, 1, 3, 4).reshape(B, K, T * M, H)
  rows = Rows(
    *map(
      by_prompt,
      (
        queries,
        k.transpose(0, 2, 3, 1),
        v.transpose(0, 2, 1, 3),
        jnp.repeat(segment_starts, M, axis=1),
      ),
    )
  )
  if prefix is not None:
    prefix = SharedPrefix(
      prefix.k.transpose(0, 2, 3, 1), prefix.v.transpose(0, 2, 1, 3), prefix.lengths
    )
  output = attend_rows(rows, prefix)  # [P, G, K, X, H]
  return output.reshape(B, K, T, M, H).transpose(0, 2, 1, 3, 4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(rows, prefix, max_scores):
  """Returns [P, G, K, X, H]; at most about max_scores scores exist at a time (None: all)."""
  return _attend_forward(rows, prefix, max_scores)[0]


def _attend_forward(rows, prefix, max_scores):
  p, g = _chunk_size(rows, prefix, max_scores)
  attend_prompts = lambda xs: jax.lax.map(lambda chunk: _attend_chunk(chunk, xs[1]), xs[0])
  chunks = jax.lax.map(attend_prompts, (_split(rows, p, g), _split(prefix, p)))
  # Named, so that rematerialisation can save them: all that the backward pass needs.
  output, log_sum_exp = checkpoint_name(_join(chunks), ATTENTION_OUTPUT)
  return output, (rows, prefix, output, log_sum_exp)


def attend_backward(max_scores, residuals, gradient):
  """Returns the gradients of (rows, prefix), for jax.custom_vjp.

  As in FlashAttention, Dao et al. 2022, arXiv 2205.14135, section 3.1: the weights are recomputed
  from the scores and their log-sum-exp, a chunk at a time.

  Args:
    max_scores: at most about so many scores exist at a time; None: all.
    residuals: (rows, prefix, output [P, G, K, X, H], log_sum_exp f32[P, G, K, X]).
    gradient: of the output, [P, G, K, X, H].
  """
  rows, prefix, output, log_sum_exp = residuals
  delta = (gradient.astype(jnp.float32) * output.astype(jnp.float32)).sum(-1)
  p, g = _chunk_size(rows, prefix, max_scores)

  def prompt_gradients(xs):
    prompt_rows, prefix = xs

    def add_chunk(prefix_sum, chunk):
      row_gradients, prefix_gradients = _chunk_gradients(*chunk, prefix)
      return jax.tree.map(jnp.add, prefix_sum, prefix_gradients), row_gradients

    zeros = None if prefix is None else tuple(jnp.zeros(x.shape, jnp.float32) for x in prefix[:2])
    return jax.lax.scan(add_chunk, zeros, prompt_rows)

  prefix_gradients, row_gradients = jax.lax.map(
    prompt_gradients, (_split((rows, log_sum_exp, delta, gradient), p, g), _split(prefix, p))
  )
  row_gradients = Rows(*_join(row_gradients), None)
  if prefix is None:
    return row_gradients, None
  merge = lambda new, like: new.reshape(like.shape).astype(like.dtype)
  return row_gradients, SharedPrefix(*map(merge, prefix_gradients, prefix[:2]), None)


_attend.defvjp(_attend_forward, attend_backward)


def _attend_chunk(rows, prefix):
  """Returns (attention [P, G, K, X, H] in q's dtype, log_sum_exp f32[P, G, K, X] of the scores).

  The scores of the prefix and of the own keys share their maximum and add their sums.
  """
  scores, prefix_scores = _scores(rows, prefix)
  maximum = scores.max(-1, keepdims=True)
  if prefix is not None:
    maximum = jnp.maximum(maximum, _to_rows(prefix_scores.max(-1, keepdims=True), rows))
  weights = jnp.exp(scores - maximum)
  total = weights.sum(-1, keepdims=True)
  weighted_values = _product(weights.astype(rows.v.dtype), rows.v)
  if prefix is not None:
    weights = jnp.exp(prefix_scores - _to_prompts(maximum))
    total += _to_rows(weights.sum(-1, keepdims=True), rows)
    weighted_values += _to_rows(_product(weights.astype(rows.v.dtype), prefix.v), rows)
  fully_masked = maximum == MASKED  # attends to nothing: gives 0, and has no gradient
  output = jnp.where(fully_masked, 0.0, weighted_values / total).astype(rows.q.dtype)
  return output, jnp.where(fully_masked, -MASKED, maximum + jnp.log(total))[..., 0]


def _chunk_gradients(rows, log_sum_exp, delta, gradient, prefix):
  """Returns ((gradients of rows.q, .k and .v), (those of prefix.k and .v) or None)."""
  scale, dtype = rows.q.shape[-1] ** -0.5, rows.q.dtype
  scores, prefix_scores = _scores(rows, prefix)
  transposed = lambda x: x.swapaxes(-1, -2)

  def block(q, k, v, scores, log_sum_exp, delta, gradient):
    weights = jnp.exp(scores - log_sum_exp[..., None])
    score_gradients = (
      scale * weights * (_product(gradient, transposed(v)) - delta[..., None])
    ).astype(dtype)
    return (
      _product(score_gradients, transposed(k)),
      _product(transposed(q), score_gradients),
      _product(transposed(weights.astype(dtype)), gradient),
    )

  q_gradient, k_gradient, v_gradient = block(*rows[:3], scores, log_sum_exp, delta, gradient)
  prefix_gradients = None
  if prefix is not None:
    q, log_sum_exp, delta, gradient = map(
      _to_prompts, (rows.q, log_sum_exp[..., None], delta[..., None], gradient)
    )
    q_from_prefix, *prefix_gradients = block(
      q, *prefix[:2], prefix_scores, log_sum_exp[..., 0], delta[..., 0], gradient
    )
    q_gradient += _to_rows(q_from_prefix, rows)
    prefix_gradients = tuple(prefix_gradients)
  row_gradients = q_gradient.astype(dtype), k_gradient.astype(dtype), v_gradient.astype(dtype)
  return row_gradients, prefix_gradients


def _scores(rows, prefix):
  """Returns the masked scores of own keys f32[P, G, K, X, T] and, by prompt, of the prefix's
  f32[P, K, G * X, S] or None."""
  X, H = rows.q.shape[3:]
  T = rows.v.shape[3]
  scale = H**-0.5  # of the float32 scores: scaled queries would be rounded in bfloat16
  key = jnp.arange(T)
  query = jnp.arange(X)[:, None] // (X // T)
  mask = (key <= query) & (key >= rows.segment_starts[..., None])  # [P, G, X, T]
  scores = jnp.where(mask[:, :, None], scale * _product(rows.q, rows.k), MASKED)
  if prefix is None:
    return scores, None
  prefix_mask = jnp.arange(prefix.k.shape[-1]) < prefix.lengths[:, None]
  prefix_scores = scale * _product(_to_prompts(rows.q), prefix.k)
  return scores, jnp.where(prefix_mask[:, None, None], prefix_scores, MASKED)


# --- layouts -------------------------------------------------------------------------------------
def _to_prompts(x):
  """[P, G, K, X, n] -> [P, K, G * X, n]: one product serves all rows of a prompt."""
  P, G, K, X, n = x.shape
  return x.swapaxes(1, 2).reshape(P, K, G * X, n)


def _to_rows(x, rows):
  """[P, K, G * X, n] -> [P, G, K, X, n]."""
  P, G, K, X, _ = rows.q.shape
  return x.reshape(P, K, G, X, -1).swapaxes(1, 2)


def _chunk_size(rows, prefix, max_scores) -> tuple[int, int]:
  """Returns how many prompts, and how many rows of each, are computed at a time."""
  P, G, K, X, _ = rows.q.shape
  if max_scores is None:
    return P, G
  columns = rows.v.shape[3] + (0 if prefix is None else prefix.v.shape[2])
  max_rows = max(max_scores // (K * X * columns), 1)
  g = _divisor(G, max_rows)
  return (_divisor(P, max_rows // G) if max_rows >= G else 1), g


def _divisor(number: int, most: int) -> int:
  """Returns the largest divisor of number that is at most `most`, 1 at least."""
  return max(d for d in range(1, max(min(number, most), 1) + 1) if number % d == 0)


def _split(tree, p, g=None):
  """[P, G, ...] -> [P / p, G / g, p, g, ...]; without g, [P, ...] -> [P / p, p, ...]."""

  def split(x):
    x = x.reshape(len(x) // p, p, *x.shape[1:])
    return (
      x if g is None else x.reshape(*x.shape[:2], x.shape[2] // g, g, *x.shape[3:]).swapaxes(1, 2)
    )

  return jax.tree.map(split, tree)


def _join(tree):
  """The inverse of _split with p and g."""

  def join(x):
    x = x.swapaxes(1, 2)
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])

  return jax.tree.map(join, tree)


def _product(x, y):
  """[..., n, m] times [..., m, l], accumulated in float32."""
  batch = tuple(range(x.ndim - 2))
  return jax.lax.dot_general(
    x,
    y,
    (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch)),
    precision=precision_for(x.dtype),
    preferred_element_type=jnp.float32,
  )
