"""Losses of reward models: of whole answers, from comparisons, and of steps, from labels."""

import jax
import jax.numpy as jnp


def bradley_terry(chosen, rejected, *, margin=0.0, centring=0.0):
  """Returns how badly the scores explain that one answer was preferred, of each pair.

      -log sigma(s_w - s_l - margin) + centring (s_w + s_l)^2

  Ouyang et al. 2022, https://arxiv.org/abs/2203.02155; margins from Touvron et al. 2023,
  https://arxiv.org/abs/2307.09288. Comparisons say nothing of the mean of all scores; centring,
  https://arxiv.org/abs/2312.09244, holds it at 0, and 0.01 is enough. For K answers of a prompt
  give all their pairs, and add up with preference_pairs.over_prompts.

  Args:
    chosen, rejected: f32[N], scores of the better and of the worse answer.
    margin: f32[N] or a number, by how much the better one should win; a constant.
  """
  if chosen.shape != rejected.shape:
    raise ValueError(f'shapes differ: chosen {chosen.shape}, rejected {rejected.shape}')
  margin = jax.lax.stop_gradient(margin)
  return -jax.nn.log_sigmoid(chosen - rejected - margin) + centring * jnp.square(chosen + rejected)


def last_scores(scores, weights):
  """Returns the score at the last token of weight above 0, f32[B, T] -> f32[B]; 0 if none.

  Told by the weights, never by a token id: padding often has the id of the end of turn.
  """
  T = weights.shape[1]
  last = jnp.where(weights > 0, jnp.arange(T), -1).max(-1)
  found = jnp.take_along_axis(scores, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
  return jnp.where(last >= 0, found, 0.0)


def step_cross_entropy(logits, labels, step_ends):
  """Returns the binary cross-entropy of each token that ends a step, 0 elsewhere.

      -y log sigma(s) - (1 - y) log sigma(-s)

  Process reward models: Uesato et al. 2022, https://arxiv.org/abs/2211.14275; Lightman et al.
  2023, https://arxiv.org/abs/2305.20050. Add up with masked.over_tokens(losses, step_ends).

  Args:
    logits: f32[B, T], scores of the steps before sigma.
    labels: f32[B, T], 1 for a right step, 0 for a wrong one, or a probability; a constant.
    step_ends: f32[B, T], above 0 at the last token of each labelled step; not read elsewhere.
  """
  if not logits.shape == labels.shape == step_ends.shape:
    raise ValueError(
      f'shapes differ: logits {logits.shape}, labels {labels.shape}, step_ends {step_ends.shape}'
    )
  here = step_ends > 0
  s = jnp.where(here, logits, 0.0)
  y = jnp.where(here, jax.lax.stop_gradient(labels), 0.0)
  loss = -y * jax.nn.log_sigmoid(s) - (1 - y) * jax.nn.log_sigmoid(-s)
  return jnp.where(here, loss, 0.0)
