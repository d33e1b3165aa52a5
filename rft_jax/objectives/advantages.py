"""From the rewards of a group to the advantages of its samples. Host arrays, numpy."""

import dataclasses
from typing import NamedTuple

import numpy as np

SCALES = ('group', 'batch', 'none')
WHITEN_EPSILON = 1e-8  # added to the std of whitening


@dataclasses.dataclass(slots=True, kw_only=True)
class AdvantageConfig:
  """How a reward is compared with the others of its group."""

  # group: with the mean of its group (GRPO; Dr.GRPO with scale='none'). All are in ESTIMATORS of
  # objectives/advantages.py; the others scale in their own way.
  estimator: str = 'group'
  scale: str = 'group'  # divide the centred reward by the std of its group, of the batch, or not
  epsilon: float = 1e-4  # added to that std
  ddof: int = 1  # std over G - ddof
  # DAPO's soft punishment of length: over so many tokens before max_new_tokens the reward falls
  # by overlong_penalty. 0: off.
  overlong_buffer: int = 0
  overlong_penalty: float = 1.0
  baseline_decay: float = 0.9  # reinforce: of the running mean that rewards are compared with

  def validate(self) -> list[str]:
    problems = []
    if self.estimator not in ESTIMATORS:
      problems.append(f'estimator={self.estimator!r}, need one of {tuple(ESTIMATORS)}')
    if self.scale not in SCALES:
      problems.append(f'scale={self.scale!r}, need one of {SCALES}')
    elif self.scale == 'batch' and self.estimator != 'group':
      problems.append(
        f"scale='batch' belongs to estimator='group', not {self.estimator!r}, "
        'which scales in its own way'
      )
    if self.epsilon < 0:
      problems.append(f'epsilon={self.epsilon}, need >= 0')
    if self.overlong_buffer < 0:
      problems.append(f'overlong_buffer={self.overlong_buffer}, need >= 0 (0: off)')
    if not 0 <= self.baseline_decay < 1:
      problems.append(f'baseline_decay={self.baseline_decay}, need 0 to below 1')
    if self.ddof not in (0, 1):
      problems.append(f'ddof={self.ddof}, need 0 or 1')
    return problems


def group_advantages(
  rewards, config: AdvantageConfig, *, lengths=None, baseline=None, component_weights=None
) -> np.ndarray:
  """Returns how much better each sample did than what config.estimator compares it with.

  By default

      A = (r - mean_g) / (std + epsilon)

  with std of the group (GRPO, https://arxiv.org/abs/2402.03300), of the batch
  (https://arxiv.org/abs/2508.08221), or 1 without epsilon (Dr.GRPO,
  https://arxiv.org/abs/2503.20783). A group whose rewards are all equal, and a group of one,
  gives exactly 0 wherever a reward is compared with its group alone; that is decided by
  comparison, since a computed std can be a rounding error.

  Args:
    rewards: f64[P, G], finite; the groups that were graded whole. For gdpo f64[P, G, K], one for
      each grader, NaN where a grader does not apply.
    lengths: [P, G] trainable tokens of each sample; opo and both reinforce_plus_plus need it.
    baseline: f64[] for the whole batch, or f64[P]. reinforce needs it, known before this batch was
      sampled; remax needs f64[P], the rewards of each prompt's greedy completion.
    component_weights: f64[K]; gdpo needs it.
  Returns:
    f32[P, G]
  Raises:
    ValueError: an argument that the estimator needs is missing, a shape is wrong, or a number is
      not finite or cannot be in this estimator.
  """
  if config.estimator not in ESTIMATORS:
    raise ValueError(f'estimator={config.estimator!r}, need one of {tuple(ESTIMATORS)}')
  rewards = np.asarray(rewards, np.float64)
  components = config.estimator == 'gdpo'
  if rewards.ndim != 2 + components:
    raise ValueError(f'rewards {rewards.shape}, need {"[P, G, K]" if components else "[P, G]"}')
  if not (np.isfinite(rewards) | (np.isnan(rewards) & components)).all():
    raise ValueError(f'rewards are not all finite: {rewards[~np.isfinite(rewards)][:8]}')
  need = NEEDS.get(config.estimator)
  given = {'lengths': lengths, 'baseline': baseline, 'component_weights': component_weights}
  if need and given[need] is None:
    raise ValueError(f'estimator={config.estimator!r} needs {need}')
  if not rewards.size:
    return np.zeros(rewards.shape[:2], np.float32)
  extra = {need: np.asarray(given[need], np.float64)} if need else {}
  with np.errstate(over='ignore', invalid='ignore'):  # told below
    advantages = ESTIMATORS[config.estimator](rewards, config, **extra).astype(np.float32)
  if not np.isfinite(advantages).all():
    raise ValueError(
      f'estimator={config.estimator!r}: rewards from {np.nanmin(rewards):g} to '
      f'{np.nanmax(rewards):g} give advantages beyond float32'
    )
  return advantages


