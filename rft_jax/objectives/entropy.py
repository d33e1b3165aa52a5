"""How much a policy still explores: a bonus on its entropy, and masks that choose tokens by it.

What needs the whole step at once (thresholds, shares, means) is worked out on the host in numpy,
from arrays of the whole step; the masks it yields are then cut into microbatches like any other.
Nothing here has a gradient, but kl_cov_penalty.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives.importance_ratios import log_ratios
from rft_jax.objectives.kl import distance
from rft_jax.objectives.masked import only
from rft_jax.types import Batch

COVARIANCES = ('none', 'clip_cov', 'kl_cov')


@dataclasses.dataclass(slots=True, kw_only=True)
class EntropyConfig:
  """What keeps a policy exploring. All of it is off by default."""

  coef: float = 0.0  # the loss is less this times the mean entropy of a token
  # Nats a token: the coefficient rises while the entropy is below, and falls while it is above;
  # 0: none. Skywork-OR1 has 0.2.
  target: float = 0.0
  target_step: float = 0.005  # by which the coefficient rises or falls in a step
  # The share of a step's tokens that the policy loss is on, those of most entropy; 1: all, 0.2 is
  # usual.
  top_share: float = 1.0
  # Tokens that would cost most entropy, told by the covariance of advantage and log-prob: none;
  # clip_cov: some of them, drawn by lot, have no loss; kl_cov: they are held where they are.
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
        f'coef={self.coef} and target={self.target}: with a '
        'target the coefficient is found on the way, starting at 0; set one of them to 0',
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
  batch: Batch, scored, config: EntropyConfig, algorithm_state: dict, rng
) -> tuple[Batch, dict, dict]:
  """Returns (batch, memory, metrics) with what config asks for, worked out over the whole step.

  The batch gets entropy_coef, token_loss_weights (times what it has already) and held; the memory gets
  'entropy_coef', the coefficient of the next step. Neither is changed in place.

  Args:
    batch: with advantages.
    scored: .logprobs and .entropy f32[B, T], of the policy before the update.
    memory: TrainState.algorithm_state.
    rng: a numpy Generator made of (seed, step); clip_cov draws from it.
  """
  counts, metrics = batch.loss_mask > 0, {}
  if not counts.any():
    return batch, algorithm_state, metrics
  keep = np.ones(batch.loss_mask.shape, np.float32)
  if config.target:
    entropy = float(np.average(scored.entropy[counts], weights=batch.loss_mask[counts]))
    following, now = adapt_coefficient(
      algorithm_state.get('entropy_coef', 0.0), entropy, target=config.target, step=config.target_step
    )
    batch = batch._replace(entropy_coef=np.full(len(counts), now, np.float32))
    algorithm_state = {**algorithm_state, 'entropy_coef': following}
    metrics['entropy_coef'] = now
  if config.top_share < 1:
    threshold = entropy_threshold(scored.entropy, batch.loss_mask, config.top_share)
    keep *= counts & (scored.entropy >= threshold)  # top_entropy_mask, compiling nothing
    metrics['entropy_threshold'] = threshold
  if config.covariance != 'none':
    covariance = covariances(batch.advantages, scored.logprobs, batch.loss_mask)
    metrics['entropy_covariance'] = float(covariance[counts].mean())
  if config.covariance == 'clip_cov':
    keep *= clip_cov_mask(
      covariance,
      rng,
      share=config.clip_cov_share,
      low=config.clip_cov_low,
      high=config.clip_cov_high,
    )
  if config.covariance == 'kl_cov':
    batch = batch._replace(kl_cov_mask=kl_cov_mask(covariance, share=config.kl_cov_share))
    metrics['kl_cov_share'] = float(batch.kl_cov_mask[counts].mean())
  if config.leaves_out_tokens:
    metrics['policy_loss_share'] = float(keep[counts].mean())
    before = 1.0 if batch.token_loss_weights is None else batch.token_loss_weights
    batch = batch._replace(token_loss_weights=(keep * before * counts).astype(np.float32))
  return batch, algorithm_state, metrics


def adapt_coefficient(coefficient, entropy, *, target=0.2, step=0.005) -> tuple[float, float]:
  """Returns (the next coefficient, the one to apply now) of an entropy bonus with a target.

      next = coefficient + step where entropy < target, - step where above, never below 0
      now = coefficient where entropy <= target, else 0

  so that the bonus works only where entropy is missing. Skywork-OR1,
  https://arxiv.org/abs/2505.22312; that the coefficient stays >= 0 is ours, as a penalty on
  entropy is not meant.

  Args:
    coefficient: what the last step returned as the next one; 0 at first.
    entropy: nats, the mean over the tokens of the step.
  """
  following = max(coefficient + step * float(np.sign(target - entropy)), 0.0)
  return following, coefficient if entropy <= target else 0.0


def entropy_threshold(entropies, weights, share) -> float:
  """Returns the entropy that the top `share` of the step's tokens reach. Host arrays, numpy.

  The threshold of "forking tokens", https://arxiv.org/abs/2506.01939, which keeps a share of 0.2.
  The share is rounded up to whole tokens; -inf if no token counts, so that nothing is masked.

  Args:
    entropies, weights: f32[B, T], of the whole step.
    share: above 0, at most 1.
  """
  if not 0 < share <= 1:
    raise ValueError(f'share={share}, need above 0, at most 1')
  chosen = np.asarray(entropies)[np.asarray(weights) > 0]
  if not chosen.size:
    return -np.inf
  count = _rounded_up(share * chosen.size)
  return float(np.partition(chosen, chosen.size - count)[chosen.size - count])


def top_entropy_mask(entropies, weights, threshold):
  """Returns f32[B, T], 1 at tokens that count and reach the threshold; ties all do.

  To be multiplied with the loss; tokens left out stay in the denominators.
  """
  return ((only(entropies, weights) >= threshold) & (weights > 0)).astype(jnp.float32)


def covariances(advantages, logprobs, weights) -> np.ndarray:
  """Returns (A - mean A)(log p - mean log p) f64[B, T], means over the step. Host arrays, numpy.

  What a token's update takes from the entropy, https://arxiv.org/abs/2505.22617; NaN where the
  weight is 0.
  """
  counts = np.asarray(weights) > 0
  centred = [
    np.where(counts, x, np.nan)
    for x in (np.asarray(advantages, np.float64), np.asarray(logprobs, np.float64))
  ]
  if not counts.any():
    return centred[0]
  return (centred[0] - np.nanmean(centred[0])) * (centred[1] - np.nanmean(centred[1]))


def clip_cov_mask(covariance, rng, *, share=2e-4, low=1.0, high=5.0) -> np.ndarray:
  """Returns f32[B, T], 0 at a random share of the tokens, among those of low < covariance < high.

  Clip-Cov, https://arxiv.org/abs/2505.22617: PPO's loss is multiplied by it. Host arrays, numpy.

  Args:
    covariance: covariances(), of the whole step.
    rng: a numpy Generator.
    share: of all tokens that count, rounded up; fewer if the band holds fewer.
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


def kl_cov_penalty(logprobs, old_logprobs, weights, chosen, *, coefficient=1.0):
  """Returns coefficient * |logprobs - old_logprobs| f32[B, T] at the chosen tokens, else 0.

  KL-Cov, https://arxiv.org/abs/2505.22617: added to the loss, it holds the tokens that cost most
  entropy. At the first update it is 0 in value and gradient.

  Args:
    chosen: f32[B, T], kl_cov_mask().
  """
  moved = distance(log_ratios(logprobs, old_logprobs, weights))
  return coefficient * jax.lax.stop_gradient(only(chosen, weights)) * moved


def _rounded_up(count) -> int:
  """Returns the least whole number that is not below, but for rounding in a product."""
  return int(np.ceil(count - 1e-9))
