"""DPO loss functions and relatives: IPO, hinge, robust, EXO, NCA, BCO, SPPO, APO, SimPO, CPO, ORPO.

Letters: N pairs. x_w, x_l are the scores in nats of the chosen ("winner") and of the rejected
("loser") completion: the sum of the policy's log-probs over its tokens, minus the reference's
where NEEDS has reference, divided by the number of tokens where NEEDS has means. Log-probs are of
untempered logits. h = beta (x_w - x_l), and sigma is the logistic function.

Every loss of LOSSES is a function (x_w f32[N], x_l f32[N], *, config) -> f32[N], unreduced; config
is a preference_objective.PreferenceConfig.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp


class Needs(NamedTuple):
  """What a paired loss reads, and which fields of the config it uses."""

  reference: bool = True  # log-probs of a reference policy
  means: bool = False  # x is divided by the number of tokens
  smoothing: bool = False  # label_smoothing
  divergence: bool = False  # reads x_w - x_l alone, so that a divergence can be applied to x first
  nll: bool = False  # defined as a sum with the NLL of the chosen completion


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
  The same beta gives quite different margins in the two.
  """
  return jnp.square(x_w - x_l - 0.5 / config.beta)


def robust(x_w, x_l, *, config):
  """(-(1 - eps) log sigma(h) + eps log sigma(-h)) / (1 - 2 eps): unbiased under flipped labels.

  Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409.
  """
  h, eps = config.beta * (x_w - x_l), config.label_smoothing
  correct, flipped = -jax.nn.log_sigmoid(h), -jax.nn.log_sigmoid(-h)
  return ((1 - eps) * correct - eps * flipped) / (1 - 2 * eps)


def exo(x_w, x_l, *, config):
  """KL of (sigma(h), sigma(-h)) from (1 - eps, eps). https://arxiv.org/abs/2402.00856, eq. 16."""
  h, eps = config.beta * (x_w - x_l), config.label_smoothing
  correct = jax.nn.sigmoid(h) * (jax.nn.log_sigmoid(h) - jnp.log1p(-eps))
  return correct + jax.nn.sigmoid(-h) * (jax.nn.log_sigmoid(-h) - jnp.log(eps))


def nca(x_w, x_l, *, config):
  """-log sigma(b x_w) - (log sigma(-b x_w) + log sigma(-b x_l)) / 2, b = beta.

  Chen et al. 2024, https://arxiv.org/abs/2402.05369.
  """
  r_w, r_l = config.beta * x_w, config.beta * x_l
  negative = jax.nn.log_sigmoid(-r_w) + jax.nn.log_sigmoid(-r_l)
  return -jax.nn.log_sigmoid(r_w) - 0.5 * negative


def bco(x_w, x_l, *, config, delta=0.0):
  """-log sigma(beta x_w - delta) - log sigma(delta - beta x_l).

  Jung et al. 2024, https://arxiv.org/abs/2404.04656. delta is a running mean of the rewards of
  chosen and rejected, a constant; 0 is TRL's `bco_pair`.
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


# f-DPO (Wang et al. 2023, https://arxiv.org/abs/2309.16240): x becomes f'(e^x) - f'(1).
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
  near_one = logprob > -jnp.log(2.0)
  by_expm1 = jnp.log(-jnp.expm1(jnp.where(near_one, logprob, -1.0)))
  by_log1p = jnp.log1p(-jnp.exp(jnp.where(near_one, -1.0, logprob)))
  return logprob - jnp.where(near_one, by_expm1, by_log1p)


def _smoothed(h, eps):
  return -(1 - eps) * jax.nn.log_sigmoid(h) - eps * jax.nn.log_sigmoid(-h)