class Signal(NamedTuple):
  """Which groups can teach: those of which not all rewards are equal."""

  groups: np.ndarray  # bool[P]
  generated: int  # P
  used: int  # how many are True


def groups_with_signal(rewards) -> Signal:
  """Returns the groups that dynamic sampling keeps, max != min, and how many there are.

  DAPO, https://arxiv.org/abs/2503.14476: the others are dropped whole, denominators included, and
  more prompts are sampled up to a cap.

  Args:
    rewards: f64[P, G]; groups of one have no signal.
  """
  signal = _differs(np.asarray(rewards, np.float64))[:, 0]
  return Signal(signal, len(signal), int(signal.sum()))


def running_baseline(baseline, rewards, *, decay=0.9) -> float:
  """Returns decay * baseline + (1 - decay) * mean(rewards); the mean where baseline is None.

  For the next batch: rewards compared with a mean that they are part of are biased.
  """
  mean = float(np.mean(rewards))
  return mean if baseline is None else decay * baseline + (1 - decay) * mean


# ------------------------------------------------------------------ estimators


def _group(rewards, config):
  """(r - mean_g) / (std + epsilon), see group_advantages."""
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
  _same_shape('lengths', lengths, rewards)
  baseline = _divided((lengths * rewards).sum(1, keepdims=True), lengths.sum(1, keepdims=True))
  known = _differs(rewards) & (lengths.sum(1, keepdims=True) > 0)
  return np.where(known, rewards - baseline, 0.0)


def _gpg(rewards, config):
  """(r - mean_g) * rows / rows in groups with signal; https://arxiv.org/abs/2504.02546.

  Signal is what differs inside a group; a reward of 0 is a reward like any other.
  """
  return _centred(rewards) * (len(rewards) / max(_differs(rewards).sum(), 1))


def _maxrl(rewards, config):
  """(r - mean_g) / (mean_g + epsilon), for r >= 0; https://arxiv.org/abs/2602.02710."""
  if (rewards < 0).any():
    raise ValueError(f"estimator='maxrl' needs rewards >= 0, found {rewards.min():g}")
  return _divided(_centred(rewards), rewards.mean(1, keepdims=True) + config.epsilon)


def _pass_at_k(rewards, config):
  """The best gets its lead over the second, 0 at a tie; https://arxiv.org/abs/2503.19595."""
  if rewards.shape[1] < 2:
    return np.zeros_like(rewards)
  second, best = np.moveaxis(np.sort(rewards, 1)[:, -2:], 1, 0)[..., None]
  return np.where(rewards == best, best - second, 0.0)


def _best_of_n(rewards, config):
  """1 for the best of the group, shared equally by those that tie, 0 for the others.

  With -A log p as the loss it is supervised learning on the best, as RAFT does
  (https://arxiv.org/abs/2304.06767). A group of equals has no best and is left out.
  """
  best = rewards == rewards.max(1, keepdims=True)
  return np.where(_differs(rewards), best / best.sum(1, keepdims=True), 0.0)


