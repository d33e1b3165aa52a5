"""Losses that learn from which of two answers is better (and KTO, from single answers).

Letters: N pairs. x_w, x_l are what a policy says of the chosen ("winner") and of the rejected
("loser") completion, in nats: the sum over its tokens of the log-prob, less that of the reference
where NEEDS says so, over its number of tokens where NEEDS says so. Log-probs are of untempered
logits. h = beta (x_w - x_l), and sigma is the logistic function.

Every loss of LOSSES is a function (x_w f32[N], x_l f32[N], *, config) -> f32[N], unreduced.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp
from rft_jax.objectives.masked import Weighted
from rft_jax.objectives.preference_pairs import (
  over_pairs,
  pair,
  present,
  sequence_means,
  sequence_sums,
)


class Needs(NamedTuple):
  """What a paired loss reads, and which fields of the config mean something to it."""

  reference: bool = True  # log-probs of a reference policy
  means: bool = False  # x is divided by the number of tokens
  smoothing: bool = False  # label_smoothing
  divergence: bool = False  # reads x_w - x_l alone, so that a divergence can be put before it
  nll: bool = False  # is by definition added to the NLL of the chosen completion


NEEDS = {
  'dpo': Needs(smoothing=True, divergence=True),
  'dpo_mean': Needs(means=True, smoothing=True, divergence=True),
  'hinge': Needs(divergence=True),
  'ipo': Needs(divergence=True),
  'ipo_mean': Needs(means=True, divergence=True),
  'robust': Needs(smoothing=True, divergence=True),
  'exo': Needs(smoothing=True, divergence=True),
  'nca': Needs(),
  'bco': Needs(),
  'sppo': Needs(),
  'apo_zero': Needs(),
  'apo_down': Needs(),
  'discopop': Needs(divergence=True),
  'simpo': Needs(reference=False, means=True, smoothing=True),
  'cpo': Needs(reference=False, smoothing=True, nll=True),
  'orpo': Needs(reference=False, means=True, nll=True),
}


@dataclasses.dataclass(slots=True, kw_only=True)
class PreferenceConfig:
  """How a pair of answers becomes a loss."""

  loss: str = 'dpo'  # a name of NEEDS
  beta: float = 0.1  # how fast the loss saturates; simpo wants 2 to 2.5; orpo: the weight lambda
  label_smoothing: float = 0.0  # share of pairs thought to be the wrong way round; exo needs > 0
  divergence: str = 'reverse_kl'  # f-DPO: reverse_kl, forward_kl, js or alpha
  alpha: float = 0.5  # of the alpha divergence; 1 is reverse_kl, 0 forward_kl
  gamma: float = 0.5  # simpo: the margin that is asked for
  tau: float = 0.05  # discopop: how suddenly its two halves change over
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
        f'label_smoothing={self.label_smoothing} means nothing to loss={self.loss!r}',
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
        f'nll_coef=0: loss={self.loss!r} is defined with the NLL of the chosen; need > 0, say 1',
      ),
    )
    return [problem for good, problem in checks if not good]


class Preference(NamedTuple):
  """The losses of N pairs, and the rewards that the policy implicitly gives."""

  losses: jax.Array  # f32[N]
  present: jax.Array  # f32[N], 1 where the pair counts
  chosen_rewards: jax.Array  # f32[N], beta x_w, a constant
  rejected_rewards: jax.Array  # f32[N], beta x_l, a constant


# ------------------------------------------------------------------ from log-probs to a loss


def preference(
  logprobs, reference_logprobs, weights, chosen, rejected, *, config: PreferenceConfig
) -> Preference:
  """Returns the loss of each pair, and what it shows to people.

  Args:
    logprobs: f32[B, T] nats, of the policy being trained.
    reference_logprobs: f32[B, T] nats, a constant; None for a loss that needs none.
    weights: f32[B, T], 0 on what is not of the completion; never read there.
    chosen, rejected: i32[N], rows of the better and of the worse one; -1 is padding.
  """
  needs = NEEDS[config.loss]
  if needs.reference:
    if reference_logprobs is None:
      raise ValueError(f'loss={config.loss!r} needs reference_logprobs')
    logprobs = logprobs - jax.lax.stop_gradient(reference_logprobs)
  sums = sequence_sums(logprobs, weights)
  scores = sums
  if needs.divergence:
    scores = DIVERGENCES[config.divergence](sums, config.alpha)
  if needs.means:
    scores, sums = sequence_means(scores, weights), sequence_means(sums, weights)
  losses = LOSSES[config.loss](*pair(scores, chosen, rejected), config=config)
  rewards = jax.lax.stop_gradient(config.beta * sums)
  return Preference(losses, present(weights, chosen, rejected), *pair(rewards, chosen, rejected))


def reward_metrics(found: Preference) -> dict[str, Weighted]:
  """Returns the metrics of DPO under their usual names; an equal pair is not accurate."""
  margins = found.chosen_rewards - found.rejected_rewards
  values = {
    'chosen': found.chosen_rewards,
    'rejected': found.rejected_rewards,
    'margins': margins,
    'accuracies': (margins > 0).astype(jnp.float32),
  }
  return {f'rewards/{name}': over_pairs(value, found.present) for name, value in values.items()}


# ------------------------------------------------------------------ paired losses


def dpo(x_w, x_l, *, config):
  """-(1 - eps) log sigma(h) - eps log sigma(-h), eps = label_smoothing.

  Rafailov et al. 2023, https://arxiv.org/abs/2305.18290; eps > 0 is cDPO. With means it is
  length-normalised DPO, https://arxiv.org/abs/2411.15124.
  """
  return _smoothed(config.beta * (x_w - x_l), config.label_smoothing)


def hinge(x_w, x_l, *, config):
  """max(0, 1 - h). https://arxiv.org/abs/2305.10425 (SLiC), https://arxiv.org/abs/2309.06657."""
  return jax.nn.relu(1 - config.beta * (x_w - x_l))


