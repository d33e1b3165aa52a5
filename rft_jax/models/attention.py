"""The one attention rule: own keys and values, and those of a prefix that several rows share.

Letters beyond those of types.py: M query heads to a key-value head (N = K * M), X = T * M queries
of a key-value head. Queries are [B, T, K, M, H], so that no key is ever repeated for its M query
heads. How the rule is computed is a choice of IMPLEMENTATIONS; what it gives is not.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# Masked scores. Large and finite: -inf would make a fully masked row NaN, in its value and,
# through 0 * NaN, in everybody's gradient, also where the loss masks that row.
MASKED = -1e30
ATTENDED = 'attended'  # names what rematerialisation keeps of attention, see decoder.REMAT
SCORES_AT_ONCE = 2**20  # of the 'chunked' implementation: 4 MiB, about what a core's caches hold


class SharedPrefix(NamedTuple):
  """Keys and values that the G rows of a prompt attend to, stored once for all of them."""

  k: jax.Array  # [P, S, K, H]
  v: jax.Array  # [P, S, K, H]
  lengths: jax.Array  # i32[P], keys from here on are masked; 0 is fine


def precision_for(dtype):
  """The precision of matrix products: float32 means float32, also where the hardware's default
  for float32 operands is coarser (TF32 on GPUs, bfloat16 on TPUs)."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def attend(q, k, v, prefix: SharedPrefix | None = None, begins=None, *, implementation='auto'):
  """Returns each query's mean of the values it may see, [B, T, K, M, H], weighted by

      softmax over (prefix keys below prefix.lengths, own keys begins[b, t] .. t) of q . k / sqrt(H)

  in one joint softmax. The prefix block is a single product of the G * T queries of a prompt with
  its S keys. The two blocks are never concatenated: they share their maximum and add
  their sums, which is exact. Scores, softmax and sums are float32; the result has q's dtype.

  Args:
    q: [B, T, K, M, H], B = P * G, the G rows of a prompt next to each other.
    k, v: [B, T, K, H].
    prefix: shared keys and values, or None.
    begins: i32[B, T], the first own key that a query sees: where its segment begins, in a row that
      holds several; None: 0.
    implementation: a name in IMPLEMENTATIONS, or 'auto': chosen for the backend, see chosen.
  """
  begins = jnp.zeros(q.shape[:2], jnp.int32) if begins is None else begins
  name = chosen(implementation, q.dtype, q.shape[-1])
  with jax.named_scope('attention'):
    return IMPLEMENTATIONS[name](q, k, v, prefix, begins)


def batched(q, k, v, prefix, begins):
  """All scores at once, f32[P, G, K, X, T]: what an accelerator without a kernel wants."""
  return by_rows(lambda *args: _attended(*args, None), q, k, v, prefix, begins)


def chunked(q, k, v, prefix, begins):
  """A few rows after the other, so that no more than their scores ever exist, in a CPU's caches.

  Measured on two cores (8 prompts of 64, 8 rows each of 128, 8 heads of 32): 27 ms for 60 batched.
  """
  return by_rows(lambda *args: _attended(*args, SCORES_AT_ONCE), q, k, v, prefix, begins)


def _kernel(name):
  def implementation(*args):
    from rft_jax.models import kernels  # not above: it stands on this module

    return getattr(kernels, name)(*args)

  return implementation


IMPLEMENTATIONS = {
  'batched': batched,
  'chunked': chunked,
  'cudnn': _kernel('cudnn'),
  'pallas': _kernel('pallas'),
  'splash': _kernel('splash'),
}


def available(dtype, head_dim: int) -> tuple[str, ...]:
  """Returns the names of the implementations that run on this backend.

  On a CPU, 'pallas' and 'splash' are emulated, which serves tests alone. 'splash' computes float32
  products as the TPU does by default, so it is not for float32.
  """
  backend, dtype = jax.default_backend(), jnp.dtype(dtype)
  fits_cudnn = dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128 and head_dim % 8 == 0
  runs = {
    'batched': True,
    'chunked': True,
    'cudnn': backend == 'gpu' and fits_cudnn and _ampere(),
    'pallas': backend in ('cpu', 'gpu'),
    'splash': backend == 'cpu' or (backend == 'tpu' and dtype == jnp.bfloat16),
  }
  return tuple(name for name in IMPLEMENTATIONS if runs[name])


def _ampere() -> bool:
  """Whether this GPU is one of NVIDIA's from 2020 on: what cuDNN's fused attention demands."""
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  return capability.replace('.', '').isdigit() and float(capability) >= 8.0  # AMD's: 'gfx942'


