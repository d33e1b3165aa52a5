"""From rewards on tokens to returns and advantages on tokens; the critic's loss.

All arrays are [B, T]. Time is counted in trainable tokens: a position of weight 0 (a tool's token,
padding) is skipped as if it were not there and never read, and every result is 0 on it. Weights
above 0 are all alike here; they weigh when a loss is summed. Whole rows are needed, so all of
this runs once on a batch, or on any part of its rows, but whitening looks at all rows: see
Moments.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives import kl
from rft_jax.objectives.advantages import WHITEN_EPSILON

# ------------------------------------------------------------------ rewards of tokens


def terminal_rewards(rewards, weights) -> jax.Array:
  """Returns f32[B, T]: the reward of each row on its last trainable token, 0 elsewhere.

  Args:
    rewards: f32[B]; of a row without trainable tokens it goes nowhere.
    weights: f32[B, T].
  """
  if rewards.shape != weights.shape[:1]:
    raise ValueError(f'rewards {rewards.shape}, need {weights.shape[:1]}')
  trainable = weights > 0
  left = jnp.cumsum(trainable[:, ::-1], axis=1)[:, ::-1]
  return jnp.where(trainable & (left == 1), jnp.asarray(rewards, jnp.float32)[:, None], 0.0)


def subtract_kl(token_rewards, logprobs, reference_logprobs, weights, *, coefficient) -> jax.Array:
  """Returns token_rewards - coefficient * k1, k1 = log p - log p_ref a constant.

  The KL in the reward, as in Ziegler et al. 2019, https://arxiv.org/abs/1909.08593. It comes
  before the estimator; the sum of a row is that row's reward for an estimator over groups.

  Args:
    token_rewards: f32[B, T].
    logprobs, reference_logprobs: f32[B, T] nats; the policy's before the update.
    coefficient: nats to reward, f32[] (see adapt_kl_coefficient).
  """
  _same_shapes(
    token_rewards=token_rewards,
    logprobs=logprobs,
    weights=weights,
    reference_logprobs=reference_logprobs,
  )
  k1 = jax.lax.stop_gradient(kl.k1(logprobs, reference_logprobs))
  return jnp.where(weights > 0, token_rewards - coefficient * k1, 0.0)


def adapt_kl_coefficient(
  coefficient: float, measured: float, *, target: float, samples: int, horizon: int
) -> float:
  """Returns the coefficient for the next step, so that the KL comes to target.

      coefficient * (1 + clip(measured / target - 1, -0.2, 0.2) * samples / horizon)

  Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2.

  Args:
    measured: KL in nats a completion, in the step that is over.
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


# ------------------------------------------------------------------ returns


class AdvantageEstimate(NamedTuple):
  """What a critic makes of a batch; constants, 0 on weight 0."""

  advantages: jax.Array  # f32[B, T], to be whitened or not
  returns: jax.Array  # f32[B, T], advantages + values: what the critic is to say; never whitened


@functools.partial(jax.jit, static_argnames='bootstrap')  # an eager scan compiles at each call
def gae(
  token_rewards,
  values,
  weights,
  *,
  discount=1.0,
  gae_lambda=0.95,
  bootstrap=False,
  truncated=None,
  final_values=None,
) -> AdvantageEstimate:
  """Returns generalised advantage estimates and returns.

      delta_t = r_t + discount V_{t+1} - V_t
      A_t = delta_t + discount gae_lambda A_{t+1},  R_t = A_t + V_t

  over the trainable tokens t = 1..n of a row. Schulman et al. 2016,
  https://arxiv.org/abs/1506.02438, eq. 16. V_{n+1} is 0: a completion is over when its end token
  was sampled. One that was cut off counts as over too, or with bootstrap goes on to be worth what
  the critic says.

  Args:
    token_rewards: f32[B, T].
    values: f32[B, T], V of the state before token t is read.
    weights: f32[B, T].
    bootstrap: take V_{n+1} of truncated rows from final_values.
    truncated: bool[B], the rows without an end token; final_values: f32[B], V after their last
      token. Read with bootstrap alone.
  """
  _same_shapes(token_rewards=token_rewards, values=values, weights=weights)
  if bootstrap and (truncated is None or final_values is None):
    raise ValueError('bootstrap needs truncated and final_values')
  end = jnp.zeros(weights.shape[:1], jnp.float32)
  if bootstrap:
    end = jnp.where(truncated, jnp.asarray(final_values, jnp.float32), end)

  def back(later, here):
    next_value, next_advantage = later
    reward, value, trainable = here
    delta = reward + discount * next_value - value
    advantage = delta + discount * gae_lambda * next_advantage
    kept = (
      jnp.where(trainable, value, next_value),
      jnp.where(trainable, advantage, next_advantage),
    )
    return kept, jnp.where(trainable, advantage, 0.0)

  columns = (
    jnp.asarray(token_rewards, jnp.float32).T,
    jnp.asarray(values, jnp.float32).T,
    weights.T > 0,
  )
  columns, end = jax.lax.stop_gradient((columns, end))
  _, advantages = jax.lax.scan(back, (end, jnp.zeros_like(end)), columns, reverse=True)
  advantages = advantages.T
  return AdvantageEstimate(advantages, jnp.where(weights > 0, advantages + columns[1].T, 0.0))


