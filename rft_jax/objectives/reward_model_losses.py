"""The Bradley-Terry loss of reward models, and the score of a completion."""

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import check_same_shapes


def bradley_terry(chosen, rejected, *, margin=0.0, centring=0.0):
  """Returns the negative log-likelihood of each comparison under the scores, f32[N].

      -log sigma(s_w - s_l - margin) + centring (s_w + s_l)^2

  Ouyang et al. 2022, https://arxiv.org/abs/2203.02155; margins from Touvron et al. 2023,
  https://arxiv.org/abs/2307.09288. Comparisons leave the mean of all scores undetermined;
  centring, https://arxiv.org/abs/2312.09244, holds it at 0, and 0.01 is enough. For K answers to a
  prompt pass all their pairs, and add up with preference_pairs.over_prompts.

  Args:
    chosen, rejected: f32[N], scores of the better and of the worse answer.
    margin: f32[N] or a number, by how much the better score should be higher; a constant.
  """
  check_same_shapes(chosen=chosen, rejected=rejected)
  margin = jax.lax.stop_gradient(margin)
  return -jax.nn.log_sigmoid(chosen - rejected - margin) + centring * jnp.square(chosen + rejected)


def last_scores(scores, loss_mask):
  """Returns the score at the last token in the loss mask, f32[B, T] -> f32[B]; 0 if none.

  The mask decides, never a token id: padding often has the id of the end of turn.
  """
  T = loss_mask.shape[1]
  last = jnp.where(loss_mask > 0, jnp.arange(T), -1).max(-1)
  row_scores = jnp.take_along_axis(scores, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
  return jnp.where(last >= 0, row_scores, 0.0)
