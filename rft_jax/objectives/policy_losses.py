"""Policy-gradient losses, per token and unreduced; who aggregates divides once, globally."""
import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import MAX_LOG_RATIO


def clipped_surrogate(logprobs, old_logprobs, advantages, *, clip_low=0.2, clip_high=0.28):
  """Returns PPO's clipped policy loss of each token, and where its bounds bind.

      r = exp(logprobs - old_logprobs)
      loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

  Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7. Unequal bounds ("clip-higher")
  are from DAPO, https://arxiv.org/abs/2503.14476.

  Args:
    logprobs: f32[B, T] nats, of the sampled tokens under the policy being trained.
    old_logprobs: f32[B, T] nats, of the same tokens before this update; a constant.
    advantages: f32[B, T], already centred; a constant.
    clip_low, clip_high: how far r may fall below or rise above 1 before its gradient stops.

  Returns:
    (loss f32[B, T], bound_low bool[B, T], bound_high bool[B, T]). The lower bound binds only
    where A < 0, the upper one only where A > 0.
  """
  if not logprobs.shape == old_logprobs.shape == advantages.shape:
    raise ValueError(f'shapes differ: logprobs {logprobs.shape}, old_logprobs '
                     f'{old_logprobs.shape}, advantages {advantages.shape}')
  old_logprobs, advantages = jax.lax.stop_gradient((old_logprobs, advantages))
  ratio = jnp.exp(jnp.clip(logprobs - old_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  bound_low = (ratio < 1 - clip_low) & (advantages < 0)
  bound_high = (ratio > 1 + clip_high) & (advantages > 0)
  return loss, bound_low, bound_high


def truncated_importance(logprobs, sampler_logprobs, *, cap):
  """Returns each token's weight min(p / q, cap), a constant, where p is the trainer's probability
  of it before the update and q the sampler's.

  Engines round differently, so what is sampled is not quite of the policy that is trained; the
  weights make the gradient that policy's again, the cap bounds their variance. Ionides 2008,
  "Truncated importance sampling", https://doi.org/10.1198/106186008X320456.

  Args:
    logprobs, sampler_logprobs: f32[B, T] nats, of the same tokens.
    cap: the largest weight.
  """
  log_ratio = jnp.clip(logprobs - sampler_logprobs, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  return jax.lax.stop_gradient(jnp.minimum(jnp.exp(log_ratio), cap))
