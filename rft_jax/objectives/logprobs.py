"""Log-probs, entropy and rank of target tokens without the full logits [B, T, V]."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from rft_jax import platform

# Logits in memory at once, on each device. On a CPU they should fit its caches, 16 MiB; elsewhere
# 512 MiB make a chunk of enough tokens to be worth reading the head for.
CHUNK_ELEMENTS = {'cpu': 2**22}
CHUNK_ELEMENTS_ELSEWHERE = 2**27


class TokenStatistics(NamedTuple):
  """Log-prob, entropy and rank of each target token under a policy."""

  logprobs: jax.Array  # f32[B, T] nats, of logits divided by the temperature
  entropy: jax.Array  # f32[B, T] nats, of the same distribution
  greedy: jax.Array  # bool[B, T], whether no other token was more probable
  values: jax.Array | None = None  # f32[B, T], the critic's, of the state before the token


def apply_temperature(logits, temperature, valid_vocab: int):
  """Returns the logits for sampling and scoring: fp32, over temperature, padded ids at -1e30.

  A checkpoint's embedding often has more rows than its tokenizer has ids; those rows are never
  sampled, and get no probability in scoring either.
  """
  logits = logits.astype(jnp.float32) / temperature
  if valid_vocab < logits.shape[-1]:
    logits = jnp.where(jnp.arange(logits.shape[-1]) < valid_vocab, logits, -1e30)
  return logits


def token_statistics(hidden, head, targets, *, temperature, valid_vocab: int) -> TokenStatistics:
  """Returns the log-prob, entropy and rank-one flag of each target token.

  Logits are computed for a few columns of tokens at a time and computed again in the backward pass,
  so that memory does not grow with T x V. Chunks run along T: rows may be sharded over devices.
  Log-prob and entropy both have their gradient; that of the entropy is computed only if the loss
  reads the entropy.

  Args:
    hidden: [B, T, D], hidden[:, t] predicts targets[:, t].
    head: f32[D, V].
    targets: i32[B, T]; ids on padding may be anything in range.
    temperature: f32[], what the logits are divided by: the sampler's.
    valid_vocab: the number of ids of the tokenizer.
  """
  return _statistics(hidden, head, targets, temperature, valid_vocab)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _statistics(hidden, head, targets, temperature, valid_vocab):
  return _compute(hidden, head, targets, temperature, valid_vocab)[0]


def _compute(hidden, head, targets, temperature, valid_vocab):
  split, join = _chunks(targets.shape, head.shape[1])

  def chunk_statistics(_, chunk):
    hidden, targets = chunk
    logits = apply_temperature(_logits(hidden, head), temperature, valid_vocab)
    target_logits = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    top = logits.max(-1)
    weights = jnp.exp(logits - top[:, None])
    total = weights.sum(-1)
    normaliser = top + jnp.log(total)
    entropy = normaliser - (weights * logits).sum(-1) / total
    statistics = TokenStatistics(target_logits - normaliser, entropy, target_logits >= top)
    return None, (statistics, normaliser)

  _, parts = jax.lax.scan(chunk_statistics, None, (split(hidden), split(targets)))
  statistics, normaliser = jax.tree.map(join, parts)
  return statistics, (hidden, head, targets, temperature, normaliser, statistics.entropy)


def _forward(hidden, head, targets, temperature, valid_vocab):
  primals = (hidden, head, targets, temperature)  # with symbolic zeros each comes as a pair
  return _compute(*(primal.value for primal in primals), valid_vocab)


def _backward(valid_vocab, residuals, gradient):
  """By the logits z, divided by the temperature,

  d log p(y) / dz = [z is y's] - p,  d H / dz = -p (log p + H)
  """
  hidden, head, targets, temperature, normaliser, entropy = residuals
  split, join = _chunks(targets.shape, head.shape[1])
  # Decided while tracing: a loss that does not read the entropy has a program without its gradient.
  reads_entropy = not isinstance(gradient.entropy, SymbolicZero)
  d_logprobs = gradient.logprobs
  if isinstance(d_logprobs, SymbolicZero):
    d_logprobs = jnp.zeros(targets.shape, jnp.float32)
  extra = (split(entropy), split(gradient.entropy / temperature)) if reads_entropy else ()

  def chunk_gradient(d_head, chunk):
    hidden, targets, normaliser, d_logprobs, *extra = chunk
    with jax.named_scope('head_gradient'):
      logits = apply_temperature(_logits(hidden, head), temperature, valid_vocab)
      log_p = logits - normaliser[:, None]
      probabilities = jnp.exp(log_p)
      is_target = jnp.arange(head.shape[1]) == targets[:, None]
      d_logits = (is_target - probabilities) * d_logprobs[:, None]
      if reads_entropy:  # an excluded id has p = 0 and a finite log p, so it adds 0
        entropy, d_entropy = (x[:, None] for x in extra)
        d_logits -= probabilities * (log_p + entropy) * d_entropy
      d_hidden = _matmul(d_logits, head.T)
      return d_head + _matmul(hidden.astype(jnp.float32).T, d_logits), d_hidden

  d_head, d_hidden = jax.lax.scan(
    chunk_gradient,
    jnp.zeros(head.shape, jnp.float32),
    (split(hidden), split(targets), split(normaliser), split(d_logprobs / temperature), *extra),
  )
  return join(d_hidden).astype(hidden.dtype), d_head, None, None


_statistics.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunks(shape, V):
  """Returns (split, join): [B, T, ...] to [chunks, rows, ...] of few enough tokens, and back."""
  B, T = shape
  elements = CHUNK_ELEMENTS.get(platform.backend(), CHUNK_ELEMENTS_ELSEWHERE)
  columns = max(1, min(T, elements // (B * V)))
  chunks = -(-T // columns)

  def split(x):
    x = jnp.pad(x, [(0, 0), (0, chunks * columns - T)] + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(x.reshape(B, chunks, columns, *x.shape[2:]), 1, 0)
    return x.reshape(chunks, B * columns, *x.shape[3:])

  def join(x):
    x = jnp.moveaxis(x.reshape(chunks, B, columns, *x.shape[2:]), 0, 1)
    return x.reshape(B, chunks * columns, *x.shape[3:])[:, :T]

  return split, join


def _logits(hidden, head):
  with jax.named_scope('head'):
    return _matmul(hidden.astype(jnp.float32), head)


def _matmul(x, y):
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)
