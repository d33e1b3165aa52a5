"""Masked sums that keep their denominators, so that a step divides once."""
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Weighted(NamedTuple):
  """A sum and its denominator, apart until every part of the step has been added.

  A mean of means would let a token of a short microbatch count for more than one of a long
  microbatch (correctness traps L11, L15).
  """
  total: jax.Array  # f32[]
  weight: jax.Array  # f32[]


def over_tokens(values, weights) -> Weighted:
  """Returns the weighted sum of values [B, T]; positions of weight 0 are never read."""
  weights = weights.astype(jnp.float32)
  return Weighted((jnp.where(weights > 0, values, 0.0) * weights).sum(), weights.sum())


def over_sequences(values, weights) -> Weighted:
  """Returns the sum over sequences of each one's weighted token mean; empty ones do not count."""
  weights = weights.astype(jnp.float32)
  lengths = weights.sum(-1)
  sums = (jnp.where(weights > 0, values, 0.0) * weights).sum(-1)
  means = sums / jnp.maximum(lengths, 1e-9)
  return Weighted(jnp.where(lengths > 0, means, 0.0).sum(), (lengths > 0).sum(dtype=jnp.float32))


def over_constant(values, weights, length: int) -> Weighted:
  """Returns the weighted sum over tokens with `length` tokens a sequence as the denominator.

  Dr.GRPO, https://arxiv.org/abs/2503.20783: a divisor that does not depend on how long the
  completions turned out.
  """
  summed = over_tokens(values, weights)
  sequences = (weights.sum(-1) > 0).sum(dtype=jnp.float32)
  return Weighted(summed.total, sequences * length)


def means(sums):
  """Divides each Weighted of a tree, once, after the last addition; 0 where weight is 0."""
  return jax.tree.map(lambda s: s.total / jnp.where(s.weight > 0, s.weight, 1.0), sums,
                      is_leaf=lambda s: isinstance(s, Weighted))
