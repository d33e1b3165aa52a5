"""The KL penalty in the reward of each token, and its adaptive coefficient."""

import math

import jax
import jax.numpy as jnp

from rft_jax.objectives import kl
from rft_jax.objectives.masked import check_same_shapes


def subtract_kl(
  token_rewards, logprobs, reference_logprobs, loss_mask, *, coefficient
) -> jax.Array:
  """Returns token_rewards - coefficient * k1 f32[B, T], k1 = log p - log p_ref, a constant.

  The KL in the reward, as in Ziegler et al. 2019, https://arxiv.org/abs/1909.08593. It is
  subtracted before advantages are estimated; the sum of a row is its reward for an estimator over
  groups.

  Args:
    token_rewards: f32[B, T].
    logprobs, reference_logprobs: f32[B, T] nats; the policy's before the update.
    loss_mask: f32[B, T]; the result is 0 where it is 0.
    coefficient: reward per nat, f32[] (see adapt_kl_coefficient).
  """
  check_same_shapes(
    token_rewards=token_rewards,
    logprobs=logprobs,
    loss_mask=loss_mask,
    reference_logprobs=reference_logprobs,
  )
  k1 = jax.lax.stop_gradient(kl.k1(logprobs, reference_logprobs))
  return jnp.where(loss_mask > 0, token_rewards - coefficient * k1, 0.0)


def adapt_kl_coefficient(
  coefficient: float, measured: float, *, target: float, samples: int, horizon: int
) -> float:
  """Returns the KL coefficient of the next step, which moves the KL towards the target.

      coefficient * (1 + clip(measured / target - 1, -0.2, 0.2) * samples / horizon)

  Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2.

  Args:
    measured: KL in nats per completion, of the step that is over.
    target: the same, > 0.
    samples: completions since the last call.
    horizon: completions in which the coefficient may change by a fifth.
  """
  if not target > 0 or not 0 <= 0.2 * samples < horizon or math.isnan(measured):
    raise ValueError(
      f'measured={measured}, target={target}, samples={samples}, horizon={horizon}: '
      'need a number, target > 0 and 0 <= 0.2 * samples < horizon'
    )
  error = min(max(measured / target - 1, -0.2), 0.2)
  return coefficient * (1 + error * samples / horizon)
