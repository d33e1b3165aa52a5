"""Sequence log-probs of completions, pairs of chosen and rejected rows, and sums over pairs.

Letters: N pairs, as two arrays of rows of the batch. A row number outside 0..B-1, such as -1, is
padding: its pair has value 0 and does not count.
"""

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import Weighted, apply_mask, check_same_shapes, over_tokens


def sequence_sums(logprobs, loss_mask):
  """Returns the sum over the tokens of each row, f32[B, T] -> f32[B]; 0 outside the mask."""
  check_same_shapes(logprobs=logprobs, loss_mask=loss_mask)
  return (apply_mask(logprobs, loss_mask) * loss_mask).sum(-1)


def sequence_means(sums, loss_mask):
  """Returns sums f32[B] over the number of tokens of each row; 0 for a row without any."""
  lengths = loss_mask.sum(-1)
  return jnp.where(lengths > 0, sums / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def pair(x, chosen, rejected):
  """Returns (x[chosen], x[rejected]), f32[N] each, of x f32[B]; 0 for padding."""
  check_same_shapes(chosen=chosen, rejected=rejected)
  return _rows(x, chosen), _rows(x, rejected)


def present(loss_mask, chosen, rejected):
  """Returns f32[N], 1 where both completions have a token in the loss mask, else 0."""
  has_tokens = (loss_mask > 0).any(-1).astype(jnp.float32)
  return jnp.multiply(*pair(has_tokens, chosen, rejected))


def over_pairs(values, present) -> Weighted:
  """Returns the sum over pairs f32[N] with their number; absent pairs are never read."""
  return Weighted(apply_mask(values, present).sum(), present.sum())


def over_prompts(values, present, prompt, P: int) -> Weighted:
  """Returns the sum over prompts of the mean over a prompt's pairs, with the number of prompts.

  Ranking K answers gives K (K - 1) / 2 pairs that are far from independent; with means, a prompt
  with many answers counts no more than one with two. Ouyang et al. 2022,
  https://arxiv.org/abs/2203.02155, eq. 1.

  Args:
    values, present: f32[N].
    prompt: i32[N], 0..P-1, the prompt of each pair; anything for absent pairs.
  """
  prompt = jnp.where(present > 0, prompt, 0)
  sums = jax.ops.segment_sum(apply_mask(values, present), prompt, P)
  counts = jax.ops.segment_sum(present, prompt, P)
  means = jnp.where(counts > 0, sums / jnp.where(counts > 0, counts, 1.0), 0.0)
  return Weighted(means.sum(), (counts > 0).sum(dtype=jnp.float32))


def chosen_nll(logprobs, loss_mask, chosen) -> Weighted:
  """Returns the negative log-likelihood of the chosen completions over their tokens, each row once.

  The SFT term of RPO (https://arxiv.org/abs/2404.19733, https://arxiv.org/abs/2405.16436), CPO
  and ORPO: it keeps the chosen completion probable, where DPO needs only a margin.

  Args:
    logprobs, loss_mask: f32[B, T].
    chosen: i32[N], rows; -1 is padding.
  """
  B = len(loss_mask)
  is_chosen = jnp.zeros(B + 1).at[jnp.where(chosen < 0, B, chosen)].set(1.0)
  return over_tokens(-logprobs, loss_mask * is_chosen[:-1, None])


def _rows(x, rows):
  inside = (rows >= 0) & (rows < len(x))
  return jnp.where(inside, x[jnp.where(inside, rows, 0)], 0.0)
