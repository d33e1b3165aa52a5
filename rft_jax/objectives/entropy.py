"""Entropy bonus with an adaptive coefficient, and token masks: top entropy, Clip-Cov, KL-Cov.

What needs the whole step at once (thresholds, shares, means) is computed on the host in numpy, from
arrays of the whole step; the resulting masks are cut into microbatches like any other field.
Nothing here has a gradient, except kl_cov_penalty.
"""

import dataclasses

import jax
import numpy as np

from rft_jax.objectives.importance_ratios import log_ratios
from rft_jax.objectives.kl import safe_abs
from rft_jax.objectives.masked import apply_mask
from rft_jax.types import Batch

COVARIANCES = ('none', 'clip_cov', 'kl_cov')


@dataclasses.dataclass(slots=True, kw_only=True)
class EntropyConfig:
  """What keeps the entropy of a policy from collapsing. All of it is off by default."""

  coef: float = 0.0  # coef times the mean entropy of a token is subtracted from the loss
  # Nats a token: the coefficient rises while the entropy is below, and falls while it is above;
  # 0: none. Skywork-OR1 has 0.2.
  target: float = 0.0
  target_step: float = 0.005  # by which the coefficient rises or falls in a step
  # The policy loss is on this share of a step's tokens, those of highest entropy; 1: all, 0.2 is
  # usual.
  top_share: float = 1.0
  # Tokens that would reduce the entropy most, by the covariance of advantage and log-prob: none;
  # clip_cov: a random part of them has no loss; kl_cov: a KL penalty holds them in place.
  covariance: str = 'none'
  clip_cov_share: float = 2e-4  # of all tokens, among those whose covariance is between the two
  clip_cov_low: float = 1.0
  clip_cov_high: float = 5.0
  kl_cov_share: float = 2e-4  # of all tokens, those of the largest covariance
  kl_cov_coef: float = 1.0  # times |log-ratio|, added to the loss

  def validate(self) -> list[str]:
    checks = (
      (self.coef >= 0, f'coef={self.coef}, need >= 0: a bonus below 0 punishes exploring'),
      (self.target >= 0, f'target={self.target}, need >= 0 nats (0: none)'),
      (
        not (self.coef and self.target),
        f'coef={self.coef} and target={self.target}: with a target the coefficient is adapted, '
        'starting at 0; set one of them to 0',
      ),
      (self.target_step > 0, f'target_step={self.target_step}, need > 0'),
      (0 < self.top_share <= 1, f'top_share={self.top_share}, need above 0, at most 1 (1: all)'),
      (
        self.covariance in COVARIANCES,
        f'covariance={self.covariance!r}, need one of {COVARIANCES}',
      ),
      (0 < self.clip_cov_share < 1, f'clip_cov_share={self.clip_cov_share}, need 0 to 1'),
      (
        self.clip_cov_low < self.clip_cov_high,
        f'clip_cov_low={self.clip_cov_low}, clip_cov_high={self.clip_cov_high}, need low < high',
      ),
      (0 < self.kl_cov_share < 1, f'kl_cov_share={self.kl_cov_share}, need 0 to 1'),
      (self.kl_cov_coef > 0, f'kl_cov_coef={self.kl_cov_coef}, need > 0'),
    )
    return [problem for good, problem in checks if not good]

  @property
  def bonus(self) -> bool:
    """Returns whether the loss has an entropy bonus."""
    return self.coef > 0 or self.target > 0

  @property
  def leaves_out_tokens(self) -> bool:
    """Returns whether the policy loss is on some tokens only."""
    return self.top_share < 1 or self.covariance == 'clip_cov'

  @property
  def needs_scores(self) -> bool:
    """Returns whether exploration() reads log-probs and entropies of the whole step."""
    return self.target > 0 or self.leaves_out_tokens or self.covariance == 'kl_cov'


def exploration(
  batch: Batch, scores, config: EntropyConfig, entropy_coef: float, rng
) -> tuple[Batch, float, dict]:
  """Returns (batch, the entropy coefficient of the next step, metrics), over the whole step.

  The batch gets entropy_coef, token_loss_weights (multiplied with those it has) and kl_cov_mask.

  Args:
    batch: with advantages.
    scores: .logprobs and .entropy f32[B, T], of the policy before the update.
    entropy_coef: the coefficient that the step before has set; 0 at first.
    rng: a numpy Generator made of (seed, step); clip_cov draws from it.
  """
  metrics: dict[str, float] = {}
  is_trained = batch.loss_mask > 0
  if not is_trained.any():
    return batch, entropy_coef, metrics
  policy_loss_mask = np.ones(batch.loss_mask.shape, np.float32)
  if config.target:
    entropy = float(np.average(scores.entropy[is_trained], weights=batch.loss_mask[is_trained]))
    entropy_coef, current_coef = adapt_entropy_coefficient(
      entropy_coef, entropy, target=config.target, step=config.target_step
    )
    batch = batch._replace(entropy_coef=np.full(len(is_trained), current_coef, np.float32))
    metrics['entropy_coef'] = current_coef
  if config.top_share < 1:
    threshold = entropy_threshold(scores.entropy, batch.loss_mask, config.top_share)
    policy_loss_mask *= is_trained & (scores.entropy >= threshold)
    metrics['entropy_threshold'] = threshold
  if config.covariance != 'none':
    covariance = covariances(batch.advantages, scores.logprobs, batch.loss_mask)
    metrics['entropy_covariance'] = float(covariance[is_trained].mean())
  if config.covariance == 'clip_cov':
    policy_loss_mask *= clip_cov_mask(
      covariance,
      rng,
      share=config.clip_cov_share,
      low=config.clip_cov_low,
      high=config.clip_cov_high,
    )
  if config.covariance == 'kl_cov':
    penalty_mask = kl_cov_mask(covariance, share=config.kl_cov_share)
    batch = batch._replace(kl_cov_mask=penalty_mask)
    metrics['kl_cov_share'] = float(penalty_mask[is_trained].mean())
  if config.leaves_out_tokens:
    metrics['policy_loss_share'] = float(policy_loss_mask[is_trained].mean())
    before = 1.0 if batch.token_loss_weights is None else batch.token_loss_weights
    token_loss_weights = (policy_loss_mask * before * is_trained).astype(np.float32)
    batch = batch._replace(token_loss_weights=token_loss_weights)
  return batch, entropy_coef, metrics


