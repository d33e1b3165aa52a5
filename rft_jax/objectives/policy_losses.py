"""Policy-gradient losses per token: PPO clip, GSPO, CISPO, GMPO, SAPO, VESPO, DPPO, REINFORCE.

They are unreduced: the aggregation (masked.AGGREGATIONS) divides once, over the whole step. The
losses in LOSSES share one signature, so that a config selects by name:

    f(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config) -> (loss, metrics)

  logprobs: f32[B, T] nats, of the sampled tokens under the policy being trained.
  old_logprobs: f32[B, T] nats, of the same tokens before this update, a constant; for the losses in
    ANCHORED_AT_SAMPLER those of the sampler.
  ratio: f32[B, T], one of importance_ratios.LEVELS of these log-probs, here r.
  advantages: f32[B, T], already centred, a constant, here A.
  loss_mask: f32[B, T]; a token counts where it is > 0, and is not read elsewhere. The loss is not
    multiplied by it: the aggregation does that.
  config: a PolicyLossConfig.

  loss: f32[B, T], to be minimised.
  metrics: {name: bool[B, T]}, where a bound is active, at tokens that count.

Which loss goes with which ratio and aggregation: policy_loss_config.py.
"""

import jax
import jax.numpy as jnp

from rft_jax.objectives.importance_ratios import log_ratios
from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp
from rft_jax.objectives.masked import apply_mask, check_same_shapes, row_means

# (clip_low, clip_high) where the config has None: (loss, ratio level) -> published widths.
DEFAULT_WIDTHS = {
  ('clip', 'token'): (0.2, 0.28),
  ('clip', 'product'): (0.2, 0.28),
  ('clip', 'sequence'): (3e-4, 4e-4),
  ('clip', 'sequence_token'): (3e-4, 4e-4),
  ('luspo', 'sequence'): (2e-3, 2.5e-3),
  ('gmpo', 'token'): (0.4, 0.4),
}


def clip_widths(config) -> tuple[float, float]:
  """Returns (clip_low, clip_high): those of the config, else those the loss was published with."""
  low, high = DEFAULT_WIDTHS.get((config.loss, config.ratio_level), (0.2, 0.28))
  return (
    low if config.clip_low is None else config.clip_low,
    high if config.clip_high is None else config.clip_high,
  )


