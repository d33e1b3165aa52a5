"""The attention rule in kernels of accelerators: what attention.py's products do, in less memory.

'cudnn' and 'splash' are bought in, know no shared prefix, and get it in front of the own keys of
each of its rows; 'pallas' is ours and leaves it where it is. 'splash' and 'pallas' are for one
device, or inside shard_map: no compiler splits a Pallas call over a mesh. Where each of them can
run is attention.available's to say. None has been run on an accelerator yet, nor measured there.
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

from rft_jax.models import attention
from rft_jax.models.attention import ATTENDED, MASKED

POSITION_BITS = 15  # for 'splash': two positions in a row travel in one int32
QUERIES, KEYS = 64, 32  # of a block of 'pallas': powers of two, as Triton demands
BACKWARD_AT_ONCE = 2**28  # scores in the backward pass of 'pallas': 1 GiB


# --- bought in -----------------------------------------------------------------------------------
def cudnn(q, k, v, prefix, begins, *, implementation='cudnn'):
  """The rule by jax.nn.dot_product_attention, with a stored mask [B, 1, T, S + T] in q's dtype.

  Args:
    implementation: of jax.nn.dot_product_attention; 'xla' is the same arithmetic on any backend.
  """
  B, T, K, M, H = q.shape
  k, v, seen = _joined(k, v, prefix, 1)
  here = jnp.arange(T)
  own = (here >= begins[..., None]) & (here <= here[:, None])  # [B, T, T]
  mask = jnp.concatenate([jnp.broadcast_to(seen[:, None], (B, T, seen.shape[1])), own], axis=2)
  # Its backward pass demands even lengths; with multiples of 8, rows of the mask are aligned.
  mask = _padded(mask, {1: 8, 2: 8})[:, None]
  q, k, v = (_padded(x, {1: 8}) for x in (q.reshape(B, T, K * M, H), k, v))
  out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)
  return _with_zeros(begins, seen, out[:, :T].reshape(B, T, K, M, H))


def splash(q, k, v, prefix, begins, *, interpret=None):
  """The rule by JAX's splash attention, without a stored mask.

  The kernel computes what a query sees of its own row, from its position and from where its segment
  begins; keys from the prefix's length on are of another segment than all queries. Blocks of own
  keys after a block of queries are skipped. The queries are scaled in their own dtype, which is
  exact where sqrt(H) is a power of two, and else rounds them once more.

  Args:
    interpret: whether JAX emulates the kernel; None: on a CPU.
  """
  B, T, K, M, H = q.shape
  if T > 2**POSITION_BITS:
    raise ValueError(f"attention='splash' takes rows of {2**POSITION_BITS} tokens at most, not {T}")
  k, v, seen = _joined(k, v, prefix, 128)
  q = (q.astype(jnp.float32) * H**-0.5).astype(q.dtype).reshape(B, T, K * M, H)
  q, k, v = (_padded(x, {1: 128, 3: 128}).swapaxes(1, 2) for x in (q, k, v))  # [B, heads, T, H]
  queries, S = q.shape[2], seen.shape[1]
  # Queries of the padding see what is before them, keys of the padding are seen by them alone.
  ids = _padded(begins.astype(jnp.int32) << POSITION_BITS, {1: 128}) + jnp.arange(queries)
  hidden = jnp.pad(~seen, ((0, 0), (0, queries))).astype(jnp.int32)
  row = functools.partial(_splash_row, _sees(S), S, _interpreted(interpret))
  out = jax.vmap(row)(q, k, v, ids, hidden).swapaxes(1, 2)[:, :T, :, :H]
  return _with_zeros(begins, seen, out.reshape(B, T, K, M, H))


def _splash_row(sees, S, interpret, q, k, v, ids, hidden):
  """Returns [N, T, H], of q [N, T, H], k and v [K, S + T, H], ids i32[T], hidden i32[S + T]."""
  T, keys = q.shape[1], k.shape[1]
  block = lambda length: next(size for size in (512, 256, 128) if length % size == 0)
  bq, bkv = block(T), block(np.gcd(S, T))
  i, j = np.indices((1, T // bq, keys // bkv), dtype=np.int32)[1:]
  run = j * bkv - S < (i + 1) * bq  # some key is of the prefix, or not after the last query

  def info(of_block):  # which blocks run, and which to fetch for them
    return splash_attention_mask_info.MaskInfo(
      data_next=jnp.asarray(np.where(run, of_block, 0)),
      mask_next=None,
      block_mask=jnp.asarray(run.astype(np.int32)),
      partial_mask_blocks=None,
      q_sequence=ids,
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
    residual_checkpoint_name=ATTENDED,
    mask_function=sees,
    interpret=interpret,
  )
  return kernel(q, k, v, splash_attention_kernel.SegmentIds(jnp.zeros(T, jnp.int32), hidden))


@functools.cache  # one function for each S: the kernel is compiled anew for another function
def _sees(S):
  def sees(ids, keys):
    begins, queries = ids >> POSITION_BITS, ids & (2**POSITION_BITS - 1)
    return (keys < S) | ((keys - S >= begins) & (keys - S <= queries))

  return sees


def _joined(k, v, prefix, multiple):
  """Returns (k, v, seen): [B, S + T, K, H] twice, each row with its prompt's prefix in front, and
  which of that it sees, bool[B, S]. S is padded to a multiple."""
  if prefix is None:
    return k, v, jnp.zeros((len(k), 0), bool)
  of_rows = lambda x: jnp.repeat(x, len(k) // len(prefix.k), axis=0)
  k, v = (
    jnp.concatenate([of_rows(_padded(shared, {1: multiple})), own], axis=1)
    for shared, own in zip(prefix[:2], (k, v))
  )
  S = -(-prefix.k.shape[1] // multiple) * multiple
  return k, v, jnp.arange(S) < of_rows(prefix.lengths)[:, None]


def _with_zeros(begins, seen, out):
  """Returns out [B, T, K, M, H] with 0 for queries that see nothing, for which the kernels give
  the mean of what they were not to see: finite, and now without a gradient."""
  blind = (begins > jnp.arange(begins.shape[1])) & ~seen.any(1, keepdims=True)
  return jnp.where(blind[..., None, None, None], 0, out)


# --- our own -------------------------------------------------------------------------------------
def pallas(q, k, v, prefix, begins, *, interpret=None):
  """The rule by a kernel that reads the prefix where it is; backward, the plain products.

  Args:
    interpret: whether JAX emulates the kernel; None: on a CPU.
  """
  flash = functools.partial(_flash, _interpreted(interpret))
  return attention.by_rows(flash, q, k, v, prefix, begins)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(interpret, rows, prefix):
  """Returns [P, G, K, X, H], of attention.Rows and of a SharedPrefix laid out like them."""
  return _flash_forward(interpret, rows, prefix)[0]


def _flash_forward(interpret, rows, prefix):
  P, G, K, X, H = rows.q.shape
  T = rows.v.shape[3]
  wide = pl.next_power_of_2(max(H, 16))  # also of Triton's demands; zeros change no product
  of_rows = lambda *shape: pl.BlockSpec((None,) * 3 + shape, lambda p, g, kv, i: (p, g, kv, 0, 0))
  of_prompt = lambda *shape: pl.BlockSpec((None,) * 2 + shape, lambda p, g, kv, i: (p, kv, 0, 0))
  q = _padded(rows.q, {3: QUERIES, 4: wide})
  k, v = _padded(rows.k, {3: wide, 4: KEYS}), _padded(rows.v, {3: KEYS, 4: wide})
  of_queries = pl.BlockSpec((None, None, None, QUERIES, wide), lambda p, g, kv, i: (p, g, kv, i, 0))
  of_query = pl.BlockSpec((None, None, None, QUERIES), lambda p, g, kv, i: (p, g, kv, i))
  inputs = [q, k, v, _padded(rows.begins, {2: QUERIES})]
  specs = [
    of_queries,
    of_rows(*k.shape[3:]),
    of_rows(*v.shape[3:]),
    pl.BlockSpec((None, None, QUERIES), lambda p, g, kv, i: (p, g, i)),
  ]
  if prefix is not None:
    shared = _padded(prefix.k, {2: wide, 3: KEYS}), _padded(prefix.v, {2: KEYS, 3: wide})
    inputs += [*shared, prefix.lengths]
    specs += [
      *(of_prompt(*x.shape[2:]) for x in shared),
      pl.BlockSpec((None,), lambda p, g, kv, i: (p,)),
    ]
  call = pl.pallas_call(
    functools.partial(_flash_kernel, X // T, H**-0.5),
    grid=(P, G, K, q.shape[3] // QUERIES),
    in_specs=specs,
    out_specs=(of_queries, of_query),
    out_shape=(
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct(q.shape[:4], jnp.float32),
    ),
    compiler_params=triton.CompilerParams(),
    interpret=interpret,
    name='attended',
  )
  found = jax.jit(call)(*inputs)  # jit: a bare Pallas call is made again even if nobody needs it
  # Named as in attention.py, so that rematerialisation may keep them.
  out, normaliser = checkpoint_name((found[0][..., :X, :H], found[1][..., :X]), ATTENDED)
  return out, (rows, prefix, out, normaliser)


def _flash_kernel(M, scale, q_ref, k_ref, v_ref, begins_ref, *refs):
  """Attends with a block of queries of one row and key-value head: X = QUERIES, t-major over M.

  A running maximum, sum and weighted sum of values over blocks of keys, Milakov and Gimelshein
  2018, arXiv 1805.02867. What was added before the first key in sight is multiplied by 0 then.
  """
  *prefix_refs, out_ref, normaliser_ref = refs
  q, begins = q_ref[...], begins_ref[...]
  first = pl.program_id(3) * QUERIES
  query = jax.lax.div(first + jnp.arange(QUERIES), M)  # of // Triton and Mosaic make much

  def over(k_ref, v_ref, sees):
    def some(j, state):
      top, total, mixed = state
      here = pl.ds(j * KEYS, KEYS)
      scores = scale * _product(q, k_ref[:, here])
      scores = jnp.where(sees(j * KEYS + jnp.arange(KEYS)[None]), scores, MASKED)
      new = jnp.maximum(top, scores.max(1))
      weights, kept = jnp.exp(scores - new[:, None]), jnp.exp(top - new)
      mixed = kept[:, None] * mixed + _product(weights.astype(q.dtype), v_ref[here, :])
      return new, kept * total + weights.sum(1), mixed

    return some

  state = (jnp.full(QUERIES, MASKED), jnp.zeros(QUERIES), jnp.zeros(q.shape, jnp.float32))
  if prefix_refs:
    *shared, lengths_ref = prefix_refs
    length = lengths_ref[...]
    state = jax.lax.fori_loop(
      0, jax.lax.div(length + KEYS - 1, KEYS), over(*shared, lambda s: s < length), state
    )
  sees = lambda s: (s <= query[:, None]) & (s >= begins[:, None])
  last = jnp.minimum(jax.lax.div(first + QUERIES - 1, M * KEYS) + 1, v_ref.shape[0] // KEYS)
  top, total, mixed = jax.lax.fori_loop(0, last, over(k_ref, v_ref, sees), state)
  blind = top == MASKED
  out_ref[...] = jnp.where(blind[:, None], 0.0, mixed / total[:, None]).astype(out_ref.dtype)
  normaliser_ref[...] = jnp.where(blind, -MASKED, top + jnp.log(total))


def _product(x, y):
  """[n, m] times [m, l], accumulated in float32."""
  return jnp.dot(
    x, y, precision=attention.precision_for(x.dtype), preferred_element_type=jnp.float32
  )


def _flash_backward(interpret, kept, gradient):
  del interpret
  return attention.attended_backward(BACKWARD_AT_ONCE, kept, gradient)


_flash.defvjp(_flash_forward, _flash_backward)


def _padded(x, multiples):
  """Returns x with zeros behind, each axis in multiples padded to a multiple of its number."""
  wanted = [(0, -size % multiples.get(axis, 1)) for axis, size in enumerate(x.shape)]
  return jnp.pad(x, wanted) if any(more for _, more in wanted) else x


def _interpreted(interpret):
  return jax.default_backend() == 'cpu' if interpret is None else interpret
