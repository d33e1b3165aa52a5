"""Policy-gradient losses, per token and unreduced; who aggregates divides once, globally.

The losses in LOSSES share one signature, so that a config picks by name:

    f(logprobs, old_logprobs, ratio, advantages, weights, *, config) -> (loss, metrics)

  logprobs: f32[B, T] nats, of the sampled tokens under the policy being trained.
  old_logprobs: f32[B, T] nats, of the same tokens before this update, a constant; for the losses in
    ANCHORED_AT_SAMPLER those of the sampler.
  ratio: f32[B, T], one of ratios.LEVELS of these log-probs, here r.
  advantages: f32[B, T], already centred, a constant, here A.
  weights: f32[B, T]; a token counts where its weight is > 0, and is not read elsewhere. The loss is
    not multiplied by it: that is for who aggregates.
  config: a PolicyLossConfig.

  loss: f32[B, T], to be minimised.
  metrics: {name: bool[B, T]}, where a bound binds, at tokens that count.

Which loss goes with which ratio and aggregation: policy_choices.py.
"""

import jax
import jax.numpy as jnp

from rft_jax.objectives.importance_ratios import log_ratios
from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp
from rft_jax.objectives.masked import only, row_means

# (clip_low, clip_high) where the config leaves them open: (loss, ratio level) -> published widths.
DEFAULT_WIDTHS = {
  ('clip', 'token'): (0.2, 0.28),
  ('clip', 'product'): (0.2, 0.28),
  ('clip', 'sequence'): (3e-4, 4e-4),
  ('clip', 'sequence_token'): (3e-4, 4e-4),
  ('luspo', 'sequence'): (2e-3, 2.5e-3),
  ('gmpo', 'token'): (0.4, 0.4),
}


def clip_widths(config) -> tuple[float, float]:
  """Returns (clip_low, clip_high): what the config says, else what the loss was published with."""
  low, high = DEFAULT_WIDTHS.get((config.loss, config.ratio_level), (0.2, 0.28))
  return (
    low if config.clip_low is None else config.clip_low,
    high if config.clip_high is None else config.clip_high,
  )