def clip(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """PPO's clipped loss on any ratio, with two guards against large ratios.

      loss = -min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A)
      where A < 0: loss = min(loss, -dual_clip A)

  On token ratios PPO, https://arxiv.org/abs/1707.06347, eq. 7, and GRPO; unequal widths
  ("clip-higher") are DAPO's, https://arxiv.org/abs/2503.14476. On sequence ratios GSPO,
  https://arxiv.org/abs/2507.18071. Where A < 0 PPO lets r grow without bound, and both guards
  prevent that: dual_clip (https://arxiv.org/abs/1912.09729, eq. 8) and delta
  (https://arxiv.org/abs/2505.07291). Each is off at 0. The metrics count the clip alone.
  """
  del logprobs, old_logprobs
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  low, high = clip_widths(config)
  unclipped = jnp.minimum(ratio, config.delta) if config.delta else ratio
  loss = -jnp.minimum(unclipped * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
  if config.dual_clip:
    loss = jnp.where(advantages < 0, jnp.minimum(loss, -config.dual_clip * advantages), loss)
  return loss, _clip_metrics(*_bounds(ratio, advantages, low, high))


def policy_gradient(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """REINFORCE: -A log p (Williams 1992, https://doi.org/10.1007/BF00992696). No trust region."""
  del old_logprobs, ratio, config
  logprobs, advantages = _masked(logprobs, advantages, loss_mask)
  return -advantages * logprobs, {}


def unclipped(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """REINFORCE with importance weights: -r A, the gradient through r. No bound on r but e^20."""
  del logprobs, old_logprobs, config
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  return -ratio * advantages, {}


def cispo(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """REINFORCE weighted by a clipped ratio that is a constant: no token loses its gradient.

      loss = -sg[clip(r, 1 - cispo_low_width, cispo_high_level)] A log p

  MiniMax-M1, https://arxiv.org/abs/2506.13585, eq. 4, and, with no lower bound and a level of 5,
  ScaleRL, https://arxiv.org/abs/2510.13786. The upper bound is a level, the largest weight, and no
  width around 1; the lower one is a width, and 1 switches it off.
  """
  del old_logprobs
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  low, high = 1 - config.cispo_low_width, config.cispo_high_level
  factor = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
  counts = loss_mask > 0
  return -factor * advantages * apply_mask(logprobs, loss_mask), {
    'cispo_clip_ratio/low_mean': counts & (ratio < low),
    'cispo_clip_ratio/high_mean': counts & (ratio > high),
  }


def gmpo(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """The geometric mean of a sequence's ratios, each clipped first in the log.

      c_t = min(Delta_t, clip_high) where A > 0, max(Delta_t, -clip_low) where A < 0
      loss = -A exp(mean_t c_t)

  GMPO, https://arxiv.org/abs/2507.20673. Every token of a sequence gets the sequence's loss: to be
  averaged over the sequence, which gives that number again. Reads the log-probs and not the ratio.
  """
  del ratio
  log_ratio = log_ratios(logprobs, old_logprobs, loss_mask)
  log_ratio, advantages = _masked(log_ratio, advantages, loss_mask)
  low, high = clip_widths(config)
  bound_low = (log_ratio < -low) & (advantages < 0)
  bound_high = (log_ratio > high) & (advantages > 0)
  clipped = jnp.where(advantages > 0, jnp.minimum(log_ratio, high), jnp.maximum(log_ratio, -low))
  loss = -advantages * clamped_exp(row_means(clipped, loss_mask))
  return loss, _clip_metrics(bound_low, bound_high)


def sapo(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """A soft gate instead of a bound: the gradient fades as r leaves 1, on both sides.

      loss = -(4 / tau) sigmoid(tau (r - 1)) A, tau = sapo_tau_positive where A > 0, else negative

  SAPO, https://arxiv.org/abs/2511.20347. 4 / tau makes the gradient at r = 1 that of -r A. The
  value is of little use: at r = 1 it is -2 A / tau.
  """
  del logprobs, old_logprobs
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  tau = jnp.where(advantages > 0, config.sapo_tau_positive, config.sapo_tau_negative)
  return -4 / tau * jax.nn.sigmoid(tau * (ratio - 1)) * advantages, {}


def vespo(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """REINFORCE with a smooth weight on whole sequences, 1 at w = 1 and falling on both sides.

      loss = -sg[exp(rate + power log w - rate w)] A log p

  with (power, rate) by the sign of the advantage. VESPO, https://arxiv.org/abs/2602.10693. w is the
  ratio at level 'product' over the sampler's probabilities, so that it corrects for the sampler
  too: no other correction is applied.
  """
  del old_logprobs
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  is_positive = advantages >= 0
  power = jnp.where(is_positive, config.vespo_power_positive, config.vespo_power_negative)
  rate = jnp.where(is_positive, config.vespo_rate_positive, config.vespo_rate_negative)
  exponent = rate + power * jnp.log(jnp.maximum(ratio, 1e-9)) - rate * ratio
  factor = jax.lax.stop_gradient(jnp.exp(jnp.minimum(exponent, MAX_LOG_RATIO)))
  return -factor * advantages * apply_mask(logprobs, loss_mask), {}


def dppo_tv(logprobs, old_logprobs, ratio, advantages, loss_mask, *, config):
  """A trust region on probabilities: no gradient where a probability has already moved too far.

      loss = -r A, or 0 where A > 0 and p - q > dppo_high, or A < 0 and q - p > dppo_low

  p the policy's probability of the token, q the sampler's (old_logprobs), r over the sampler too.
  The binary total variation of DPPO, https://arxiv.org/abs/2602.04879: a rare token may double,
  a frequent one may not.
  """
  logprobs, old_logprobs = apply_mask(logprobs, loss_mask), apply_mask(old_logprobs, loss_mask)
  ratio, advantages = _masked(ratio, advantages, loss_mask)
  change = jax.lax.stop_gradient(jnp.exp(logprobs) - jnp.exp(old_logprobs))
  low = (advantages < 0) & (-change > config.dppo_low)
  high = (advantages > 0) & (change > config.dppo_high)
  return jnp.where(low | high, 0.0, -ratio * advantages), {
    'dppo_mask_ratio/low_mean': low,
    'dppo_mask_ratio/high_mean': high,
  }


# 'luspo' is GSPO's loss, https://arxiv.org/abs/2602.05261, without the factor 1 / n, since it is
# aggregated by 'sequence_sum', and with clip widths of its own.
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
ANCHORED_AT_SAMPLER = ('vespo', 'dppo_tv')  # old_logprobs are the sampler's; no other correction


def _masked(values, advantages, loss_mask):
  """Returns both with 0 outside the mask, and the advantages as constants."""
  check_same_shapes(logprobs_or_ratio=values, advantages=advantages, loss_mask=loss_mask)
  return apply_mask(values, loss_mask), jax.lax.stop_gradient(apply_mask(advantages, loss_mask))


def _bounds(ratio, advantages, low, high):
  return (ratio < 1 - low) & (advantages < 0), (ratio > 1 + high) & (advantages > 0)


def _clip_metrics(low, high):
  return {
    'clip_ratio/low_mean': low,
    'clip_ratio/high_mean': high,
    'clip_ratio/region_mean': low | high,
  }
