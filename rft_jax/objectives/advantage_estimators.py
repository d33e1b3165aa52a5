"""Advantage estimators by name: GRPO, RLOO, OPO, GPG, MaxRL, GDPO, ReMax, REINFORCE++, ...

Each is a function (rewards f64[P, G], AdvantageConfig, and the argument that NEEDS names) -> f64[P,
G] on host arrays, called by advantages.group_advantages. A group whose rewards are all equal is
detected by comparison, since a computed std can be a rounding error.
"""

from collections.abc import Callable

import numpy as np

from rft_jax.objectives.whitening import WHITEN_EPSILON


def has_variance(rewards):
  """Returns bool[P, 1]: whether the rewards of a group are not all equal."""
  return rewards.max(1, keepdims=True) != rewards.min(1, keepdims=True)


# ------------------------------------------------------------------ estimators


def _group(rewards, config):
  """(r - mean_g) / (std + epsilon), see advantages.group_advantages."""
  centred = _centred(rewards)
  if config.scale == 'none':
    return centred
  axis = 1 if config.scale == 'group' else None
  return _divided(centred, _std(rewards, config.ddof, axis) + config.epsilon)


def _rloo(rewards, config):
  """r minus the mean of the others of its group; https://arxiv.org/abs/2402.14740."""
  G = rewards.shape[1]
  return _centred(rewards) * (G / max(G - 1, 1))


def _opo(rewards, config, lengths):
  """r - sum(n r) / sum(n) over the group, n its lengths; https://arxiv.org/abs/2505.23585."""
  _check_counts('lengths', lengths, rewards)
  baseline = _divided((lengths * rewards).sum(1, keepdims=True), lengths.sum(1, keepdims=True))
  has_baseline = has_variance(rewards) & (lengths.sum(1, keepdims=True) > 0)
  return np.where(has_baseline, rewards - baseline, 0.0)


def _gpg(rewards, config):
  """(r - mean_g) * groups / groups with variance; https://arxiv.org/abs/2504.02546.

  A group counts if its rewards differ; a reward of 0 is not treated differently from others.
  """
  return _centred(rewards) * (len(rewards) / max(has_variance(rewards).sum(), 1))


def _maxrl(rewards, config):
  """(r - mean_g) / (mean_g + epsilon), for r >= 0; https://arxiv.org/abs/2602.02710."""
  if (rewards < 0).any():
    raise ValueError(f"estimator='maxrl' needs rewards >= 0, found {rewards.min():g}")
  return _divided(_centred(rewards), rewards.mean(1, keepdims=True) + config.epsilon)


def _pass_at_k(rewards, config):
  """Best minus second best for the best of the group, 0 at a tie and for the others.

  https://arxiv.org/abs/2503.19595.
  """
  if rewards.shape[1] < 2:
    return np.zeros_like(rewards)
  second, best = np.moveaxis(np.sort(rewards, 1)[:, -2:], 1, 0)[..., None]
  return np.where(rewards == best, best - second, 0.0)


def _best_of_n(rewards, config):
  """1 for the best of the group, shared equally by those that tie, 0 for the others.

  With -A log p as the loss it is supervised learning on the best, as in RAFT
  (https://arxiv.org/abs/2304.06767). A zero-variance group has no best: 0.
  """
  best = rewards == rewards.max(1, keepdims=True)
  return np.where(has_variance(rewards), best / best.sum(1, keepdims=True), 0.0)


def _gdpo(rewards, config, component_weights):
  """Each component normalised in its group, weighted, summed, and normalised over the batch.

      z_k = (r_k - mean_g) / (std_g + epsilon),  s = sum(w_k z_k)
      A = (s - mean_batch) / (std_batch + epsilon)

  https://arxiv.org/abs/2601.05242. NaN components are in no statistics; a sample with NaN alone has
  A = 0 and is in none either.
  """
  K = rewards.shape[2]
  if K < 2:
    raise ValueError(f"estimator='gdpo' needs 2 components or more, found {K}")
  if component_weights.shape != (K,) or not np.isfinite(component_weights).all():
    raise ValueError(f'component_weights {component_weights}, need {K} finite numbers')
  present = ~np.isnan(rewards)
  components = _normalised(rewards, present, 1, config)
  sums = (components * component_weights).sum(-1)
  return _normalised(sums, present.any(-1), (0, 1), config)


