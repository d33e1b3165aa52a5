"""Whitening: advantages scaled to mean 0 and std 1 over the trainable tokens of a batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import check_same_shapes

WHITEN_EPSILON = 1e-8  # added to the std


class Moments(NamedTuple):
  """Mean and spread of the trainable values of some rows; join() merges those of two parts.

  A sum of squares would lose the std where the mean is large, so it is the squared deviations from
  the mean that are summed. low and high detect equal values, whose computed std may be a rounding
  error.
  """

  size: jax.Array  # f32[], the number of values
  mean: jax.Array  # f32[]
  squares: jax.Array  # f32[], the sum of squared deviations from mean
  low: jax.Array  # f32[]
  high: jax.Array  # f32[]


def moments(values, loss_mask) -> Moments:
  """Returns the Moments of the trainable values of some rows; values are constants."""
  check_same_shapes(values=values, loss_mask=loss_mask)
  values, trainable = jax.lax.stop_gradient(jnp.asarray(values, jnp.float32)), loss_mask > 0
  size = trainable.sum(dtype=jnp.float32)
  mean = jnp.where(trainable, values, 0.0).sum() / jnp.maximum(size, 1.0)
  squares = jnp.square(jnp.where(trainable, values - mean, 0.0)).sum()
  return Moments(
    size,
    mean,
    squares,
    jnp.where(trainable, values, jnp.inf).min(initial=jnp.inf),
    jnp.where(trainable, values, -jnp.inf).max(initial=-jnp.inf),
  )


def join(a: Moments, b: Moments) -> Moments:
  """Returns the Moments of a and b together; Chan et al. 1979, the pairwise update."""
  size = a.size + b.size
  share = b.size / jnp.maximum(size, 1.0)
  difference = b.mean - a.mean
  return Moments(
    size,
    a.mean + difference * share,
    a.squares + b.squares + jnp.square(difference) * a.size * share,
    jnp.minimum(a.low, b.low),
    jnp.maximum(a.high, b.high),
  )


def whiten(values, loss_mask, batch_moments: Moments | None = None) -> jax.Array:
  """Returns (x - mean) / (std + 1e-8) on trainable tokens, a constant; 0 if all are equal.

  The mean and the std (over all tokens, without ddof) must be of the whole optimizer batch.

  Args:
    values, loss_mask: f32[B, T], the whole batch; or, with batch_moments, any rows of it.
    batch_moments: of the whole batch, joined over its parts; None: those of values.
  """
  if batch_moments is None:
    batch_moments = moments(values, loss_mask)
  size, mean, squares, low, high = batch_moments
  std = jnp.sqrt(squares / jnp.maximum(size, 1.0))
  white = (jax.lax.stop_gradient(values) - mean) / (std + WHITEN_EPSILON)
  return jnp.where((loss_mask > 0) & (high > low), white, 0.0)
