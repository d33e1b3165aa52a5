"""Attention kernels for GPUs and TPUs: cuDNN, JAX's splash attention, and our own in Pallas.

They compute what attention_rule.py computes, in less memory. cudnn() and splash() are libraries'
and know no shared prefix: it is copied in front of the own keys of each of its rows. pallas() is
ours and reads the prefix where it is stored. splash() and pallas() are for one device, or inside
shard_map: no compiler splits a Pallas call over a mesh. Which of them can run on a backend:
attention.available_implementations. None has been run on an accelerator yet, nor measured there.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
  splash_attention_mask_info,
)

from rft_jax import platform
from rft_jax.models.attention_rule import ATTENTION_OUTPUT, MASKED, attend_backward, with_row_layout
from rft_jax.models.precision import precision_for

POSITION_BITS = 15  # of splash(): two positions in a row are packed into one int32
QUERIES, KEYS = 64, 32  # in a block of pallas(): powers of two, as Triton demands
MAX_BACKWARD_SCORES = 2**28  # at a time in the backward pass of pallas(): 1 GiB


# --- kernels of libraries ------------------------------------------------------------------------
def cudnn(q, k, v, prefix, segment_starts, *, implementation='cudnn'):
  """Attention by jax.nn.dot_product_attention, with a stored mask [B, 1, T, S + T] in q's dtype.

  Args:
    q, k, v, prefix, segment_starts: as in attention.attend, here and in the other kernels.
    implementation: of jax.nn.dot_product_attention; 'xla' is the same arithmetic on any backend.
  """
  B, T, K, M, H = q.shape
  k, v, prefix_mask = _with_prefix(k, v, prefix, 1)
  position = jnp.arange(T)
  own_mask = (position >= segment_starts[..., None]) & (position <= position[:, None])  # [B, T, T]
  mask = jnp.concatenate(
    [jnp.broadcast_to(prefix_mask[:, None], (B, T, prefix_mask.shape[1])), own_mask], axis=2
  )
  # Its backward pass needs even lengths; with multiples of 8, rows of the mask are aligned.
  mask = _padded(mask, {1: 8, 2: 8})[:, None]
  q, k, v = (_padded(x, {1: 8}) for x in (q.reshape(B, T, K * M, H), k, v))
  output = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
  return _zero_where_masked(segment_starts, prefix_mask, output[:, :T].reshape(B, T, K, M, H))


def splash(q, k, v, prefix, segment_starts, *, interpret=None):
  """Attention by JAX's splash attention, without a stored mask.

  The kernel computes the mask of a query's own row from the query's position and the start of its
  segment; keys from the prefix's length on have another segment id than all queries. Blocks of own
  keys after a block of queries are skipped. The queries are scaled in their own dtype, which is
  exact where sqrt(H) is a power of two, and else rounds them once more.

  Args:
    interpret: whether JAX emulates the kernel; None: on a CPU.
  """
  B, T, K, M, H = q.shape
  if T > 2**POSITION_BITS:
    raise ValueError(f"attention='splash' takes rows of {2**POSITION_BITS} tokens at most, not {T}")
  k, v, prefix_mask = _with_prefix(k, v, prefix, 128)
  q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype).reshape(B, T, K * M, H)
  q, k, v = (_padded(x, {1: 128, 3: 128}).swapaxes(1, 2) for x in (q, k, v))  # [B, heads, T, H]
  queries, S = q.shape[2], prefix_mask.shape[1]
  # Queries of the padding attend to what is before them; only they attend to keys of the padding.
  packed = _padded(segment_starts.astype(jnp.int32) << POSITION_BITS, {1: 128}) + jnp.arange(
    queries
  )
  key_segments = jnp.pad(~prefix_mask, ((0, 0), (0, queries))).astype(jnp.int32)
  row = functools.partial(_splash_row, _mask_function(S), S, _interpreted(interpret))
  output = jax.vmap(row)(q, k, v, packed, key_segments).swapaxes(1, 2)[:, :T, :, :H]
  return _zero_where_masked(segment_starts, prefix_mask, output.reshape(B, T, K, M, H))


def _splash_row(mask_function, S, interpret, q, k, v, packed, key_segments):
  """Returns the attention of one row, [N, T, H].

  Args:
    q: [N, T, H].
    k, v: [K, S + T, H].
    packed: i32[T], each query's position and the start of its segment, see _mask_function.
    key_segments: i32[S + T], 0 where the key may be attended to.
  """
  T, keys = q.shape[1], k.shape[1]
  block = lambda length: next(size for size in (512, 256, 128) if length % size == 0)
  bq, bkv = block(T), block(np.gcd(S, T))
  i, j = np.indices((1, T // bq, keys // bkv), dtype=np.int32)[1:]
  run = j * bkv - S < (i + 1) * bq  # some key is of the prefix, or not after the last query

  def info(block_index):  # which blocks run, and which to fetch for them
    return splash_attention_mask_info.MaskInfo(
      data_next=jnp.asarray(np.where(run, block_index, 0)),
      mask_next=None,
      block_mask=jnp.asarray(run.astype(np.int32)),
      partial_mask_blocks=None,
      q_sequence=packed,
    )

  kernel = splash_attention_kernel.SplashAttentionKernel(
    info(j),
    info(j),
    info(i),
    block_sizes=splash_attention_kernel.BlockSizes(
      block_q=bq, block_kv=bkv, block_q_dkv=bq, block_kv_dkv=bkv, block_q_dq=bq, block_kv_dq=bkv
    ),
    is_mqa=False,
    save_residuals=False,
    mask_value=MASKED,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=ATTENTION_OUTPUT,
    mask_function=mask_function,
    interpret=interpret,
  )
  return kernel(q, k, v, splash_attention_kernel.SegmentIds(jnp.zeros(T, jnp.int32), key_segments))


@functools.cache  # one function for each S: splash attention compiles again for another function
def _mask_function(S):
  """Returns which of S prefix keys and of the own keys a query attends to, as splash calls it."""

  def mask_function(packed, keys):
    segment_starts, queries = packed >> POSITION_BITS, packed & (2**POSITION_BITS - 1)
    return (keys < S) | ((keys - S >= segment_starts) & (keys - S <= queries))

  return mask_function


def _with_prefix(k, v, prefix, multiple):
  """Returns (k, v, prefix_mask): k and v [B, S + T, K, H] with the prompt's prefix in front of each
  row, and which of it is not padding, bool[B, S]. S is padded to a multiple."""
  if prefix is None:
    return k, v, jnp.zeros((len(k), 0), bool)
  repeat = lambda x: jnp.repeat(x, len(k) // len(prefix.k), axis=0)
  k, v = (
    jnp.concatenate([repeat(_padded(shared, {1: multiple})), own], axis=1)
    for shared, own in zip(prefix[:2], (k, v))
  )
  S = -(-prefix.k.shape[1] // multiple) * multiple
  return k, v, jnp.arange(S) < repeat(prefix.lengths)[:, None]


def _zero_where_masked(segment_starts, prefix_mask, output):
  """Returns output [B, T, K, M, H] with 0 for queries all of whose keys are masked.

  The kernels give the mean of the masked values there: finite, and now without a gradient.
  """
  own_masked = segment_starts > jnp.arange(segment_starts.shape[1])
  fully_masked = own_masked & ~prefix_mask.any(1, keepdims=True)
  return jnp.where(fully_masked[..., None, None, None], 0, output)


# --- our own -------------------------------------------------------------------------------------
def pallas(q, k, v, prefix, segment_starts, *, interpret=None):
  """Attention by a kernel that reads the prefix where it is stored; backward, the plain products.

  Args:
    interpret: whether JAX emulates the kernel; None: on a CPU.
  """
  flash = functools.partial(_flash, _interpreted(interpret))
  return with_row_layout(flash, q, k, v, prefix, segment_starts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(interpret, rows, prefix):
  """Returns [P, G, K, X, H], of attention_rule.Rows and a SharedPrefix in their layout."""
  return _flash_forward(interpret, rows, prefix)[0]


def _flash_forward(interpret, rows, prefix):
  P, G, K, X, H = rows.q.shape
  T = rows.v.shape[3]
  wide = pl.next_power_of_2(max(H, 16))  # Triton demands this too; zeros change no product
  row_block = lambda *shape: pl.BlockSpec((None,) * 3 + shape, lambda p, g, kv, i: (p, g, kv, 0, 0))
  prompt_block = lambda *shape: pl.BlockSpec((None,) * 2 + shape, lambda p, g, kv, i: (p, kv, 0, 0))
  q = _padded(rows.q, {3: QUERIES, 4: wide})
  k, v = _padded(rows.k, {3: wide, 4: KEYS}), _padded(rows.v, {3: KEYS, 4: wide})
  query_block = pl.BlockSpec(
    (None, None, None, QUERIES, wide), lambda p, g, kv, i: (p, g, kv, i, 0)
  )
  log_sum_exp_block = pl.BlockSpec((None, None, None, QUERIES), lambda p, g, kv, i: (p, g, kv, i))
  inputs = [q, k, v, _padded(rows.segment_starts, {2: QUERIES})]
  specs = [
    query_block,
    row_block(*k.shape[3:]),
    row_block(*v.shape[3:]),
    pl.BlockSpec((None, None, QUERIES), lambda p, g, kv, i: (p, g, i)),
  ]
  if prefix is not None:
    shared = _padded(prefix.k, {2: wide, 3: KEYS}), _padded(prefix.v, {2: KEYS, 3: wide})
    inputs += [*shared, prefix.lengths]
    specs += [
      *(prompt_block(*x.shape[2:]) for x in shared),
      pl.BlockSpec((None,), lambda p, g, kv, i: (p,)),
    ]
  call = pl.pallas_call(
    functools.partial(_flash_kernel, X // T, H**-0.5),
    grid=(P, G, K, q.shape[3] // QUERIES),
    in_specs=specs,
    out_specs=(query_block, log_sum_exp_block),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct(q.shape[:4], jnp.float32),
    ),
    compiler_params=triton.CompilerParams(),
    interpret=interpret,
    name='attended',
  )
  # jit: rematerialisation would run a bare Pallas call again even where nothing uses its result.
  output, log_sum_exp = jax.jit(call)(*inputs)
  # Named as in attention_rule.py, so that rematerialisation can save them.
  output, log_sum_exp = checkpoint_name(
    (output[..., :X, :H], log_sum_exp[..., :X]), ATTENTION_OUTPUT
  )
  return output, (rows, prefix, output, log_sum_exp)


def _flash_kernel(M, scale, q_ref, k_ref, v_ref, segment_starts_ref, *refs):
  """Computes a block of queries of one row and key-value head: X = QUERIES, t-major over M.

  A running maximum, sum and weighted sum of values over blocks of keys, Milakov and Gimelshein
  2018, arXiv 1805.02867. What was added before the first unmasked key is multiplied by 0 then.
  """
  *prefix_refs, output_ref, log_sum_exp_ref = refs
  q, segment_starts = q_ref[...], segment_starts_ref[...]
  first = pl.program_id(3) * QUERIES
  # jax.lax.div, not //: floor division is many instructions in Triton and Mosaic.
  query = jax.lax.div(first + jnp.arange(QUERIES), M)

  def accumulate(k_ref, v_ref, mask):
    def add_block(j, state):
      maximum, total, weighted_values = state
      block = pl.ds(j * KEYS, KEYS)
      scores = scale * _product(q, k_ref[:, block])
      scores = jnp.where(mask(j * KEYS + jnp.arange(KEYS)[None]), scores, MASKED)
      new_maximum = jnp.maximum(maximum, scores.max(1))
      weights, rescale = jnp.exp(scores - new_maximum[:, None]), jnp.exp(maximum - new_maximum)
      weighted_values = rescale[:, None] * weighted_values + _product(
        weights.astype(q.dtype), v_ref[block, :]
      )
      return new_maximum, rescale * total + weights.sum(1), weighted_values

    return add_block

  state = (jnp.full(QUERIES, MASKED), jnp.zeros(QUERIES), jnp.zeros(q.shape, jnp.float32))
  if prefix_refs:
    *shared, lengths_ref = prefix_refs
    length = lengths_ref[...]
    state = jax.lax.fori_loop(
      0, jax.lax.div(length + KEYS - 1, KEYS), accumulate(*shared, lambda key: key < length), state
    )
  own_mask = lambda key: (key <= query[:, None]) & (key >= segment_starts[:, None])
  last = jnp.minimum(jax.lax.div(first + QUERIES - 1, M * KEYS) + 1, v_ref.shape[0] // KEYS)
  maximum, total, weighted_values = jax.lax.fori_loop(
    0, last, accumulate(k_ref, v_ref, own_mask), state
  )
  fully_masked = maximum == MASKED
  output_ref[...] = jnp.where(fully_masked[:, None], 0.0, weighted_values / total[:, None]).astype(
    output_ref.dtype
  )
  log_sum_exp_ref[...] = jnp.where(fully_masked, -MASKED, maximum + jnp.log(total))


def _product(x, y):
  """[n, m] times [m, l], accumulated in float32."""
  return jnp.dot(x, y, precision=precision_for(x.dtype), preferred_element_type=jnp.float32)


def _flash_backward(interpret, residuals, gradient):
  del interpret
  return attend_backward(MAX_BACKWARD_SCORES, residuals, gradient)


_flash.defvjp(_flash_forward, _flash_backward)


def _padded(x, multiples):
  """Returns x with zeros at the end of each axis in `multiples` {axis: a multiple to pad it to}."""
  padding = [(0, -size % multiples.get(axis, 1)) for axis, size in enumerate(x.shape)]
  return jnp.pad(x, padding) if any(after for _, after in padding) else x


def _interpreted(interpret):
  return platform.is_cpu() if interpret is None else interpret
