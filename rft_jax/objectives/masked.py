"""Masked sums that keep their denominators, so that a step divides once."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Weighted(NamedTuple):
  """A sum and its denominator, apart until every part of the step has been added.

  A mean of means would let a token of a short microbatch count for more than one of a long
  microbatch (correctness traps L11, L15).
  """

  total: jax.Array  # f32[]
  weight: jax.Array  # f32[]


class Maximum(NamedTuple):
  """A largest value, which parts of a step do not add to but compare; see added()."""

  value: jax.Array  # f32[]


class Term(NamedTuple):
  """One part of a loss: coefficient * total / weight, with weight summed over the whole step."""

  coefficient: float
  sum: Weighted


class Sizes(NamedTuple):
  """What some aggregations must know that the values and weights of a microbatch do not tell."""

  length: int | None = None  # 'constant': the tokens a sequence is taken to have
  group_tokens: Any = None  # 'prompt_mean': f32[B], see tokens_of_groups


def only(values, weights):
  """Returns values [B, T] with 0 where the weight is 0: what stands there is never read.

  Done before exp and log, as it is here, NaN on padding reaches neither value nor gradient; done
  after, the gradient would be 0 * NaN.
  """
  return jnp.where(weights > 0, values, 0.0)


def row_means(values, weights):
  """Returns f32[B, 1], the mean of values [B, T] over a row's tokens of weight > 0; 0 if none."""
  counts = (weights > 0).sum(-1, keepdims=True)
  return only(values, weights).sum(-1, keepdims=True) / jnp.maximum(counts, 1)


def over_tokens(values, weights) -> Weighted:
  """Returns the weighted sum of values [B, T]; positions of weight 0 are never read."""
  weights = weights.astype(jnp.float32)
  return Weighted((only(values, weights) * weights).sum(), weights.sum())


def over_sequences(values, weights) -> Weighted:
  """Returns the sum over sequences of each one's weighted token mean; empty ones do not count."""
  weights = weights.astype(jnp.float32)
  lengths = weights.sum(-1)
  sums = (only(values, weights) * weights).sum(-1)
  means = sums / jnp.maximum(lengths, 1e-9)
  return Weighted(jnp.where(lengths > 0, means, 0.0).sum(), (lengths > 0).sum(dtype=jnp.float32))


def over_sequences_sum(values, weights) -> Weighted:
  """Returns the weighted sum over tokens, with the number of sequences that are not empty.

  A sequence counts by its length, as the log-probability of a whole answer does (RLOO,
  https://arxiv.org/abs/2402.14740).
  """
  return Weighted(over_tokens(values, weights).total, (weights.sum(-1) > 0).sum(dtype=jnp.float32))


def over_constant(values, weights, length: int) -> Weighted:
  """Returns the weighted sum over tokens with `length` tokens a sequence as the denominator.

  Dr.GRPO, https://arxiv.org/abs/2503.20783: a divisor that does not depend on how long the
  completions turned out.
  """
  summed = over_sequences_sum(values, weights)
  return Weighted(summed.total, summed.weight * length)


def over_prompts(values, weights, group_tokens) -> Weighted:
  """Returns the sum over prompts of the weighted token mean over all samples of the prompt.

  Every prompt counts the same (ScaleRL, https://arxiv.org/abs/2510.13786). The samples of a prompt
  may stand in several microbatches; so a token counts 1 / group_tokens, and the sum of these
  shares, over the whole step, is the number of prompts that have tokens.

  Args:
    values, weights: f32[B, T].
    group_tokens: f32[B], of the whole step: see tokens_of_groups. 0 in rows without a prompt.
  """
  shares = weights / jnp.maximum(group_tokens, 1e-9)[:, None]
  return over_tokens(values, jnp.where(weights > 0, shares, 0.0))


def tokens_of_groups(weights, group) -> np.ndarray:
  """Returns f32[B], for each row the weight of all rows of its group. Host arrays, numpy.

  Args:
    weights: f32[B, T] of a whole step, before it is cut into microbatches.
    group: i32[B], the prompt of each row.
  """
  totals = np.bincount(group, np.asarray(weights, np.float64).sum(1))
  return totals[group].astype(np.float32)


def _given(sizes, name):
  if getattr(sizes, name) is None:
    raise ValueError(f'Sizes.{name} is None, and this aggregation needs it')
  return getattr(sizes, name)


# How the loss of a step is made of the losses of its tokens: name -> f(values, weights, Sizes).
AGGREGATIONS = {
  'token_mean': lambda values, weights, sizes: over_tokens(values, weights),
  'sequence_mean': lambda values, weights, sizes: over_sequences(values, weights),
  'sequence_sum': lambda values, weights, sizes: over_sequences_sum(values, weights),
  'constant': lambda values, weights, sizes: over_constant(
    values, weights, _given(sizes, 'length')
  ),
  'prompt_mean': lambda values, weights, sizes: over_prompts(
    values, weights, _given(sizes, 'group_tokens')
  ),
}


def added(parts):
  """Returns the sums of a step from those of its parts, trees of one structure."""
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
