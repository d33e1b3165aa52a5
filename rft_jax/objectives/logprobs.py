"""Log-probs of given tokens from hidden states, without an array over tokens and vocabulary."""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK_ELEMENTS = 2**22  # logits alive at once: 16 MiB in float32, on each device


class TokenStatistics(NamedTuple):
  """What a policy says of each given token."""
  logprobs: jax.Array  # f32[B, T] nats, of logits divided by the temperature
  entropy: jax.Array  # f32[B, T] nats, of the same distribution; a constant to gradients
  greedy: jax.Array  # bool[B, T], whether no other token was more probable


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

  Args:
    hidden: [B, T, D], hidden[:, t] predicts targets[:, t].
    head: f32[D, V].
    targets: i32[B, T]; ids on padding may be anything in range.
    temperature: f32[], what the logits are divided by: the sampler's.
    valid_vocab: how many ids the tokenizer has.
  """
  B, T, D = hidden.shape
  columns = max(1, min(T, CHUNK_ELEMENTS // (B * head.shape[1])))
  chunks = -(-T // columns)
  padded = [(0, 0), (0, chunks * columns - T)]
  # [B, T, ...] -> [chunks, B, columns, ...]
  split = lambda x: jnp.moveaxis(x.reshape(B, chunks, columns, *x.shape[2:]), 1, 0)
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(B, chunks * columns)[:, :T]

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def statistics(hidden, targets):
    with jax.named_scope('head'):
      logits = jnp.einsum('btd,dv->btv', hidden.astype(jnp.float32), head,
                          precision=jax.lax.Precision.HIGHEST)
    logits = temper(logits, temperature, valid_vocab)
    chosen = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    normaliser = jax.nn.logsumexp(logits, -1)
    fixed = jax.lax.stop_gradient(logits)
    probabilities = jnp.exp(fixed - jax.lax.stop_gradient(normaliser)[..., None])
    entropy = jax.lax.stop_gradient(normaliser) - (probabilities * fixed).sum(-1)
    return TokenStatistics(chosen - normaliser, entropy, chosen >= fixed.max(-1))

  _, parts = jax.lax.scan(lambda _, xs: (None, statistics(*xs)), None,
                          (split(jnp.pad(hidden, [*padded, (0, 0)])),
                           split(jnp.pad(targets, padded))))
  return jax.tree.map(join, parts)
