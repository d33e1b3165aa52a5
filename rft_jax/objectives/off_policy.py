"""Tokens sampled by another policy than the one trained: weights, masks, and how far they are.

The sampler rounds differently, is quantized, or is some steps behind. d is the log-ratio
old_logprobs - sampler_logprobs f32[B, T] in nats, kappa = exp(d): the policy before this update
over the sampler. The corrections in CORRECTIONS share one signature:

    f(d, weights, config) -> f32[B, T], to be multiplied with the loss of each token

A token counts where its weight is > 0 and is not read elsewhere. What comes back is a constant to
gradients, finite, and exactly 1 at tokens that count wherever d is 0 throughout. A token that is
masked out, 0, stays in the denominators: the loss shrinks, the others do not grow.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rft_jax.objectives.kl import MAX_LOG_RATIO, clamped_exp
from rft_jax.objectives.masked import Maximum, Weighted, only, row_means


@dataclasses.dataclass(slots=True, kw_only=True)
class CorrectionConfig:
  """How the loss makes up for a sampler that is not quite the policy."""

  correction: str = 'tis'  # none, tis, icepop, sequence_tis, sequence_mask, geometric_mask, ...
  cap: float = 2.0  # the largest weight of tis, sequence_tis, sequence_mask_tis; 2 to 10
  icepop_low: float = 0.5  # icepop: a token outside the two is dropped
  icepop_high: float = 5.0
  mask_cap: float = 3.0  # sequence_mask: an answer whose product of kappa is above is dropped
  geometric_low: float = 0.99  # geometric_mask, sequence_mask_tis: the mean of kappa in the log
  geometric_high: float = 1.01
  outlier_low: float = 1e-4  # outlier_mask: one token outside drops its answer
  outlier_high: float = 100.0
  filter_limit: float = 1e-2  # k2_filter, k3_filter: an answer whose mean is above is dropped
  # Beside any of them: no loss on tokens with A < 0 of an answer that the policy finds less likely
  # than the sampler did by more than this, in nats a token; 0: off, 0.5 to start with.
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


def none(d, weights, config):
  """Returns 1: the sampler is the policy, or the loss's own ratio is over the sampler."""
  del weights, config
  return jnp.ones_like(d)


def tis(d, weights, config):
  """Returns min(kappa, cap) of each token: truncated importance sampling.

  Ionides 2008, https://doi.org/10.1198/106186008X320456. Unbiased but for the cap, for a token
  given what stands before it; that the tokens before came from the sampler is not corrected.
  """
  return truncated_importance(only(d, weights), 0.0, cap=config.cap)


def truncated_importance(logprobs, sampler_logprobs, *, cap):
  """Returns each token's weight min(p / q, cap), a constant, where p is the trainer's probability
  of it before the update and q the sampler's.

  Engines round differently, so what is sampled is not quite of the policy that is trained; the
  weights make the gradient that policy's again, the cap bounds their variance. Ionides 2008,
  "Truncated importance sampling", https://doi.org/10.1198/106186008X320456.

  Args:
    logprobs, sampler_logprobs: f32[B, T] nats, of the same tokens.
    cap: the largest weight.
  """
  return jax.lax.stop_gradient(jnp.minimum(clamped_exp(logprobs - sampler_logprobs), cap))


def icepop(d, weights, config):
  """Returns kappa where it lies in [icepop_low, icepop_high], else 0.

  IcePop, https://arxiv.org/abs/2510.18855. The tokens kept keep kappa, not 1.
  """
  kappa = _kappa(d, weights)
  return jnp.where((kappa >= config.icepop_low) & (kappa <= config.icepop_high), kappa, 0.0)


def sequence_tis(d, weights, config):
  """Returns min(product of kappa over the answer, cap), the same for each of its tokens.

  Corrects for the tokens before, too; its variance grows with length.
  """
  return _everywhere(jnp.minimum(_product(d, weights), config.cap), d)


def sequence_mask(d, weights, config):
  """Returns the product of kappa over the answer, or 0 where it is above mask_cap."""
  product = _product(d, weights)
  return _everywhere(jnp.where(product <= config.mask_cap, product, 0.0), d)


def geometric_mask(d, weights, config):
  """Returns 1 where exp(mean of d over the answer) is in [geometric_low, geometric_high], else 0.

  A bound that does not depend on length. It drops answers, and weights none.
  """
  geometric = clamped_exp(_constant_mean(d, weights))
  return _kept((geometric >= config.geometric_low) & (geometric <= config.geometric_high), d)


def sequence_mask_tis(d, weights, config):
  """Returns geometric_mask times tis; with an infinite cap, times kappa itself."""
  return geometric_mask(d, weights, config) * tis(d, weights, config)


