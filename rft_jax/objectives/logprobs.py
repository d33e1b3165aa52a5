"""Log-probs of given tokens from hidden states, without an array over tokens and vocabulary."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

# Logits alive at once, on each device. A CPU wants them in its caches, 16 MiB; elsewhere, with
# 512 MiB, there are enough tokens in a chunk to be worth a reading of the head.
CHUNK_ELEMENTS = {'cpu': 2**22}
CHUNK_ELEMENTS_ELSEWHERE = 2**27


class TokenStatistics(NamedTuple):
  """What a policy says of each given token."""

  logprobs: jax.Array  # f32[B, T] nats, of logits divided by the temperature
  entropy: jax.Array  # f32[B, T] nats, of the same distribution
  greedy: jax.Array  # bool[B, T], whether no other token was more probable
  values: jax.Array | None = None  # f32[B, T], the critic's, of the state before the token


def temper(logits, temperature, valid_vocab: int):
  """Returns the logits that are sampled and scored: fp32, tempered, padded ids ruled out.

  A checkpoint's embedding often has more rows than its tokenizer has ids; those rows are never
  sampled, and get no probability in scoring either.
  """
  logits = logits.astype(jnp.float32) / temperature
  if valid_vocab < logits.shape[-1]:
    logits = jnp.where(jnp.arange(logits.shape[-1]) < valid_vocab, logits, -1e30)
  return logits


def token_statistics(hidden, head, targets, *, temperature, valid_vocab: int) -> TokenStatistics:
  """Returns the log-prob, entropy and rank-one flag of each target token.

  Logits are made for a few columns of tokens at a time and made again in the backward pass, so
  that memory does not grow with T x V. Chunks run along T: rows may be sharded over devices.
  Log-prob and entropy both have their gradient; a loss without entropy does not pay for the latter.

  Args:
    hidden: [B, T, D], hidden[:, t] predicts targets[:, t].
    head: f32[D, V].
    targets: i32[B, T]; ids on padding may be anything in range.
    temperature: f32[], what the logits are divided by: the sampler's.
    valid_vocab: how many ids the tokenizer has.
  """
  return _statistics(hidden, head, targets, temperature, valid_vocab)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _statistics(hidden, head, targets, temperature, valid_vocab):
  return _compute(hidden, head, targets, temperature, valid_vocab)[0]


def _compute(hidden, head, targets, temperature, valid_vocab):
  split, join = _chunks(targets.shape, head.shape[1])

  def some(_, xs):
    hidden, targets = xs
    logits = temper(_logits(hidden, head), temperature, valid_vocab)
    chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
    top = logits.max(-1)
    weights = jnp.exp(logits - top[:, None])
    total = weights.sum(-1)
    normaliser = top + jnp.log(total)
    entropy = normaliser - (weights * logits).sum(-1) / total
    return None, (TokenStatistics(chosen - normaliser, entropy, chosen >= top), normaliser)

  _, parts = jax.lax.scan(some, None, (split(hidden), split(targets)))
  statistics, normaliser = jax.tree.map(join, parts)
  return statistics, (hidden, head, targets, temperature, normaliser, statistics.entropy)


def _forward(hidden, head, targets, temperature, valid_vocab):
  given = (hidden, head, targets, temperature)  # with symbolic zeros each comes as a pair
  return _compute(*(primal.value for primal in given), valid_vocab)


def _backward(valid_vocab, kept, gradient):
  """By the tempered logits z,

  d log p(y) / dz = [z is y's] - p,  d H / dz = -p (log p + H)
  """
  hidden, head, targets, temperature, normaliser, entropy = kept
  split, join = _chunks(targets.shape, head.shape[1])
  # Told while traced: a loss that leaves the entropy alone has a program without it.
  by_entropy = not isinstance(gradient.entropy, SymbolicZero)
  of_logprobs = gradient.logprobs
  if isinstance(of_logprobs, SymbolicZero):
    of_logprobs = jnp.zeros(targets.shape, jnp.float32)
  extra = (split(entropy), split(gradient.entropy / temperature)) if by_entropy else ()

  def some(of_head, xs):
    hidden, targets, normaliser, of_logprobs, *extra = xs
    with jax.named_scope('head_gradient'):
      logits = temper(_logits(hidden, head), temperature, valid_vocab)
      log_p = logits - normaliser[:, None]
      probabilities = jnp.exp(log_p)
      hit = jnp.arange(head.shape[1]) == targets[:, None]
      of_logits = (hit - probabilities) * of_logprobs[:, None]
      if by_entropy:  # an id ruled out has p = 0 and a finite log p, so it adds 0
        entropy, of_entropy = (x[:, None] for x in extra)
        of_logits -= probabilities * (log_p + entropy) * of_entropy
      of_hidden = _matmul(of_logits, head.T)
      return of_head + _matmul(hidden.astype(jnp.float32).T, of_logits), of_hidden

  of_head, of_hidden = jax.lax.scan(
    some,
    jnp.zeros(head.shape, jnp.float32),
    (split(hidden), split(targets), split(normaliser), split(of_logprobs / temperature), *extra),
  )
  return join(of_hidden).astype(hidden.dtype), of_head, None, None


_statistics.defvjp(_forward, _backward, symbolic_zeros=True)


def _chunks(shape, V):
  """Returns (split, join): [B, T, ...] to [chunks, rows, ...] of few enough tokens, and back."""
  B, T = shape
  elements = CHUNK_ELEMENTS.get(jax.default_backend(), CHUNK_ELEMENTS_ELSEWHERE)
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
