"""The value loss: the critic's clipped squared error."""

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import check_same_shapes


def value_loss(values, old_values, returns, loss_mask, *, clip=0.2):
  """Returns the critic's loss of each token f32[B, T], and where the clip is active bool[B, T].

      max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2

  The value clipping of PPO's implementations, see https://arxiv.org/abs/2005.12729. Both results
  are 0 where the mask is 0; to be averaged over the tokens of the whole batch.

  Args:
    values: f32[B, T], of the critic that is trained.
    old_values, returns: f32[B, T], from before the update; constants.
    loss_mask: f32[B, T].
    clip: the most that a value may change; None: no limit, and old_values is not read.
  """
  old_values = values if clip is None else old_values
  check_same_shapes(values=values, old_values=old_values, returns=returns, loss_mask=loss_mask)
  trainable = loss_mask > 0
  values, old_values, returns = (
    jnp.where(trainable, x, 0.0) for x in (values, old_values, returns)
  )
  old_values, returns = jax.lax.stop_gradient((old_values, returns))
  unclipped = jnp.square(values - returns) / 2
  if clip is None:
    return unclipped, jnp.zeros(unclipped.shape, bool)
  clipped = jnp.square(jnp.clip(values, old_values - clip, old_values + clip) - returns) / 2
  return jnp.where(clipped > unclipped, clipped, unclipped), clipped > unclipped