def ipo(x_w, x_l, *, config):
  """(x_w - x_l - 1 / (2 beta))^2. Azar et al. 2023, https://arxiv.org/abs/2310.12036.

  'ipo' is of sums, as in the paper; 'ipo_mean' of means, as its authors ran it and as TRL does.
  The same beta asks for quite different margins in the two.
  """
  return jnp.square(x_w - x_l - 0.5 / config.beta)


def robust(x_w, x_l, *, config):
  """(-(1 - eps) log sigma(h) + eps log sigma(-h)) / (1 - 2 eps): unbiased under flipped labels.

  Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409.
  """
  h, eps = config.beta * (x_w - x_l), config.label_smoothing
  right, flipped = -jax.nn.log_sigmoid(h), -jax.nn.log_sigmoid(-h)
  return ((1 - eps) * right - eps * flipped) / (1 - 2 * eps)


def exo(x_w, x_l, *, config):
  """KL of (sigma(h), sigma(-h)) from (1 - eps, eps). https://arxiv.org/abs/2402.00856, eq. 16."""
  h, eps = config.beta * (x_w - x_l), config.label_smoothing
  right = jax.nn.sigmoid(h) * (jax.nn.log_sigmoid(h) - jnp.log1p(-eps))
  return right + jax.nn.sigmoid(-h) * (jax.nn.log_sigmoid(-h) - jnp.log(eps))


def nca(x_w, x_l, *, config):
  """-log sigma(b x_w) - (log sigma(-b x_w) + log sigma(-b x_l)) / 2, b = beta.

  Chen et al. 2024, https://arxiv.org/abs/2402.05369.
  """
  r_w, r_l = config.beta * x_w, config.beta * x_l
  against = jax.nn.log_sigmoid(-r_w) + jax.nn.log_sigmoid(-r_l)
  return -jax.nn.log_sigmoid(r_w) - 0.5 * against


def bco(x_w, x_l, *, config, delta=0.0):
  """-log sigma(beta x_w - delta) - log sigma(delta - beta x_l).

  Jung et al. 2024, https://arxiv.org/abs/2404.04656. delta is a running mean of the rewards of
  both sides, a constant; 0 is TRL's `bco_pair`.
  """
  delta = jax.lax.stop_gradient(delta)
  return -jax.nn.log_sigmoid(config.beta * x_w - delta) - jax.nn.log_sigmoid(
    delta - config.beta * x_l
  )


