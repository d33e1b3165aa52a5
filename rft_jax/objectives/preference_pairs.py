"""From log-probs of tokens to those of completions, and from completions to pairs of them.

Letters: N pairs, given as two arrays of rows of the batch. A row number outside 0..B-1, such as
-1, is padding: its pair has value 0 and does not count.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives.masked import Weighted, only, over_tokens


def sequence_sums(logprobs, weights):
  """Returns the weighted sum over tokens of each row: f32[B, T] -> f32[B]; weight 0 is not read."""
  if logprobs.shape != weights.shape:
    raise ValueError(f'shapes differ: logprobs {logprobs.shape}, weights {weights.shape}')
  return (only(logprobs, weights) * weights).sum(-1)


def sequence_means(sums, weights):
  """Returns sums f32[B] over the weight of each row; 0 for a row without any."""
  lengths = weights.sum(-1)
  return jnp.where(lengths > 0, sums / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def pair(x, chosen, rejected):
  """Returns (x[chosen], x[rejected]), f32[N] each, of x f32[B]; 0 for padding."""
  if chosen.shape != rejected.shape:
    raise ValueError(f'shapes differ: chosen {chosen.shape}, rejected {rejected.shape}')
  return _rows(x, chosen), _rows(x, rejected)


def present(weights, chosen, rejected):
  """Returns f32[N], 1 where both completions have a token of weight above 0, else 0."""
  some = (weights > 0).any(-1).astype(jnp.float32)
  return jnp.multiply(*pair(some, chosen, rejected))


def over_pairs(values, present) -> Weighted:
  """Returns the sum over pairs f32[N] with their number; absent pairs are never read."""
  return Weighted(only(values, present).sum(), present.sum())


def over_prompts(values, present, prompt, P: int) -> Weighted:
  """Returns the sum over prompts of the mean over a prompt's pairs, with the number of prompts.

  Ranking K answers gives K (K - 1) / 2 pairs that are far from independent; as means, a prompt
  with many answers weighs no more than one with two. Ouyang et al. 2022,
  https://arxiv.org/abs/2203.02155, eq. 1.

  Args:
    values, present: f32[N].
    prompt: i32[N], 0..P-1, to which prompt each pair belongs; anything for absent pairs.
  """
  prompt = jnp.where(present > 0, prompt, 0)
  sums = jax.ops.segment_sum(only(values, present), prompt, P)
  counts = jax.ops.segment_sum(present, prompt, P)
  means = jnp.where(counts > 0, sums / jnp.where(counts > 0, counts, 1.0), 0.0)
  return Weighted(means.sum(), (counts > 0).sum(dtype=jnp.float32))


def chosen_nll(logprobs, weights, chosen) -> Weighted:
  """Returns the negative log-likelihood of the chosen completions over their tokens, each row once.

  The SFT term of RPO (https://arxiv.org/abs/2404.19733, https://arxiv.org/abs/2405.16436), CPO
  and ORPO: it keeps the chosen completion probable, where DPO is content with a margin.

  Args:
    logprobs, weights: f32[B, T].
    chosen: i32[N], rows; -1 is padding.
  """
  is_chosen = jnp.zeros(len(weights) + 1).at[jnp.where(chosen < 0, len(weights), chosen)].set(1.0)
  return over_tokens(-logprobs, weights * is_chosen[:-1, None])


def ranked_pairs(group, grades) -> tuple[np.ndarray, np.ndarray]:
  """Returns all (better rows, worse rows), i32[N] each, within the groups. Host arrays, numpy.

  Args:
    group: i32[B], the prompt of each row.
    grades: f64[B], higher is better; equal grades make no pair, NaN makes none either.
  """
  group, grades = np.asarray(group), np.asarray(grades, np.float64)
  better = (group[:, None] == group[None, :]) & (grades[:, None] > grades[None, :])
  chosen, rejected = np.nonzero(better)
  return chosen.astype(np.int32), rejected.astype(np.int32)


def _rows(x, rows):
  inside = (rows >= 0) & (rows < len(x))
  return jnp.where(inside, x[jnp.where(inside, rows, 0)], 0.0)