def adapt_entropy_coefficient(
  coefficient, entropy, *, target=0.2, step=0.005
) -> tuple[float, float]:
  """Returns (the next coefficient, the one to apply now) of an entropy bonus with a target.

      next = coefficient + step where entropy < target, - step where above, never below 0
      now = coefficient where entropy <= target, else 0

  so that the bonus acts only where the entropy is too low. Skywork-OR1,
  https://arxiv.org/abs/2505.22312; that the coefficient stays >= 0 is our addition, since a
  penalty on entropy is not intended.

  Args:
    coefficient: the next coefficient that the last step returned; 0 at first.
    entropy: nats, the mean over the tokens of the step.
  """
  next_coefficient = max(coefficient + step * float(np.sign(target - entropy)), 0.0)
  return next_coefficient, coefficient if entropy <= target else 0.0


def entropy_threshold(entropies, loss_mask, share) -> float:
  """Returns the entropy that the top `share` of the step's tokens reach. Host arrays, numpy.

  The threshold of "forking tokens", https://arxiv.org/abs/2506.01939, which uses a share of 0.2.
  The share is rounded up to whole tokens; -inf if no token counts, so that nothing is masked.

  Args:
    entropies, loss_mask: f32[B, T], of the whole step.
    share: above 0, at most 1.
  """
  if not 0 < share <= 1:
    raise ValueError(f'share={share}, need above 0, at most 1')
  trained_entropies = np.asarray(entropies)[np.asarray(loss_mask) > 0]
  size = trained_entropies.size
  if not size:
    return -np.inf
  count = _rounded_up(share * size)
  return float(np.partition(trained_entropies, size - count)[size - count])


def covariances(advantages, logprobs, loss_mask) -> np.ndarray:
  """Returns (A - mean A)(log p - mean log p) f64[B, T], means over the step. Host arrays, numpy.

  By how much a token's update reduces the entropy, https://arxiv.org/abs/2505.22617; NaN where the
  mask is 0.
  """
  is_trained = np.asarray(loss_mask) > 0
  advantages, logprobs = (
    np.where(is_trained, x, np.nan)
    for x in (np.asarray(advantages, np.float64), np.asarray(logprobs, np.float64))
  )
  if not is_trained.any():
    return advantages
  return (advantages - np.nanmean(advantages)) * (logprobs - np.nanmean(logprobs))


def clip_cov_mask(covariance, rng, *, share=2e-4, low=1.0, high=5.0) -> np.ndarray:
  """Returns f32[B, T], 0 at a random share of the tokens, among those of low < covariance < high.

  Clip-Cov, https://arxiv.org/abs/2505.22617: PPO's loss is multiplied by it. Host arrays, numpy.

  Args:
    covariance: covariances(), of the whole step.
    rng: a numpy Generator.
    share: of all tokens that count, rounded up; fewer if the band has fewer.
  """
  mask = np.ones(covariance.shape, np.float32)
  band = np.flatnonzero((covariance > low) & (covariance < high))
  count = min(len(band), _rounded_up(share * np.isfinite(covariance).sum()))
  mask.flat[rng.choice(band, count, replace=False)] = 0.0
  return mask


def kl_cov_mask(covariance, *, share=2e-4) -> np.ndarray:
  """Returns f32[B, T], 1 at the share of the tokens with the largest covariance, rounded up."""
  mask = np.zeros(covariance.shape, np.float32)
  count = _rounded_up(share * np.isfinite(covariance).sum())
  order = np.argsort(np.where(np.isfinite(covariance), -covariance, np.inf), None, kind='stable')
  mask.flat[order[:count]] = 1.0
  return mask


def kl_cov_penalty(logprobs, old_logprobs, loss_mask, penalty_mask, *, coefficient=1.0):
  """Returns coefficient * |logprobs - old_logprobs| f32[B, T] in penalty_mask, else 0.

  KL-Cov, https://arxiv.org/abs/2505.22617: added to the loss, it holds in place the tokens that
  would reduce the entropy most. At the first update it is 0 in value and gradient.

  Args:
    penalty_mask: f32[B, T], kl_cov_mask().
  """
  distances = safe_abs(log_ratios(logprobs, old_logprobs, loss_mask))
  return coefficient * jax.lax.stop_gradient(apply_mask(penalty_mask, loss_mask)) * distances


def _rounded_up(count) -> int:
  """Returns count rounded up to an integer, but for rounding errors of a product."""
  return int(np.ceil(count - 1e-9))
