"""Generalized advantage estimation (GAE) on tokens, rewards on tokens, and returns-to-go.

All arrays are [B, T]. Time is counted in trainable tokens: a position where the loss mask is 0 (a
token of a tool's output, padding) is skipped and never read, and every result is 0 there. Any value
of the mask above 0 counts as 1 here. Whole rows are needed, so all of this runs once on a batch, or
on a part of its rows.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import check_same_shapes
from rft_jax.types import Array


def terminal_rewards(rewards, loss_mask) -> jax.Array:
  """Returns f32[B, T]: the reward of each row on its last trainable token, 0 elsewhere.

  Args:
    rewards: f32[B]; that of a row without trainable tokens is dropped.
    loss_mask: f32[B, T].
  """
  if rewards.shape != loss_mask.shape[:1]:
    raise ValueError(f'rewards {rewards.shape}, need {loss_mask.shape[:1]}')
  trainable = loss_mask > 0
  tokens_to_go = jnp.cumsum(trainable[:, ::-1], axis=1)[:, ::-1]
  is_last = trainable & (tokens_to_go == 1)
  return jnp.where(is_last, jnp.asarray(rewards, jnp.float32)[:, None], 0.0)


class AdvantageEstimate(NamedTuple):
  """Advantages from a critic, and the returns it is trained on; constants, 0 outside the mask."""

  advantages: Array  # f32[B, T], not whitened
  returns: Array  # f32[B, T], advantages + values: the critic's target; never whitened


@functools.partial(jax.jit, static_argnames='bootstrap')  # an eager scan compiles at each call
def gae(
  token_rewards,
  values,
  loss_mask,
  *,
  discount=1.0,
  gae_lambda=0.95,
  bootstrap=False,
  truncated=None,
  final_values=None,
) -> AdvantageEstimate:
  """Returns generalized advantage estimates and returns.

      delta_t = r_t + discount V_{t+1} - V_t
      A_t = delta_t + discount gae_lambda A_{t+1},  R_t = A_t + V_t

  over the trainable tokens t = 1..n of a row. Schulman et al. 2016,
  https://arxiv.org/abs/1506.02438, eq. 16. V_{n+1} is 0: a completion ends with its end token. A
  truncated completion is treated as ended too, or with bootstrap V_{n+1} is the critic's value.

  Args:
    token_rewards: f32[B, T].
    values: f32[B, T], V of the state before token t is read.
    loss_mask: f32[B, T].
    bootstrap: take V_{n+1} of truncated rows from final_values.
    truncated: bool[B], the rows without an end token; final_values: f32[B], V after their last
      token. Read with bootstrap alone.
  """
  check_same_shapes(token_rewards=token_rewards, values=values, loss_mask=loss_mask)
  if bootstrap and (truncated is None or final_values is None):
    raise ValueError('bootstrap needs truncated and final_values')
  end = jnp.zeros(loss_mask.shape[:1], jnp.float32)
  if bootstrap:
    end = jnp.where(truncated, jnp.asarray(final_values, jnp.float32), end)

  def step_back(carry, column):
    next_value, next_advantage = carry
    reward, value, trainable = column
    delta = reward + discount * next_value - value
    advantage = delta + discount * gae_lambda * next_advantage
    carry = (
      jnp.where(trainable, value, next_value),
      jnp.where(trainable, advantage, next_advantage),
    )
    return carry, jnp.where(trainable, advantage, 0.0)

  columns = (
    jnp.asarray(token_rewards, jnp.float32).T,
    jnp.asarray(values, jnp.float32).T,
    loss_mask.T > 0,
  )
  columns, end = jax.lax.stop_gradient((columns, end))
  _, advantages = jax.lax.scan(step_back, (end, jnp.zeros_like(end)), columns, reverse=True)
  advantages = advantages.T
  returns = jnp.where(loss_mask > 0, advantages + columns[1].T, 0.0)
  return AdvantageEstimate(advantages, returns)


def returns_to_go(token_rewards, loss_mask, *, discount=1.0) -> jax.Array:
  """Returns f32[B, T]: the sum of discount^k r_{t+k} over the trainable tokens from t on.

  REINFORCE's return of a token, https://doi.org/10.1007/BF00992696: GAE without a critic.
  """
  no_values = jnp.zeros(loss_mask.shape)
  return gae(token_rewards, no_values, loss_mask, discount=discount, gae_lambda=1.0).advantages