def chosen(implementation: str, dtype, head_dim: int) -> str:
  """Returns the name of the implementation that is used: 'auto' depends on the backend.

  'splash' and 'pallas' are for one device, or inside shard_map, and cuDNN was never tried on
  several: there, 'auto' takes none of them.

  Raises:
    ValueError: the implementation does not run on this backend.
  """
  here = available(dtype, head_dim)
  if implementation == 'auto':
    if jax.default_backend() == 'cpu':
      return 'chunked'
    kernels = ('cudnn', 'splash') if jax.device_count() == 1 else ()
    return next((name for name in kernels if name in here), 'batched')
  if implementation not in here:
    raise ValueError(
      f'attention={implementation!r} does not run here ({jax.default_backend()}, '
      f'{jnp.dtype(dtype).name}, head_dim {head_dim}), need one of {here}'
    )
  return implementation


# --- plain products, forward and backward --------------------------------------------------------
class Rows(NamedTuple):
  """G rows of each of P prompts, in the order in which they are multiplied."""

  q: jax.Array  # [P, G, K, X, H]
  k: jax.Array  # [P, G, K, H, T]
  v: jax.Array  # [P, G, K, T, H]
  begins: jax.Array  # i32[P, G, X]


def by_rows(attended, q, k, v, prefix, begins):
  """Returns what attended(Rows, prefix laid out like them or None) gives, as attend returns it."""
  B, T, K, M, H = q.shape
  P = B if prefix is None else len(prefix.k)
  by_prompt = lambda x: x.reshape(P, B // P, *x.shape[1:])
  # Every product is a plain one, rows x inner times inner x columns for each key-value head:
  # of other forms XLA copies the scores into another order, the largest array there is.
  queries = q.transpose(0, 2, 1, 3, 4).reshape(B, K, T * M, H)
  rows = Rows(
    *map(
      by_prompt,
      (queries, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3), jnp.repeat(begins, M, axis=1)),
    )
  )
  if prefix is not None:
    prefix = SharedPrefix(
      prefix.k.transpose(0, 2, 3, 1), prefix.v.transpose(0, 2, 1, 3), prefix.lengths
    )
  out = attended(rows, prefix)  # [P, G, K, X, H]
  return out.reshape(B, K, T, M, H).transpose(0, 2, 1, 3, 4)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attended(rows, prefix, scores_at_once):
  """Returns [P, G, K, X, H]; at most about scores_at_once scores exist at a time (None: all)."""
  return _attended_forward(rows, prefix, scores_at_once)[0]


def _attended_forward(rows, prefix, scores_at_once):
  p, g = _chunk(rows, prefix, scores_at_once)
  of_prompts = lambda xs: jax.lax.map(lambda some: _attend_rows(some, xs[1]), xs[0])
  parts = jax.lax.map(of_prompts, (_split(rows, p, g), _split(prefix, p)))
  # Named, so that rematerialisation may keep them: all that the backward pass needs to know.
  out, normaliser = checkpoint_name(_join(parts), ATTENDED)
  return out, (rows, prefix, out, normaliser)