def _reinforce(rewards, config, baseline):
  """r - baseline; Williams 1992, https://doi.org/10.1007/BF00992696."""
  if baseline.shape not in ((), rewards.shape[:1]) or not np.isfinite(baseline).all():
    raise ValueError(f'baseline {baseline.shape}, need [] or [P] of finite numbers')
  return rewards - (baseline[:, None] if baseline.ndim else baseline)


def _remax(rewards, config, baseline):
  """r minus the reward of the prompt's greedy completion; https://arxiv.org/abs/2310.10505."""
  if baseline.ndim != 1:
    raise ValueError(
      f"baseline {baseline.shape}: estimator='remax' needs a greedy reward for each prompt, [P]"
    )
  return _reinforce(rewards, config, baseline)


def _reinforce_plus_plus(rewards, config, lengths):
  """r whitened over all trainable tokens of the batch; https://arxiv.org/abs/2501.03262.

  With a KL in the reward each token has its own return, see gae.returns_to_go and whitening.whiten.
  """
  return _whitened(rewards, lengths)


def _reinforce_plus_plus_baseline(rewards, config, lengths):
  """r - mean_g, then whitened over all trainable tokens of the batch; same paper.

  Whitening shifts every token by the same amount, so zero-variance groups need not be at 0.
  """
  return _whitened(_centred(rewards), lengths)


ESTIMATORS: dict[str, Callable[..., np.ndarray]] = {
  'group': _group,
  'rloo': _rloo,
  'opo': _opo,
  'gpg': _gpg,
  'maxrl': _maxrl,
  'pass_at_k': _pass_at_k,
  'best_of_n': _best_of_n,
  'gdpo': _gdpo,
  'reinforce': _reinforce,
  'remax': _remax,
  'reinforce_plus_plus': _reinforce_plus_plus,
  'reinforce_plus_plus_baseline': _reinforce_plus_plus_baseline,
}
# The argument of group_advantages that an estimator requires.
NEEDS = {
  'opo': 'lengths',
  'gdpo': 'component_weights',
  'reinforce': 'baseline',
  'remax': 'baseline',
  'reinforce_plus_plus': 'lengths',
  'reinforce_plus_plus_baseline': 'lengths',
}


# ------------------------------------------------------------------ statistics


def _centred(rewards):
  return np.where(has_variance(rewards), rewards - rewards.mean(1, keepdims=True), 0.0)


def _std(rewards, ddof, axis):
  count = rewards.size if axis is None else rewards.shape[axis]
  if count <= ddof:
    return np.ones((1, 1))
  return rewards.std(axis=axis, ddof=ddof, keepdims=True)


def _divided(values, by):
  return values / np.where(by > 0, by, 1.0)


def _normalised(values, present, axis, config):
  """(x - mean) / (std + epsilon) over the present values; 0 where they are equal, or absent."""
  count = present.sum(axis, keepdims=True)
  low = np.where(present, values, np.inf).min(axis, keepdims=True)
  high = np.where(present, values, -np.inf).max(axis, keepdims=True)
  total = np.where(present, values, 0.0).sum(axis, keepdims=True)
  centred = np.where(present & (high > low), values - total / np.maximum(count, 1), 0.0)
  variance = np.square(centred).sum(axis, keepdims=True) / np.maximum(count - config.ddof, 1)
  return _divided(centred, np.sqrt(variance) + config.epsilon)


def _whitened(values, counts):
  """(x - mean) / (std + 1e-8), each x counted counts times; std over all of them, without ddof."""
  _check_counts('lengths', counts, values)
  present = counts > 0
  if not present.any() or values[present].max() == values[present].min():
    return np.zeros_like(values)
  centred = values - (values * counts).sum() / counts.sum()
  std = np.sqrt((np.square(centred) * counts).sum() / counts.sum())
  return np.where(present, centred / (std + WHITEN_EPSILON), 0.0)


def _check_counts(name, array, rewards):
  if array.shape != rewards.shape or not (np.isfinite(array) & (array >= 0)).all():
    raise ValueError(f'{name} {array.shape}, need {rewards.shape} of numbers >= 0')
