"""The objective of preference learning: from log-probs of pairs to losses and implicit rewards."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.masked import Weighted
from rft_jax.objectives.preference_losses import DIVERGENCES, LOSSES, NEEDS
from rft_jax.objectives.preference_pairs import (
  over_pairs,
  pair,
  present,
  sequence_means,
  sequence_sums,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class PreferenceConfig:
  """The loss on a pair of completions: its kind and settings."""

  loss: str = 'dpo'  # a name of NEEDS
  beta: float = 0.1  # how fast the loss saturates; simpo wants 2 to 2.5; orpo: the weight lambda
  label_smoothing: float = 0.0  # assumed share of swapped pairs; exo needs > 0
  divergence: str = 'reverse_kl'  # f-DPO: reverse_kl, forward_kl, js or alpha
  alpha: float = 0.5  # of the alpha divergence; 1 is reverse_kl, 0 forward_kl
  gamma: float = 0.5  # simpo: the target margin
  tau: float = 0.05  # discopop: temperature of the blend of its two losses
  nll_coef: float = 0.0  # weight of the NLL of the chosen completions (RPO); cpo and orpo: 1

  def validate(self) -> list[str]:
    if self.loss not in NEEDS:
      return [f'loss={self.loss!r}, need one of {tuple(NEEDS)}']
    needs = NEEDS[self.loss]
    checks = (
      (self.beta > 0, f'beta={self.beta}, need > 0'),
      (
        0 <= self.label_smoothing < 0.5,
        f'label_smoothing={self.label_smoothing}, need 0 to below 0.5',
      ),
      (
        needs.smoothing or not self.label_smoothing,
        f'label_smoothing={self.label_smoothing} has no effect on loss={self.loss!r}, need 0',
      ),
      (
        self.loss != 'exo' or self.label_smoothing > 0,
        "loss='exo' takes a log of label_smoothing; need > 0, such as 0.001",
      ),
      (
        self.divergence in DIVERGENCES,
        f'divergence={self.divergence!r}, need one of {tuple(DIVERGENCES)}',
      ),
      (
        needs.divergence or self.divergence == 'reverse_kl',
        f'divergence={self.divergence!r}: loss={self.loss!r} does not read a difference of '
        'log-ratios alone; leave reverse_kl',
      ),
      (
        self.divergence != 'alpha' or abs(self.alpha - 1) > 1e-6,
        f"alpha={self.alpha} divides by 0; its limit is divergence='reverse_kl'",
      ),
      (self.tau > 0, f'tau={self.tau}, need > 0'),
      (self.nll_coef >= 0, f'nll_coef={self.nll_coef}, need >= 0'),
      (
        not needs.nll or self.nll_coef > 0,
        f'nll_coef=0: loss={self.loss!r} is defined with the NLL of the chosen; need > 0, e.g. 1',
      ),
    )
    return [problem for good, problem in checks if not good]


class PairLosses(NamedTuple):
  """The losses of N pairs, and the implicit rewards of the policy."""

  losses: jax.Array  # f32[N]
  present: jax.Array  # f32[N], 1 where the pair counts
  chosen_rewards: jax.Array  # f32[N], beta x_w, a constant
  rejected_rewards: jax.Array  # f32[N], beta x_l, a constant


def pair_losses(
  logprobs, reference_logprobs, loss_mask, chosen, rejected, *, config: PreferenceConfig
) -> PairLosses:
  """Returns the loss of each pair, with the implicit rewards for the metrics.

  Args:
    logprobs: f32[B, T] nats, of the policy being trained.
    reference_logprobs: f32[B, T] nats, a constant; None for a loss that needs none.
    loss_mask: f32[B, T], 0 outside the completion; never read there.
    chosen, rejected: i32[N], rows of the better and of the worse completion; -1 is padding.
  """
  needs = NEEDS[config.loss]
  if needs.reference:
    if reference_logprobs is None:
      raise ValueError(f'loss={config.loss!r} needs reference_logprobs')
    logprobs = logprobs - jax.lax.stop_gradient(reference_logprobs)
  sums = sequence_sums(logprobs, loss_mask)
  scores = sums
  if needs.divergence:
    scores = DIVERGENCES[config.divergence](sums, config.alpha)
  if needs.means:
    scores, sums = sequence_means(scores, loss_mask), sequence_means(sums, loss_mask)
  losses = LOSSES[config.loss](*pair(scores, chosen, rejected), config=config)
  rewards = jax.lax.stop_gradient(config.beta * sums)
  return PairLosses(losses, present(loss_mask, chosen, rejected), *pair(rewards, chosen, rejected))


def reward_metrics(pairs: PairLosses) -> dict[str, Weighted]:
  """Returns the metrics of DPO under TRL's names; a pair of equal rewards counts as inaccurate."""
  margins = pairs.chosen_rewards - pairs.rejected_rewards
  values = {
    'chosen': pairs.chosen_rewards,
    'rejected': pairs.rejected_rewards,
    'margins': margins,
    'accuracies': (margins > 0).astype(jnp.float32),
  }
  return {f'rewards/{name}': over_pairs(value, pairs.present) for name, value in values.items()}
