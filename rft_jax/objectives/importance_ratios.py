"""Importance ratios of tokens, reasoning steps and sequences: policy over old policy.

Every function takes log-probs f32[B, T] in nats and loss_mask f32[B, T] (a token counts where it is
> 0, and is not read elsewhere), and returns f32[B, T]. old_logprobs are constants. Below,
Delta = logprobs - old_logprobs; the argument of exp is clamped to +-20.
"""

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import clamped_exp
from rft_jax.objectives.masked import apply_mask, check_same_shapes, row_means


def log_ratios(logprobs, old_logprobs, loss_mask):
  """Returns Delta, not clamped, and 0 where the mask is 0."""
  check_same_shapes(logprobs=logprobs, old_logprobs=old_logprobs, loss_mask=loss_mask)
  return apply_mask(logprobs, loss_mask) - jax.lax.stop_gradient(
    apply_mask(old_logprobs, loss_mask)
  )


def token(logprobs, old_logprobs, loss_mask):
  """Returns exp(Delta) of each token (PPO, https://arxiv.org/abs/1707.06347)."""
  return clamped_exp(log_ratios(logprobs, old_logprobs, loss_mask))


def sequence(logprobs, old_logprobs, loss_mask):
  """Returns exp(mean of Delta over the sequence's tokens), the same for each of its tokens.

  GSPO, https://arxiv.org/abs/2507.18071, eq. 7. The gradient goes through the mean, so each token
  gets 1 / n of it, and the loss is to be averaged over the tokens of a sequence, not summed.
  """
  means = row_means(log_ratios(logprobs, old_logprobs, loss_mask), loss_mask)
  return _exp_to_tokens(means, logprobs)


def sequence_token(logprobs, old_logprobs, loss_mask):
  """Returns the value of sequence(), with each token's own gradient of log p: GSPO-token.

      exp(sg[mean Delta] + logprobs - sg[logprobs])

  https://arxiv.org/abs/2507.18071, eq. 14. For advantages that differ within a sequence.
  """
  value = jax.lax.stop_gradient(sequence(logprobs, old_logprobs, loss_mask))
  return value * none(logprobs, old_logprobs, loss_mask)


def reasoning_step(logprobs, old_logprobs, loss_mask, steps):
  """Returns exp(mean of Delta over the tokens of the same reasoning step), for each of its tokens.

  sequence() for each reasoning step, so that ratio and clip have the level of the advantages.

  Args:
    steps: i32[B, T], the reasoning step of each token, from 0; not read where the mask is 0.
  """
  B, T = loss_mask.shape
  rows = jnp.arange(B)[:, None] * T
  segments = jnp.where(loss_mask > 0, jnp.clip(steps, 0, T - 1), 0) + rows
  sums = lambda values: jax.ops.segment_sum(values.reshape(-1), segments.reshape(-1), B * T)
  counts = sums((loss_mask > 0).astype(jnp.float32))
  means = sums(log_ratios(logprobs, old_logprobs, loss_mask)) / jnp.maximum(counts, 1.0)
  return clamped_exp(apply_mask(means[segments], loss_mask))


def product(logprobs, old_logprobs, loss_mask):
  """Returns exp(sum of Delta over the sequence's tokens): the ratio of whole completions.

  Exact where the token ratio is not, but it grows or vanishes with length.
  """
  sums = log_ratios(logprobs, old_logprobs, loss_mask).sum(-1, keepdims=True)
  return _exp_to_tokens(sums, logprobs)


def none(logprobs, old_logprobs, loss_mask):
  """Returns 1 with the gradient of log p: right only if the policy itself sampled the tokens."""
  del old_logprobs
  logprobs = apply_mask(logprobs, loss_mask)
  return jnp.exp(logprobs - jax.lax.stop_gradient(logprobs))


def _exp_to_tokens(log_ratio, like):
  return jnp.broadcast_to(clamped_exp(log_ratio), like.shape)


LEVELS = {
  'token': token,
  'sequence': sequence,
  'sequence_token': sequence_token,
  'product': product,
  'none': none,
}
LEVEL_NAMES = (*LEVELS, 'reasoning_step')  # the last takes the steps of the tokens too
