"""How much a policy still explores: a target for its entropy, and masks that choose tokens by it.

What needs the whole step at once (thresholds, shares, means) is worked out on the host in numpy,
from arrays of the whole step; the masks it yields are then cut into microbatches like any other.
Nothing here has a gradient, but kl_cov_penalty.
"""
import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.objectives.kl import distance
from rft_jax.objectives.masked import only
from rft_jax.objectives.ratios import log_ratios


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
  centred = [np.where(counts, x, np.nan) for x in (np.asarray(advantages, np.float64),
                                                   np.asarray(logprobs, np.float64))]
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