def clip(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """PPO's clipped loss on any ratio, with two guards against large ratios.

      loss = -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A)
      where A < 0: loss = min(loss, -dual_clip A)

  On token ratios PPO, https://arxiv.org/abs/1707.06347, eq. 7, and GRPO; unequal widths
  ("clip-higher") are DAPO's, https://arxiv.org/abs/2503.14476. On sequence ratios GSPO,
  https://arxiv.org/abs/2507.18071. Where A < 0 PPO lets r grow without bound, and both guards end
  that: dual_clip (https://arxiv.org/abs/1912.09729, eq. 8) and delta
  (https://arxiv.org/abs/2505.07291). Each is off at 0. Bounds are counted before them.
  """
  del logprobs, old_logprobs
  ratio, advantages = _read(ratio, advantages, weights)
  low, high = clip_widths(config)
  unclipped = jnp.minimum(ratio, config.delta) if config.delta else ratio
  loss = -jnp.minimum(unclipped * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
  if config.dual_clip:
    loss = jnp.where(advantages < 0, jnp.minimum(loss, -config.dual_clip * advantages), loss)
  return loss, _clip_metrics(*_bounds(ratio, advantages, low, high))


def policy_gradient(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """REINFORCE: -A log p (Williams 1992, https://doi.org/10.1007/BF00992696). No trust region."""
  del old_logprobs, ratio, config
  logprobs, advantages = _read(logprobs, advantages, weights)
  return -advantages * logprobs, {}


def unclipped(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """REINFORCE with importance weights: -r A, the gradient through r. No bound on r but e^20."""
  del logprobs, old_logprobs, config
  ratio, advantages = _read(ratio, advantages, weights)
  return -ratio * advantages, {}


def cispo(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """REINFORCE weighted by a clipped ratio that is a constant: no token loses its gradient.

      loss = -sg[clip(r, 1 - cispo_low_width, cispo_high_level)] A log p

  MiniMax-M1, https://arxiv.org/abs/2506.13585, eq. 4, and, with no lower bound and a level of 5,
  ScaleRL, https://arxiv.org/abs/2510.13786. The upper bound is a level, the largest weight, and no
  width around 1; the lower one is a width, and 1 switches it off.
  """
  del old_logprobs
  ratio, advantages = _read(ratio, advantages, weights)
  low, high = 1 - config.cispo_low_width, config.cispo_high_level
  factor = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
  counts = weights > 0
  return -factor * advantages * only(logprobs, weights), {
    'cispo_clip_ratio/low_mean': counts & (ratio < low),
    'cispo_clip_ratio/high_mean': counts & (ratio > high),
  }


def gmpo(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """The geometric mean of a sequence's ratios, each clipped first in the log.

      c_t = min(Delta_t, clip_high) where A > 0, max(Delta_t, -clip_low) where A < 0
      loss = -A exp(mean_t c_t)

  GMPO, https://arxiv.org/abs/2507.20673. Every token of a sequence gets the sequence's loss: to be
  averaged over the sequence, where it is that number again. Needs the token ratio's inputs and
  not the ratio.
  """
  del ratio
  log_ratio, advantages = _read(log_ratios(logprobs, old_logprobs, weights), advantages, weights)
  low, high = clip_widths(config)
  bound_low = (log_ratio < -low) & (advantages < 0)
  bound_high = (log_ratio > high) & (advantages > 0)
  kept = jnp.where(advantages > 0, jnp.minimum(log_ratio, high), jnp.maximum(log_ratio, -low))
  return -advantages * clamped_exp(row_means(kept, weights)), _clip_metrics(bound_low, bound_high)


def sapo(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """A soft gate instead of a bound: the gradient fades as r leaves 1, on both sides.

      loss = -(4 / tau) sigmoid(tau (r - 1)) A, tau = sapo_tau_positive where A > 0, else negative

  SAPO, https://arxiv.org/abs/2511.20347. 4 / tau makes the gradient at r = 1 that of -r A. Its
  value says little: at r = 1 it is -2 A / tau.
  """
  del logprobs, old_logprobs
  ratio, advantages = _read(ratio, advantages, weights)
  tau = jnp.where(advantages > 0, config.sapo_tau_positive, config.sapo_tau_negative)
  return -4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantages, {}


def vespo(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """REINFORCE with a smooth weight on whole sequences, 1 at w = 1 and falling on both sides.

      loss = -sg[exp(rate + power log w - rate w)] A log p

  with (power, rate) of the advantage's sign. VESPO, https://arxiv.org/abs/2602.10693. w is the
  ratio at level 'product' over the sampler's probabilities, so that it corrects for the sampler
  too: no other correction goes on top.
  """
  del old_logprobs
  ratio, advantages = _read(ratio, advantages, weights)
  good = advantages >= 0
  power = jnp.where(good, config.vespo_power_positive, config.vespo_power_negative)
  rate = jnp.where(good, config.vespo_rate_positive, config.vespo_rate_negative)
  exponent = rate + power * jnp.log(jnp.maximum(ratio, 1e-9)) - rate * ratio
  factor = jax.lax.stop_gradient(jnp.exp(jnp.minimum(exponent, MAX_LOG_RATIO)))
  return -factor * advantages * only(logprobs, weights), {}


def dppo_tv(logprobs, old_logprobs, ratio, advantages, weights, *, config):
  """A trust region on probabilities: the gradient stops where one has moved too far already.

      loss = -r A, or 0 where A > 0 and p - q > dppo_high, or A < 0 and q - p > dppo_low

  p the policy's probability of the token, q the sampler's (old_logprobs), r over the sampler too.
  The binary total variation of DPPO, https://arxiv.org/abs/2602.04879: a rare token may double,
  a frequent one may not.
  """
  logprobs, old_logprobs = only(logprobs, weights), only(old_logprobs, weights)
  ratio, advantages = _read(ratio, advantages, weights)
  gap = jax.lax.stop_gradient(jnp.exp(logprobs) - jnp.exp(old_logprobs))
  low = (advantages < 0) & (-gap > config.dppo_low)
  high = (advantages > 0) & (gap > config.dppo_high)
  return jnp.where(low | high, 0.0, -ratio * advantages), {
    'dppo_mask_ratio/low_mean': low,
    'dppo_mask_ratio/high_mean': high,
  }


# 'luspo' is GSPO's loss, https://arxiv.org/abs/2602.05261: without GSPO's 1 / n, which is what the
# aggregation 'sequence_sum' leaves out, and with widths of its own.
LOSSES = {
  'clip': clip,
  'policy_gradient': policy_gradient,
  'unclipped': unclipped,
  'cispo': cispo,
  'gmpo': gmpo,
  'sapo': sapo,
  'vespo': vespo,
  'luspo': clip,
  'dppo_tv': dppo_tv,
}
ANCHORED_AT_SAMPLER = ('vespo', 'dppo_tv')  # old_logprobs are the sampler's; no correction on top


def _read(values, advantages, weights):
  """Returns both with 0 where nothing counts, and the advantages as constants."""
  if not values.shape == advantages.shape == weights.shape:
    raise ValueError(
      f'shapes differ: log-probs or ratio {values.shape}, advantages '
      f'{advantages.shape}, weights {weights.shape}'
    )
  return only(values, weights), jax.lax.stop_gradient(only(advantages, weights))


def _bounds(ratio, advantages, low, high):
  return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def _clip_metrics(low, high):
  return {
    'clip_ratio/low_mean': low,
    'clip_ratio/high_mean': high,
    'clip_ratio/region_mean': low | high,
  }
