"""Importance-sampling correction for tokens of another policy, and mismatch metrics of the sampler.

The sampler rounds differently, is quantized, or is some steps behind. d is the log-ratio
old_logprobs - sampler_logprobs f32[B, T] in nats, kappa = exp(d): the policy before this update
over the sampler. The corrections in CORRECTIONS share one signature:

    f(d, loss_mask, config) -> f32[B, T], to be multiplied with the loss of each token

A token counts where its mask is > 0 and is not read elsewhere. The result is a constant to
gradients, finite, and exactly 1 at tokens that count wherever d is 0 throughout. A token that is
dropped, 0, stays in the denominators: the loss shrinks, the other tokens' weights do not grow.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp
from rft_jax.objectives.masked import Maximum, Weighted, apply_mask, row_means


@dataclasses.dataclass(slots=True, kw_only=True)
class CorrectionConfig:
  """How the loss corrects for a sampler that is not exactly the policy."""

  correction: str = 'tis'  # none, tis, icepop, sequence_tis, sequence_mask, geometric_mask, ...
  cap: float = 2.0  # the largest weight of tis, sequence_tis, sequence_mask_tis; 2 to 10
  icepop_low: float = 0.5  # icepop: a token outside the two is dropped
  icepop_high: float = 5.0
  mask_cap: float = 3.0  # sequence_mask: a completion whose product of kappa is above is dropped
  geometric_low: float = 0.99  # geometric_mask, sequence_mask_tis: the mean of kappa in the log
  geometric_high: float = 1.01
  outlier_low: float = 1e-4  # outlier_mask: one token outside drops its completion
  outlier_high: float = 100.0
  filter_limit: float = 1e-2  # k2_filter, k3_filter: a completion whose mean is above is dropped
  # In addition to any of them: no loss on tokens with A < 0 of a completion that the policy finds
  # less likely than the sampler did by more than this, in nats a token; 0: off, 0.5 to start with.
  stale_limit: float = 0.0

  def validate(self) -> list[str]:
    checks = [
      (
        self.correction in CORRECTIONS,
        f'correction={self.correction!r}, need one of {tuple(CORRECTIONS)}',
      ),
      (self.cap > 0, f'cap={self.cap}, need > 0'),
      (self.mask_cap >= 1, f'mask_cap={self.mask_cap}, need >= 1'),
      (self.filter_limit > 0, f'filter_limit={self.filter_limit}, need > 0'),
      (self.stale_limit >= 0, f'stale_limit={self.stale_limit}, need >= 0 (0: off)'),
    ]
    for name in ('icepop', 'geometric', 'outlier'):
      low, high = getattr(self, f'{name}_low'), getattr(self, f'{name}_high')
      checks.append(
        (0 <= low <= 1 <= high, f'{name}_low={low}, {name}_high={high}, need 0 <= low <= 1 <= high')
      )
    return [problem for good, problem in checks if not good]


# ------------------------------------------------------------------ corrections


def none(d, loss_mask, config):
  """Returns 1: the sampler is the policy, or the loss's own ratio is over the sampler."""
  del loss_mask, config
  return jnp.ones_like(d)


def tis(d, loss_mask, config):
  """Returns min(kappa, cap) of each token: truncated importance sampling.

  Ionides 2008, https://doi.org/10.1198/106186008X320456. Unbiased but for the cap, for a token
  given the tokens before it; that those came from the sampler is not corrected.
  """
  return truncated_importance(apply_mask(d, loss_mask), 0.0, cap=config.cap)


def truncated_importance(logprobs, sampler_logprobs, *, cap):
  """Returns each token's weight min(p / q, cap), a constant, where p is the trainer's probability
  of it before the update and q the sampler's.

  Inference and training round differently, so tokens are not sampled exactly from the policy that
  is trained; the weights correct the gradient for it, the cap bounds their variance. Ionides 2008,
  "Truncated importance sampling", https://doi.org/10.1198/106186008X320456.

  Args:
    logprobs, sampler_logprobs: f32[B, T] nats, of the same tokens.
    cap: the largest weight.
  """
  return jax.lax.stop_gradient(jnp.minimum(clamped_exp(logprobs - sampler_logprobs), cap))