def outlier_mask(d, weights, config):
  """Returns 0 for an answer of which any token's kappa is outside [outlier_low, outlier_high]."""
  kappa = _kappa(d, weights)
  outside = (kappa < config.outlier_low) | (kappa > config.outlier_high)
  return _kept(~outside.any(-1, keepdims=True), d)


def k2_filter(d, weights, config):
  """Returns 1 where the mean of d^2 / 2 over the answer is at most filter_limit, else 0."""
  return _kept(
    _constant_mean(0.5 * jnp.square(only(d, weights)), weights) <= config.filter_limit, d
  )


def k3_filter(d, weights, config):
  """Returns 1 where the mean of kappa - 1 - d over the answer is at most filter_limit, else 0."""
  return _kept(_constant_mean(_k3(only(d, weights)), weights) <= config.filter_limit, d)


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


# Of the two probabilities of a token, p the policy's and q the sampler's: means that are sums.
MOMENTS = tuple(f'sampling/moments/{name}' for name in ('p', 'q', 'pp', 'qq', 'pq'))


def self_normalised(aggregate, loss, correction, weights) -> Weighted:
  """Returns the sum of correction * loss over that of the correction, in place of over the count.

  The same as dividing every correction by their mean over the step, and exact however the step is
  cut. For aggregations that are means (token_mean, sequence_mean, prompt_mean), and only where d is
  known before the update, as its denominator depends on d: not with old_logprobs of None.

  Args:
    aggregate: f(values, weights) -> Weighted.
  """
  correction = jax.lax.stop_gradient(correction)
  return Weighted(
    aggregate(correction * only(loss, weights), weights).total, aggregate(correction, weights).total
  )


def stale_sequence_mask(logprobs, sampler_logprobs, advantages, weights, *, limit=0.5):
  """Returns 0 at tokens with A < 0 of an answer that the policy has moved away from, else 1.

      keep where A >= 0 or mean_t(sampler_logprobs - logprobs) <= limit

  Off-policy sequence masking of DeepSeek-V3.2, https://arxiv.org/abs/2512.02556. A constant.

  Args:
    logprobs: f32[B, T] nats, under the policy being trained.
    limit: nats a token.
  """
  d = only(logprobs, weights) - only(sampler_logprobs, weights)
  near = -_constant_mean(d, weights) <= limit
  return (near | (advantages >= 0)).astype(jnp.float32)


def mismatch_metrics(d, weights, logprobs) -> dict[str, Weighted | Maximum]:
  """Returns sums, and one maximum, that say how far the sampler is from the policy.

  After the division, mismatch_figures makes of some of the sums what cannot be added.

  Args:
    d: f32[B, T]; |d| is not clamped, exponentials are.
    logprobs: f32[B, T] nats, those that d was made with, before the update.
  """
  weights = weights.astype(jnp.float32)
  d, logprobs = only(d, weights), only(logprobs, weights)
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
  totals = (jnp.stack(list(values.values())) * weights).sum((1, 2))
  sums = {name: Weighted(total, weights.sum()) for name, total in zip(values, totals)}
  sums['sampling/sampling_logp_difference/max'] = Maximum(jnp.abs(d).max())
  return jax.lax.stop_gradient(sums)


def mismatch_figures(means) -> dict:
  """Returns means with the moments of mismatch_metrics turned into figures. Host floats.

  What has another name stays, and where there are no moments nothing is changed.

      effective_sample_share = mean(kappa)^2 / mean(kappa^2)
      probability_correlation = Pearson's, of the two probabilities of a token; 0 if one is constant
  """
  if MOMENTS[0] not in means:
    return means
  figures = {name: float(value) for name, value in means.items() if name not in MOMENTS}
  p, q, pp, qq, pq = (float(means[name]) for name in MOMENTS)
  square = figures['sampling/chi2'] + 1
  figures['sampling/effective_sample_share'] = (
    figures['sampling/importance_sampling_ratio/mean'] ** 2 / square if square > 0 else 0.0
  )
  spread = max(pp - p * p, 0.0) * max(qq - q * q, 0.0)
  figures['sampling/probability_correlation'] = (
    min((pq - p * q) / spread**0.5, 1.0) if spread > 1e-14 else 0.0
  )
  return figures


def _kappa(d, weights):
  return jax.lax.stop_gradient(clamped_exp(only(d, weights)))


def _product(d, weights):
  return jax.lax.stop_gradient(clamped_exp(only(d, weights).sum(-1, keepdims=True)))


def _constant_mean(values, weights):
  return jax.lax.stop_gradient(row_means(values, weights))


def _k3(d):
  return jnp.expm1(jnp.clip(d, -MAX_LOG_RATIO, MAX_LOG_RATIO)) - jnp.minimum(d, MAX_LOG_RATIO)


def _everywhere(values, like):
  return jnp.broadcast_to(values, like.shape)


def _kept(rows, like):
  return _everywhere(rows.astype(jnp.float32), like)