def attended_backward(scores_at_once, kept, gradient):
  """As in FlashAttention, Dao et al. 2022, arXiv 2205.14135, section 3.1: the weights are made
  again from the scores and their normaliser, a chunk at a time."""
  rows, prefix, out, normaliser = kept
  drift = (gradient.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  p, g = _chunk(rows, prefix, scores_at_once)

  def of_prompts(xs):
    of_rows, prefix = xs

    def some(total, xs):
      of_rows, of_prefix = _gradients(*xs, prefix)
      return jax.tree.map(jnp.add, total, of_prefix), of_rows

    zeros = None if prefix is None else tuple(jnp.zeros(x.shape, jnp.float32) for x in prefix[:2])
    return jax.lax.scan(some, zeros, of_rows)

  of_prefix, of_rows = jax.lax.map(
    of_prompts, (_split((rows, normaliser, drift, gradient), p, g), _split(prefix, p))
  )
  of_rows = Rows(*_join(of_rows), None)
  if prefix is None:
    return of_rows, None
  merge = lambda new, like: new.reshape(like.shape).astype(like.dtype)
  return of_rows, SharedPrefix(*map(merge, of_prefix, prefix[:2]), None)


_attended.defvjp(_attended_forward, attended_backward)


def _attend_rows(rows, prefix):
  """Returns (the rule's result in q's dtype, log of the sum of exp(scores) f32[P, G, K, X])."""
  scores, shared = _scores(rows, prefix)
  top = scores.max(-1, keepdims=True)
  if prefix is not None:
    top = jnp.maximum(top, _to_rows(shared.max(-1, keepdims=True), rows))
  weights = jnp.exp(scores - top)
  total = weights.sum(-1, keepdims=True)
  mixed = _product(weights.astype(rows.v.dtype), rows.v)
  if prefix is not None:
    weights = jnp.exp(shared - _to_prompts(top))
    total += _to_rows(weights.sum(-1, keepdims=True), rows)
    mixed += _to_rows(_product(weights.astype(rows.v.dtype), prefix.v), rows)
  blind = top == MASKED  # sees nothing: gives 0, and has no gradient
  out = jnp.where(blind, 0.0, mixed / total).astype(rows.q.dtype)
  return out, jnp.where(blind, -MASKED, top + jnp.log(total))[..., 0]


def _gradients(rows, normaliser, drift, gradient, prefix):
  """Returns (those of rows.q, .k and .v, those of prefix.k and .v or None)."""
  scale, dtype = rows.q.shape[-1] ** -0.5, rows.q.dtype
  scores, shared = _scores(rows, prefix)
  turned = lambda x: x.swapaxes(-1, -2)

  def block(q, k, v, scores, normaliser, drift, gradient):
    weights = jnp.exp(scores - normaliser[..., None])
    of_scores = (scale * weights * (_product(gradient, turned(v)) - drift[..., None])).astype(dtype)
    return (
      _product(of_scores, turned(k)),
      _product(turned(q), of_scores),
      _product(turned(weights.astype(dtype)), gradient),
    )

  of_q, of_k, of_v = block(*rows[:3], scores, normaliser, drift, gradient)
  of_prefix = None
  if prefix is not None:
    q, normaliser, drift, gradient = map(
      _to_prompts, (rows.q, normaliser[..., None], drift[..., None], gradient)
    )
    more, *of_prefix = block(q, *prefix[:2], shared, normaliser[..., 0], drift[..., 0], gradient)
    of_q, of_prefix = of_q + _to_rows(more, rows), tuple(of_prefix)
  return (of_q.astype(dtype), of_k.astype(dtype), of_v.astype(dtype)), of_prefix


def _scores(rows, prefix):
  """Returns the masked scores of own keys f32[P, G, K, X, T] and, by prompt, of the prefix's
  f32[P, K, G * X, S] or None."""
  X, H = rows.q.shape[3:]
  T = rows.v.shape[3]
  scale = H**-0.5  # of the float32 scores: scaled queries would be rounded in bfloat16
  here = jnp.arange(T)
  query = jnp.arange(X)[:, None] // (X // T)
  mask = (here <= query) & (here >= rows.begins[..., None])  # [P, G, X, T]
  scores = jnp.where(mask[:, :, None], scale * _product(rows.q, rows.k), MASKED)
  if prefix is None:
    return scores, None
  seen = jnp.arange(prefix.k.shape[-1]) < prefix.lengths[:, None]
  shared = scale * _product(_to_prompts(rows.q), prefix.k)
  return scores, jnp.where(seen[:, None, None], shared, MASKED)


def _to_prompts(x):
  """[P, G, K, X, n] -> [P, K, G * X, n]: one product serves all rows of a prompt."""
  P, G, K, X, n = x.shape
  return x.swapaxes(1, 2).reshape(P, K, G * X, n)


def _to_rows(x, rows):
  P, G, K, X, _ = rows.q.shape
  return x.reshape(P, K, G, X, -1).swapaxes(1, 2)


def _chunk(rows, prefix, scores_at_once) -> tuple[int, int]:
  """Returns how many prompts, and how many rows of each, are computed at a time."""
  P, G, K, X, _ = rows.q.shape
  if scores_at_once is None:
    return P, G
  columns = rows.v.shape[3] + (0 if prefix is None else prefix.v.shape[2])
  fits = max(scores_at_once // (K * X * columns), 1)
  g = _divisor(G, fits)
  return (_divisor(P, fits // G) if fits >= G else 1), g


def _split(tree, p, g=None):
  """[P, G, ...] -> [P / p, G / g, p, g, ...]; without g, [P, ...] -> [P / p, p, ...]."""

  def split(x):
    x = x.reshape(len(x) // p, p, *x.shape[1:])
    return (
      x if g is None else x.reshape(*x.shape[:2], x.shape[2] // g, g, *x.shape[3:]).swapaxes(1, 2)
    )

  return jax.tree.map(split, tree)


def _join(tree):
  """The inverse of _split with both."""

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


def _divisor(number: int, most: int) -> int:
  """Returns the largest divisor of number that is at most `most`, 1 at least."""
  return max(d for d in range(1, max(min(number, most), 1) + 1) if number % d == 0)