def _gdpo(rewards, config, component_weights):
  """Each component normalised in its group, weighted, summed, and normalised over the batch.

      z_k = (r_k - mean_g) / (std_g + epsilon),  s = sum(w_k z_k)
      A = (s - mean_batch) / (std_batch + epsilon)

  https://arxiv.org/abs/2601.05242. NaN components are in no statistics; a sample of NaNs alone has
  A = 0 and is in none either.
  """
  K = rewards.shape[2]
  if K < 2:
    raise ValueError(f"estimator='gdpo' needs 2 components or more, found {K}")
  if component_weights.shape != (K,) or not np.isfinite(component_weights).all():
    raise ValueError(f'component_weights {component_weights}, need {K} finite numbers')
  present = ~np.isnan(rewards)
  each = _normalised(rewards, present, 1, config)
  return _normalised((each * component_weights).sum(-1), present.any(-1), (0, 1), config)


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

  With a KL in the reward the return differs from token to token: objectives/returns.py.
  """
  return _whitened(rewards, lengths)


def _reinforce_plus_plus_baseline(rewards, config, lengths):
  """r - mean_g, then whitened over all trainable tokens of the batch; same paper.

  Whitening moves every token by the same amount, so groups of equal rewards need not be at 0.
  """
  return _whitened(_centred(rewards), lengths)


ESTIMATORS = {
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
# Which argument of group_advantages an estimator cannot do without.
NEEDS = {
  'opo': 'lengths',
  'gdpo': 'component_weights',
  'reinforce': 'baseline',
  'remax': 'baseline',
  'reinforce_plus_plus': 'lengths',
  'reinforce_plus_plus_baseline': 'lengths',
}


# ------------------------------------------------------------------ statistics


def _differs(rewards):
  """bool[P, 1]: whether the rewards of a group differ, told by comparison and never by a std."""
  return rewards.max(1, keepdims=True) != rewards.min(1, keepdims=True)


def _centred(rewards):
  return np.where(_differs(rewards), rewards - rewards.mean(1, keepdims=True), 0.0)


def _std(rewards, ddof, axis):
  count = rewards.size if axis is None else rewards.shape[axis]
  if count <= ddof:
    return np.ones((1, 1))
  return rewards.std(axis=axis, ddof=ddof, keepdims=True)


def _divided(values, by):
  return values / np.where(by > 0, by, 1.0)


def _normalised(values, present, axis, config):
  """(x - mean) / (std + epsilon) over what is present along axis; 0 where it is equal or absent."""
  count = present.sum(axis, keepdims=True)
  low = np.where(present, values, np.inf).min(axis, keepdims=True)
  high = np.where(present, values, -np.inf).max(axis, keepdims=True)
  total = np.where(present, values, 0.0).sum(axis, keepdims=True)
  centred = np.where(present & (high > low), values - total / np.maximum(count, 1), 0.0)
  variance = np.square(centred).sum(axis, keepdims=True) / np.maximum(count - config.ddof, 1)
  return _divided(centred, np.sqrt(variance) + config.epsilon)


def _whitened(values, counts):
  """(x - mean) / (std + 1e-8), where x stands count times; std over all of them, without ddof."""
  _same_shape('lengths', counts, values)
  present = counts > 0
  if not present.any() or values[present].max() == values[present].min():
    return np.zeros_like(values)
  centred = values - (values * counts).sum() / counts.sum()
  std = np.sqrt((np.square(centred) * counts).sum() / counts.sum())
  return np.where(present, centred / (std + WHITEN_EPSILON), 0.0)


def _same_shape(name, array, rewards):
  if array.shape != rewards.shape or not (np.isfinite(array) & (array >= 0)).all():
    raise ValueError(f'{name} {array.shape}, need {rewards.shape} of numbers >= 0')
