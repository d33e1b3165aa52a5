"""The KTO loss on single labelled answers, and the AOT loss on quantiles of a batch.

x is the log-ratio of a completion: the sum over its tokens of policy minus reference log-prob.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives.masked import Weighted


@dataclasses.dataclass(slots=True, kw_only=True)
class KtoConfig:
  """The loss on single answers that are labelled good or bad."""

  beta: float = 0.1  # how fast the value of an answer saturates
  # Weights of good and of bad answers; weight * number should be about the same for both, ratio 1
  # to 4/3.
  desirable_weight: float = 1.0
  undesirable_weight: float = 1.0

  def validate(self) -> list[str]:
    names = ('beta', 'desirable_weight', 'undesirable_weight')
    return [
      f'{name}={getattr(self, name)}, need > 0' for name in names if not getattr(self, name) > 0
    ]


def kto(x, desirable, reference_point, *, config: KtoConfig):
  """Returns the KTO loss of each answer, f32[B].

      good:  desirable_weight (1 - sigma(beta (x - z)))
      bad: undesirable_weight (1 - sigma(beta (z - x)))

  Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8.

  Args:
    x: f32[B] nats, log-ratios.
    desirable: bool[B].
    reference_point: f32[] or f32[B], z of the whole step, a constant; see kto_reference_point.
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
  """Returns i32[P]: for prompt p the prompt whose completions it is scored with, for KTO's z.

  Raises:
    ValueError: there is only one prompt, so there are no completions of others.
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
  of the rejected. The quantiles are of the microbatch, so the loss of a batch is not the sum of
  those of its parts: the whole batch must be one microbatch.

  Args:
    better, worse: f32[N].
    present: f32[N], 0 where a pair does not count; never read there.
  """
  sorted_present = lambda x: jnp.sort(jnp.where(present > 0, x, jnp.finfo(jnp.float32).max))
  is_quantile = jnp.arange(len(present)) < present.sum()  # absent pairs are sorted to the end
  better_quantiles = jnp.where(is_quantile, sorted_present(better), 0.0)
  worse_quantiles = jnp.where(is_quantile, sorted_present(worse), 0.0)
  d = beta * (better_quantiles - worse_quantiles)
  losses = -(1 - label_smoothing) * jax.nn.log_sigmoid(d) - label_smoothing * jax.nn.log_sigmoid(-d)
  return losses, is_quantile.astype(jnp.float32)