def returns_to_go(token_rewards, weights, *, discount=1.0) -> jax.Array:
  """Returns f32[B, T]: the sum of discount^k r_{t+k} over the trainable tokens from t on.

  REINFORCE's weight of a token, https://doi.org/10.1007/BF00992696: GAE without a critic.
  """
  return gae(
    token_rewards, jnp.zeros(weights.shape), weights, discount=discount, gae_lambda=1.0
  ).advantages


# ------------------------------------------------------------------ whitening


class Moments(NamedTuple):
  """What whitening asks of tokens, in a form of which two can be joined.

  A sum of squares would lose the std where the mean is large, so the deviations from the mean are
  kept; low and high tell equal values, of which a computed std may be a rounding error.
  """

  count: jax.Array  # f32[]
  mean: jax.Array  # f32[]
  squares: jax.Array  # f32[], the sum of squared deviations from mean
  low: jax.Array  # f32[]
  high: jax.Array  # f32[]


def moments(values, weights) -> Moments:
  """Returns the Moments of the trainable values of some rows; values are constants."""
  _same_shapes(values=values, weights=weights)
  values, trainable = jax.lax.stop_gradient(jnp.asarray(values, jnp.float32)), weights > 0
  count = trainable.sum(dtype=jnp.float32)
  mean = jnp.where(trainable, values, 0.0).sum() / jnp.maximum(count, 1.0)
  squares = jnp.square(jnp.where(trainable, values - mean, 0.0)).sum()
  return Moments(
    count,
    mean,
    squares,
    jnp.where(trainable, values, jnp.inf).min(initial=jnp.inf),
    jnp.where(trainable, values, -jnp.inf).max(initial=-jnp.inf),
  )


def join(a: Moments, b: Moments) -> Moments:
  """Returns the Moments of both; Chan et al. 1979, the pairwise update of mean and squares."""
  count = a.count + b.count
  share = b.count / jnp.maximum(count, 1.0)
  apart = b.mean - a.mean
  return Moments(
    count,
    a.mean + apart * share,
    a.squares + b.squares + jnp.square(apart) * a.count * share,
    jnp.minimum(a.low, b.low),
    jnp.maximum(a.high, b.high),
  )


def whiten(values, weights, of: Moments | None = None) -> jax.Array:
  """Returns (x - mean) / (std + 1e-8) on trainable tokens, a constant; 0 if all are equal.

  The mean and the std (over all tokens, without ddof) must be of the whole optimizer batch.

  Args:
    values, weights: f32[B, T], the whole batch; or, with `of`, any rows of it.
    of: the Moments of the whole batch, joined over its parts; None: those of values.
  """
  of = moments(values, weights) if of is None else of
  std = jnp.sqrt(of.squares / jnp.maximum(of.count, 1.0))
  white = (jax.lax.stop_gradient(values) - of.mean) / (std + WHITEN_EPSILON)
  return jnp.where((weights > 0) & (of.high > of.low), white, 0.0)


# ------------------------------------------------------------------ the critic


def value_loss(values, old_values, returns, weights, *, clip=0.2):
  """Returns the critic's loss of each token f32[B, T], and where the clip binds bool[B, T].

      max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

  The value clipping of PPO's implementations, see https://arxiv.org/abs/2005.12729. Both
  results are 0 on weight 0; a token mean over the whole batch is meant.

  Args:
    values: f32[B, T], of the critic that is trained.
    old_values, returns: f32[B, T], from before the update; constants.
    clip: how far a value may move; None: as far as it likes, and old_values is not read.
  """
  old_values = values if clip is None else old_values
  _same_shapes(values=values, old_values=old_values, returns=returns, weights=weights)
  trainable = weights > 0
  values, old_values, returns = (
    jnp.where(trainable, x, 0.0) for x in (values, old_values, returns)
  )
  old_values, returns = jax.lax.stop_gradient((old_values, returns))
  plain = jnp.square(values - returns) / 2
  if clip is None:
    return plain, jnp.zeros(plain.shape, bool)
  held = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns) / 2
  return jnp.where(held > plain, held, plain), held > plain


def _same_shapes(**arrays):
  if len({array.shape for array in arrays.values()}) > 1:
    shapes = ', '.join(f'{name} {array.shape}' for name, array in arrays.items())
    raise ValueError(f'shapes differ: {shapes}')