def icepop(d, loss_mask, config):
  """Returns kappa where it lies in [icepop_low, icepop_high], else 0.

  IcePop, https://arxiv.org/abs/2510.18855. Tokens inside have the weight kappa, not 1.
  """
  kappa = _kappa(d, loss_mask)
  return jnp.where((kappa >= config.icepop_low) & (kappa <= config.icepop_high), kappa, 0.0)


def sequence_tis(d, loss_mask, config):
  """Returns min(product of kappa over the completion, cap), the same for each of its tokens.

  Corrects for the tokens before, too; its variance grows with length.
  """
  return _to_tokens(jnp.minimum(_product(d, loss_mask), config.cap), d)


def sequence_mask(d, loss_mask, config):
  """Returns the product of kappa over the completion, or 0 where it is above mask_cap."""
  product = _product(d, loss_mask)
  return _to_tokens(jnp.where(product <= config.mask_cap, product, 0.0), d)


def geometric_mask(d, loss_mask, config):
  """Returns 1 where exp(mean of d over the completion) is in [geometric_low, geometric_high].

  And 0 elsewhere: a bound that does not depend on length. It drops completions, and weights none.
  """
  geometric = clamped_exp(_constant_mean(d, loss_mask))
  is_inside = (geometric >= config.geometric_low) & (geometric <= config.geometric_high)
  return _row_mask(is_inside, d)


def sequence_mask_tis(d, loss_mask, config):
  """Returns geometric_mask times tis; with an infinite cap, times kappa itself."""
  return geometric_mask(d, loss_mask, config) * tis(d, loss_mask, config)


def outlier_mask(d, loss_mask, config):
  """Returns 0 for a completion with any token's kappa outside [outlier_low, outlier_high]."""
  kappa = _kappa(d, loss_mask)
  is_outside = (kappa < config.outlier_low) | (kappa > config.outlier_high)
  return _row_mask(~is_outside.any(-1, keepdims=True), d)


def k2_filter(d, loss_mask, config):
  """Returns 1 where the mean of d^2 / 2 over the completion is at most filter_limit, else 0."""
  k2 = _constant_mean(0.5 * jnp.square(apply_mask(d, loss_mask)), loss_mask)
  return _row_mask(k2 <= config.filter_limit, d)


def k3_filter(d, loss_mask, config):
  """Returns 1 where the mean of kappa - 1 - d over the completion is at most filter_limit."""
  k3 = _constant_mean(_k3(apply_mask(d, loss_mask)), loss_mask)
  return _row_mask(k3 <= config.filter_limit, d)


CORRECTIONS = {
  'none': none,
  'tis': tis,
  'icepop': icepop,
  'sequence_tis': sequence_tis,
  'sequence_mask': sequence_mask,
  'geometric_mask': geometric_mask,
  'sequence_mask_tis': sequence_mask_tis,
  'outlier_mask': outlier_mask,
  'k2_filter': k2_filter,
  'k3_filter': k3_filter,
}


def stale_sequence_mask(logprobs, sampler_logprobs, advantages, loss_mask, *, limit=0.5):
  """Returns 0 at tokens with A < 0 of a completion that the policy has moved away from, else 1.

      1 where A >= 0 or mean_t(sampler_logprobs - logprobs) <= limit

  Off-policy sequence masking of DeepSeek-V3.2, https://arxiv.org/abs/2512.02556. A constant.

  Args:
    logprobs: f32[B, T] nats, under the policy being trained.
    limit: nats a token.
  """
  d = apply_mask(logprobs, loss_mask) - apply_mask(sampler_logprobs, loss_mask)
  is_near = -_constant_mean(d, loss_mask) <= limit
  return (is_near | (advantages >= 0)).astype(jnp.float32)


