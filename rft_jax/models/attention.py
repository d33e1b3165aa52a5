"""Attention: own keys and values and those of a shared prefix; choice of the implementation.

How it is computed (plain products, or a kernel) is a choice of IMPLEMENTATIONS; the result is the
same up to rounding. Letters beyond those of types.py: M query heads to a key-value head, N = K * M.
"""

import jax
import jax.numpy as jnp

from rft_jax import platform
from rft_jax.models import attention_rule
from rft_jax.models.attention_rule import SharedPrefix


def attend(
  q, k, v, prefix: SharedPrefix | None = None, segment_starts=None, *, implementation='auto'
):
  """Returns each query's mean of the values it attends to, [B, T, K, M, H], weighted by

      softmax over (prefix keys below prefix.lengths, own keys segment_starts[b, t] .. t)
      of q . k / sqrt(H)

  in one joint softmax. The prefix block is a single product of the G * T queries of a prompt with
  its S keys. The two blocks are never concatenated: they share their maximum and add
  their sums, which is exact. Scores, softmax and sums are float32; the result has q's dtype.

  Args:
    q: [B, T, K, M, H], B = P * G, the G rows of a prompt next to each other.
    k, v: [B, T, K, H].
    prefix: shared keys and values, or None.
    segment_starts: i32[B, T], the first own key that a query attends to: where its segment begins,
      in a row that holds several; None: 0.
    implementation: a name in IMPLEMENTATIONS, or 'auto': by the backend, see
      select_implementation.
  """
  if segment_starts is None:
    segment_starts = jnp.zeros(q.shape[:2], jnp.int32)
  name = select_implementation(implementation, q.dtype, q.shape[-1])
  with jax.named_scope('attention'):
    return IMPLEMENTATIONS[name](q, k, v, prefix, segment_starts)


def _kernel(name):
  """Returns a function of kernels.py, which is imported when it is first called."""

  def implementation(*args):
    # Not at the top: importing Pallas and splash attention costs start-up time on every backend,
    # also where no kernel is used.
    from rft_jax.models import kernels

    return getattr(kernels, name)(*args)

  return implementation


IMPLEMENTATIONS = {
  'batched': attention_rule.batched,
  'chunked': attention_rule.chunked,
  'cudnn': _kernel('cudnn'),
  'pallas': _kernel('pallas'),
  'splash': _kernel('splash'),
}


def available_implementations(dtype, head_dim: int) -> tuple[str, ...]:
  """Returns the names of the implementations that run on this backend.

  On a CPU, 'pallas' and 'splash' are emulated, which is for tests only. 'splash' computes float32
  products as the TPU does by default, so it is not for float32.
  """
  backend, dtype = platform.backend(), jnp.dtype(dtype)
  fits_cudnn = dtype in (jnp.bfloat16, jnp.float16) and head_dim <= 128 and head_dim % 8 == 0
  runs = {
    'batched': True,
    'chunked': True,
    'cudnn': backend == 'gpu' and fits_cudnn and _is_ampere_or_later(),
    'pallas': backend in ('cpu', 'gpu'),
    'splash': backend == 'cpu' or (backend == 'tpu' and dtype == jnp.bfloat16),
  }
  return tuple(name for name in IMPLEMENTATIONS if runs[name])


def _is_ampere_or_later() -> bool:
  """Returns whether this is a GPU of NVIDIA from 2020 or later, which cuDNN's attention needs."""
  capability = platform.device_capability()
  return capability is not None and capability >= 8.0


def select_implementation(implementation: str, dtype, head_dim: int) -> str:
  """Returns the name of the implementation that is used: 'auto' depends on the backend.

  'splash' and 'pallas' run on one device, or inside shard_map, and cuDNN has not been tried on
  several: there, 'auto' takes none of them.

  Raises:
    ValueError: the implementation does not run on this backend.
  """
  available = available_implementations(dtype, head_dim)
  if implementation == 'auto':
    if platform.is_cpu():
      return 'chunked'
    kernels = ('cudnn', 'splash') if jax.device_count() == 1 else ()
    return next((name for name in kernels if name in available), 'batched')
  if implementation not in available:
    raise ValueError(
      f'attention={implementation!r} does not run here ({platform.backend()}, '
      f'{jnp.dtype(dtype).name}, head_dim {head_dim}), need one of {available}'
    )
  return implementation