def sppo(x_w, x_l, *, config):
  """(x_w - 1 / (2 beta))^2 + (x_l + 1 / (2 beta))^2. https://arxiv.org/abs/2405.00675, hard."""
  return jnp.square(x_w - 0.5 / config.beta) + jnp.square(x_l + 0.5 / config.beta)


def apo_zero(x_w, x_l, *, config):
  """1 - sigma(beta x_w) + sigma(beta x_l): chosen up, rejected down.

  For chosen answers better than the policy's. https://arxiv.org/abs/2408.06266, eq. 7.
  """
  return jax.nn.sigmoid(-config.beta * x_w) + jax.nn.sigmoid(config.beta * x_l)


def apo_down(x_w, x_l, *, config):
  """sigma(beta x_w) + 1 - sigma(h): both down, the rejected one more.

  For chosen answers worse than the policy's. https://arxiv.org/abs/2408.06266, eq. 8.
  """
  return jax.nn.sigmoid(config.beta * x_w) + jax.nn.sigmoid(-config.beta * (x_w - x_l))


def discopop(x_w, x_l, *, config):
  """(1 - mu) (-log sigma(h)) + mu e^-h, mu = sigma(h / tau). https://arxiv.org/abs/2406.08414"""
  h = config.beta * (x_w - x_l)
  mu = jax.nn.sigmoid(h / config.tau)
  return -(1 - mu) * jax.nn.log_sigmoid(h) + mu * clamped_exp(-h)


def simpo(x_w, x_l, *, config):
  """-log sigma(h - gamma) of mean log-probs, no reference. https://arxiv.org/abs/2405.14734"""
  return _smoothed(config.beta * (x_w - x_l) - config.gamma, config.label_smoothing)


def orpo(x_w, x_l, *, config):
  """-beta log sigma(log odds_w - log odds_l), odds = p / (1 - p), p = e^x of mean log-probs.

  Hong et al. 2024, https://arxiv.org/abs/2403.07691; to be added to the NLL of the chosen.
  """
  return -config.beta * jax.nn.log_sigmoid(log_odds(x_w) - log_odds(x_l))


LOSSES = {
  'dpo': dpo,
  'dpo_mean': dpo,
  'hinge': hinge,
  'ipo': ipo,
  'ipo_mean': ipo,
  'robust': robust,
  'exo': exo,
  'nca': nca,
  'bco': bco,
  'sppo': sppo,
  'apo_zero': apo_zero,
  'apo_down': apo_down,
  'discopop': discopop,
  'simpo': simpo,
  'cpo': dpo,  # of log-probs without a reference, https://arxiv.org/abs/2401.08417
  'orpo': orpo,
}


# ------------------------------------------------------------------ divergences, small functions

# f-DPO (Wang et al. 2023, https://arxiv.org/abs/2309.16240): x becomes f'(e^x), less f'(1).
DIVERGENCES = {
  'reverse_kl': lambda x, alpha: x,
  'forward_kl': lambda x, alpha: 1 - clamped_exp(-x),
  'js': lambda x, alpha: jnp.log(2.0) + jax.nn.log_sigmoid(x),
  'alpha': lambda x, alpha: (clamped_exp((alpha - 1) * x) - 1) / (alpha - 1),
}


def log_odds(logprob):
  """Returns log p - log(1 - p), at most MAX_LOG_RATIO, from log p <= 0.

  1 - p is -expm1(log p) near p = 1 and 1 - e^(log p) elsewhere; each of the two loses all its
  digits where the other is good (Maechler 2012, "Accurately computing log(1 - exp(-|a|))").
  """
  logprob = jnp.minimum(logprob, -jnp.exp(-MAX_LOG_RATIO))
  near = logprob > -jnp.log(2.0)
  of_near = jnp.log(-jnp.expm1(jnp.where(near, logprob, -1.0)))
  of_far = jnp.log1p(-jnp.exp(jnp.where(near, -1.0, logprob)))
  return logprob - jnp.where(near, of_near, of_far)


def _smoothed(h, eps):
  return -(1 - eps) * jax.nn.log_sigmoid(h) - eps * jax.nn.log_sigmoid(-h)
