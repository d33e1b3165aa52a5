"""Losses of preference that are not sums over given pairs: KTO and AOT.

x is the log-ratio of a completion: the sum over its tokens of policy less reference log-prob.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives.masked import Weighted


@dataclasses.dataclass(slots=True, kw_only=True)
class KtoConfig:
  """How single answers, marked good or bad, become a loss."""

  beta: float = 0.1  # how fast the value of an answer saturates
  desirable_weight: float = 1.0  # of the good ones; weight * number of the two kinds should be
  undesirable_weight: float = 1.0  # of the bad ones; about equal, ratio 1 to 4/3

  def validate(self) -> list[str]:
    names = ('beta', 'desirable_weight', 'undesirable_weight')
    return [
      f'{name}={getattr(self, name)}, need > 0' for name in names if not getattr(self, name) > 0
    ]


def kto(x, desirable, reference_point, *, config: KtoConfig):
  """Returns the loss of each answer: how far it is from being clearly better, or worse, than usual.

      good:  desirable_weight (1 - sigma(beta (x - z)))
      bad: undesirable_weight (1 - sigma(beta (z - x)))

  Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8.

  Args:
    x: f32[B] nats, log-ratios.
    desirable: bool[B].
    reference_point: f32[], z of the whole step, a constant; see kto_reference_point.
  """
  sign = jnp.where(desirable, 1.0, -1.0)
  weight = jnp.where(desirable, config.desirable_weight, config.undesirable_weight)
  z = jax.lax.stop_gradient(reference_point)
  return weight * jax.nn.sigmoid(-sign * config.beta * (x - z))


def kto_reference_point(mismatched: Weighted):
  """Returns z = max(0, mean log-ratio of completions of other prompts), f32[], a constant.

  An estimate of KL(policy || reference), so of the whole step: add the sums of all its parts first.
  """
  mean = mismatched.total / jnp.where(mismatched.weight > 0, mismatched.weight, 1.0)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def mismatched_prompts(P: int) -> np.ndarray:
  """Returns i32[P]: whose completions prompt p is scored with for the reference point of KTO.

  Raises:
    ValueError: a single prompt has no completions of another.
  """
  if P < 2:
    raise ValueError(f'KTO compares prompts with completions of others: {P} prompts, need 2')
  return np.roll(np.arange(P, dtype=np.int32), 1)


def aot(better, worse, present, *, beta, label_smoothing=0.0):
  """Returns (losses f32[N], present f32[N]) that compare two distributions, quantile by quantile.

      -(1 - eps) log sigma(d_i) - eps log sigma(-d_i), d_i = beta (i-th smallest of better
      - i-th smallest of worse)

  Melnyk et al. 2024, https://arxiv.org/abs/2406.05882. Paired: better is the policy's
  log p(chosen) - log p(rejected), worse the reference's. Unpaired: log-ratios of the chosen, and
  of the rejected. The quantiles are of the batch it sees, so the loss of a batch is not the sum
  of those of its parts: the whole batch must be one microbatch.

  Args:
    better, worse: f32[N].
    present: f32[N], 0 where a pair does not count; never read there.
  """
  last = lambda x: jnp.sort(jnp.where(present > 0, x, jnp.finfo(jnp.float32).max))
  kept = jnp.arange(len(present)) < present.sum()
  d = beta * (jnp.where(kept, last(better), 0.0) - jnp.where(kept, last(worse), 0.0))
  losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(d) - label_smoothing * jax.nn.log_sigmoid(-d)
  return losses, kept.astype(jnp.float32)
