"""Masked sums with their denominators, and the aggregations of a loss (token mean, ...)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.types import Array


class Weighted(NamedTuple):
  """A sum and its denominator, apart until every part of the step has been added.

  A mean of means would let a token of a short microbatch count for more than one of a long
  microbatch (correctness traps L11, L15).
  """

  total: Array  # f32[]
  weight: Array  # f32[]


class Maximum(NamedTuple):
  """A largest value: add_sums takes the maximum over the parts of a step instead of the sum."""

  value: jax.Array  # f32[]


class Term(NamedTuple):
  """One part of a loss: coefficient * total / weight, with weight summed over the whole step."""

  coefficient: float
  sum: Weighted


class Sizes(NamedTuple):
  """What some aggregations need besides the values and the loss mask of a microbatch."""

  length: int | None = None  # 'constant': the nominal number of tokens of a sequence
  group_tokens: Any = None  # 'prompt_mean': f32[B], see tokens_of_groups


def apply_mask(values, mask):
  """Returns values [B, T] with 0 where the mask is 0, so that masked values are never read.

  Applied before exp and log, as it is everywhere here, NaN on padding reaches neither value nor
  gradient; applied after, the gradient would be 0 * NaN.
  """
  return jnp.where(mask > 0, values, 0.0)


def row_means(values, loss_mask):
  """Returns f32[B, 1], the mean of values [B, T] over a row's tokens in the mask; 0 if none."""
  counts = (loss_mask > 0).sum(-1, keepdims=True)
  return apply_mask(values, loss_mask).sum(-1, keepdims=True) / jnp.maximum(counts, 1)


def over_tokens(values, weights) -> Weighted:
  """Returns the weighted sum of values [B, T], and the sum of the weights.

  Args:
    values: f32[B, T]; never read where the weight is 0.
    weights: [B, T], most often the loss mask.
  """
  weights = weights.astype(jnp.float32)
  return Weighted((apply_mask(values, weights) * weights).sum(), weights.sum())


def over_sequences(values, loss_mask) -> Weighted:
  """Returns the sum over sequences of their token means; sequences without tokens do not count."""
  loss_mask = loss_mask.astype(jnp.float32)
  lengths = loss_mask.sum(-1)
  sums = (apply_mask(values, loss_mask) * loss_mask).sum(-1)
  means = sums / jnp.maximum(lengths, 1e-9)
  return Weighted(jnp.where(lengths > 0, means, 0.0).sum(), (lengths > 0).sum(dtype=jnp.float32))


def over_sequences_sum(values, loss_mask) -> Weighted:
  """Returns the sum over tokens, with the number of sequences that have tokens.

  A sequence counts by its length, as the log-probability of a whole answer does (RLOO,
  https://arxiv.org/abs/2402.14740).
  """
  total = over_tokens(values, loss_mask).total
  return Weighted(total, (loss_mask.sum(-1) > 0).sum(dtype=jnp.float32))


def over_constant(values, loss_mask, length: int) -> Weighted:
  """Returns the sum over tokens, with `length` tokens for each sequence as the denominator.

  Dr.GRPO, https://arxiv.org/abs/2503.20783: a divisor that does not depend on the lengths of the
  completions.
  """
  sums = over_sequences_sum(values, loss_mask)
  return Weighted(sums.total, sums.weight * length)


def over_prompts(values, loss_mask, group_tokens) -> Weighted:
  """Returns the sum over prompts of the token mean over all samples of the prompt.

  Every prompt counts the same (ScaleRL, https://arxiv.org/abs/2510.13786). The samples of a prompt
  may be in several microbatches, so each token has the weight 1 / group_tokens, and the sum of
  these weights over the whole step is the number of prompts that have tokens.

  Args:
    values, loss_mask: f32[B, T].
    group_tokens: f32[B], of the whole step: see tokens_of_groups. 0 in rows without a prompt.
  """
  shares = loss_mask / jnp.maximum(group_tokens, 1e-9)[:, None]
  return over_tokens(values, jnp.where(loss_mask > 0, shares, 0.0))


def tokens_of_groups(loss_mask, group) -> np.ndarray:
  """Returns f32[B], for each row the sum of the loss mask over its group. Host arrays, numpy.

  Args:
    loss_mask: f32[B, T] of a whole step, before it is cut into microbatches.
    group: i32[B], the prompt of each row.
  """
  totals = np.bincount(group, np.asarray(loss_mask, np.float64).sum(1))
  return totals[group].astype(np.float32)


def _required(sizes, name):
  if getattr(sizes, name) is None:
    raise ValueError(f'Sizes.{name} is None, and this aggregation needs it')
  return getattr(sizes, name)


# How the losses of tokens become the loss of a step: name -> f(values, loss_mask, Sizes).
AGGREGATIONS = {
  'token_mean': lambda values, loss_mask, sizes: over_tokens(values, loss_mask),
  'sequence_mean': lambda values, loss_mask, sizes: over_sequences(values, loss_mask),
  'sequence_sum': lambda values, loss_mask, sizes: over_sequences_sum(values, loss_mask),
  'constant': lambda values, loss_mask, sizes: over_constant(
    values, loss_mask, _required(sizes, 'length')
  ),
  'prompt_mean': lambda values, loss_mask, sizes: over_prompts(
    values, loss_mask, _required(sizes, 'group_tokens')
  ),
}


def add_sums(parts):
  """Returns the sums of a step from those of its parts, trees of the same structure."""
  parts = list(parts)
  largest = lambda values: Maximum(functools.reduce(jnp.maximum, [x.value for x in values]))
  return jax.tree.map(
    lambda *values: (
      largest(values)
      if isinstance(values[0], Maximum)
      else jax.tree.map(lambda *x: functools.reduce(jnp.add, x), *values)
    ),
    *parts,
    is_leaf=_is_sum,
  )


def means(sums):
  """Divides each Weighted of a tree, once, after the last addition; 0 where weight is 0."""
  return jax.tree.map(
    lambda s: (
      s.value if isinstance(s, Maximum) else s.total / jnp.where(s.weight > 0, s.weight, 1.0)
    ),
    sums,
    is_leaf=_is_sum,
  )


def _is_sum(node):
  return isinstance(node, (Weighted, Maximum))


def check_same_shapes(**arrays) -> None:
  """Raises a ValueError that names the arrays and their shapes if they are not all equal."""
  if len({array.shape for array in arrays.values()}) > 1:
    shapes = ', '.join(f'{name} {array.shape}' for name, array in arrays.items())
    raise ValueError(f'shapes differ: {shapes}')
