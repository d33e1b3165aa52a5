"""Importance ratios: how much more probable the policy finds what was sampled, token to sequence.

Every function takes log-probs f32[B, T] in nats and weights f32[B, T] (a token counts where its
weight is > 0, and is not read elsewhere), and returns f32[B, T]. old_logprobs are constants. Below,
Delta = logprobs - old_logprobs; the argument of exp is held within +-20.
"""

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import clamped_exp
from rft_jax.objectives.masked import only, row_means


def log_ratios(logprobs, old_logprobs, weights):
  """Returns Delta, not clamped, and 0 where the weight is 0."""
  if not logprobs.shape == old_logprobs.shape == weights.shape:
    raise ValueError(
      f'shapes differ: logprobs {logprobs.shape}, old_logprobs '
      f'{old_logprobs.shape}, weights {weights.shape}'
    )
  return only(logprobs, weights) - jax.lax.stop_gradient(only(old_logprobs, weights))


def token(logprobs, old_logprobs, weights):
  """Returns exp(Delta) of each token (PPO, https://arxiv.org/abs/1707.06347)."""
  return clamped_exp(log_ratios(logprobs, old_logprobs, weights))


def sequence(logprobs, old_logprobs, weights):
  """Returns exp(mean of Delta over the sequence's tokens), the same for each of its tokens.

  GSPO, https://arxiv.org/abs/2507.18071, eq. 7. The gradient goes through the mean, so each token
  gets 1 / n of it, and the loss is to be averaged over the tokens of a sequence, not summed.
  """
  return _same_for_all(row_means(log_ratios(logprobs, old_logprobs, weights), weights), logprobs)


def sequence_token(logprobs, old_logprobs, weights):
  """Returns the value of sequence(), with each token's own gradient of log p: GSPO-token.

      exp(sg[mean Delta] + logprobs - sg[logprobs])

  https://arxiv.org/abs/2507.18071, eq. 14. For advantages that differ within a sequence.
  """
  value = jax.lax.stop_gradient(sequence(logprobs, old_logprobs, weights))
  return value * none(logprobs, old_logprobs, weights)


def step(logprobs, old_logprobs, weights, steps):
  """Returns exp(mean of Delta over the tokens of the same step), the same for each of them.

  sequence() for each step of the reasoning: ratio and clip act where the credit goes.

  Args:
    steps: i32[B, T], from 0 on, the step of each token; not read where the weight is 0.
  """
  B, T = weights.shape
  rows = jnp.arange(B)[:, None] * T
  places = jnp.where(weights > 0, jnp.clip(steps, 0, T - 1), 0) + rows
  sums = lambda values: jax.ops.segment_sum(values.reshape(-1), places.reshape(-1), B * T)
  counts = sums((weights > 0).astype(jnp.float32))
  means = sums(log_ratios(logprobs, old_logprobs, weights)) / jnp.maximum(counts, 1.0)
  return clamped_exp(only(means[places], weights))


def product(logprobs, old_logprobs, weights):
  """Returns exp(sum of Delta over the sequence's tokens): the ratio of whole answers.

  Exact where the token ratio is not, but it grows or vanishes with length.
  """
  summed = log_ratios(logprobs, old_logprobs, weights).sum(-1, keepdims=True)
  return _same_for_all(summed, logprobs)


def none(logprobs, old_logprobs, weights):
  """Returns 1 with the gradient of log p: right only while the policy is the one that sampled."""
  del old_logprobs
  logprobs = only(logprobs, weights)
  return jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))


def _same_for_all(log_ratio, like):
  return jnp.broadcast_to(clamped_exp(log_ratio), like.shape)


LEVELS = {
  'token': token,
  'sequence': sequence,
  'sequence_token': sequence_token,
  'product': product,
  'none': none,
}
NAMES = (*LEVELS, 'reasoning_step')  # the last reads the steps too