# ------------------------------------------------------------------ mismatch metrics

# Of the two probabilities of a token, p the policy's and q the sampler's: means that are sums.
MOMENTS = tuple(f'sampling/moments/{name}' for name in ('p', 'q', 'pp', 'qq', 'pq'))


def mismatch_metrics(d, loss_mask, logprobs) -> dict[str, Weighted | Maximum]:
  """Returns sums, and one maximum, that measure the distance of the sampler from the policy.

  After the division, finish_mismatch_metrics computes from them the metrics that are no means.

  Args:
    d: f32[B, T]; |d| is not clamped, exponentials are.
    logprobs: f32[B, T] nats, those that d was computed from, before the update.
  """
  loss_mask = loss_mask.astype(jnp.float32)
  d, logprobs = apply_mask(d, loss_mask), apply_mask(logprobs, loss_mask)
  kappa, p, q = clamped_exp(d), jnp.exp(logprobs), jnp.exp(jnp.minimum(logprobs - d, 0.0))
  values = {
    'sampling/sampling_logp_difference/mean': jnp.abs(d),
    'sampling/k3': _k3(d),  # of KL(sampler || policy)
    'sampling/chi2': jnp.expm1(2 * jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)),  # kappa^2 - 1
    'sampling/token_mult_prob_error': clamped_exp(jnp.abs(d)),  # healthy: below 1.05
    'sampling/importance_sampling_ratio/mean': kappa,
    **dict(zip(MOMENTS, (p, q, p * p, q * q, p * q))),
  }
  # Added as one array: a sum over devices costs as much as a dozen of them.
  totals = (jnp.stack(list(values.values())) * loss_mask).sum((1, 2))
  sums: dict[str, Weighted | Maximum] = {
    name: Weighted(total, loss_mask.sum()) for name, total in zip(values, totals)
  }
  sums['sampling/sampling_logp_difference/max'] = Maximum(jnp.abs(d).max())
  return jax.lax.stop_gradient(sums)


def finish_mismatch_metrics(means) -> dict:
  """Returns means with the moments of mismatch_metrics replaced by two metrics. Host floats.

  Other metrics are returned unchanged, and so is everything if there are no moments.

      effective_sample_share = mean(kappa)^2 / mean(kappa^2)
      probability_correlation = Pearson's, of the two probabilities of a token; 0 if one is constant
  """
  if MOMENTS[0] not in means:
    return means
  metrics = {name: float(value) for name, value in means.items() if name not in MOMENTS}
  p, q, pp, qq, pq = (float(means[name]) for name in MOMENTS)
  square = metrics['sampling/chi2'] + 1
  metrics['sampling/effective_sample_share'] = (
    metrics['sampling/importance_sampling_ratio/mean'] ** 2 / square if square > 0 else 0.0
  )
  spread = max(pp - p * p, 0.0) * max(qq - q * q, 0.0)
  metrics['sampling/probability_correlation'] = (
    min((pq - p * q) / spread**0.5, 1.0) if spread > 1e-14 else 0.0
  )
  return metrics


def _kappa(d, loss_mask):
  return jax.lax.stop_gradient(clamped_exp(apply_mask(d, loss_mask)))


def _product(d, loss_mask):
  return jax.lax.stop_gradient(clamped_exp(apply_mask(d, loss_mask).sum(-1, keepdims=True)))


def _constant_mean(values, loss_mask):
  return jax.lax.stop_gradient(row_means(values, loss_mask))


def _k3(d):
  return jnp.expm1(jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - jnp.minimum(d, MAX_LOG_RATIO)


def _to_tokens(row_values, like):
  return jnp.broadcast_to(row_values, like.shape)


def _row_mask(is_used, like):
  return _to_tokens(is_used.astype(jnp.float32), like)
