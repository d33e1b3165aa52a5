"""Group advantages (GRPO and others): rewards compared within a group. Host arrays, numpy."""

import dataclasses

import numpy as np

from rft_jax.objectives.advantage_estimators import ESTIMATORS, NEEDS, has_variance

SCALES = ('group', 'batch', 'none')


@dataclasses.dataclass(slots=True, kw_only=True)
class AdvantageConfig:
  """How the reward of a sample is compared with the others of its group."""

  # group: with the mean of its group (GRPO; Dr.GRPO with scale='none'). All are in ESTIMATORS of
  # objectives/advantage_estimators.py; the others have their own scaling.
  estimator: str = 'group'
  scale: str = 'group'  # divide the centred reward by the std of its group, of the batch, or not
  epsilon: float = 1e-4  # added to that std
  ddof: int = 1  # std over G - ddof
  # DAPO's overlong penalty: over the last overlong_buffer tokens before max_new_tokens the reward
  # falls by overlong_penalty. 0: off.
  overlong_buffer: int = 0
  overlong_penalty: float = 1.0
  baseline_decay: float = 0.9  # reinforce: of the running mean reward, which is the baseline

  def validate(self) -> list[str]:
    problems = []
    if self.estimator not in ESTIMATORS:
      problems.append(f'estimator={self.estimator!r}, need one of {tuple(ESTIMATORS)}')
    if self.scale not in SCALES:
      problems.append(f'scale={self.scale!r}, need one of {SCALES}')
    elif self.scale == 'batch' and self.estimator != 'group':
      problems.append(
        f"scale='batch' belongs to estimator='group', not {self.estimator!r}, "
        'which has its own scaling'
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
  """Returns how much better each sample is than the baseline of config.estimator.

  By default

      A = (r - mean_g) / (std + epsilon)

  with std of the group (GRPO, https://arxiv.org/abs/2402.03300), of the batch
  (https://arxiv.org/abs/2508.08221), or 1 without epsilon (Dr.GRPO,
  https://arxiv.org/abs/2503.20783). A zero-variance group, and a group of one, gives exactly 0
  with every estimator that compares a reward with its group alone.

  Args:
    rewards: f64[P, G], finite; without the groups that have a missing grade. For gdpo f64[P, G, K],
      one for each grader, NaN where a grader does not apply.
    lengths: [P, G] trainable tokens of each sample; opo and both reinforce_plus_plus need it.
    baseline: f64[] for the whole batch, or f64[P]. reinforce needs it, known before this batch was
      sampled; remax needs f64[P], the rewards of each prompt's greedy completion.
    component_weights: f64[K]; gdpo needs it.
  Returns:
    f32[P, G]
  Raises:
    ValueError: an argument that the estimator needs is missing, a shape is wrong, or a number is
      not finite or not allowed with this estimator.
  """
  if config.estimator not in ESTIMATORS:
    raise ValueError(f'estimator={config.estimator!r}, need one of {tuple(ESTIMATORS)}')
  rewards = np.asarray(rewards, np.float64)
  has_components = config.estimator == 'gdpo'
  if rewards.ndim != 2 + has_components:
    expected = '[P, G, K]' if has_components else '[P, G]'
    raise ValueError(f'rewards {rewards.shape}, need {expected}')
  if not (np.isfinite(rewards) | (np.isnan(rewards) & has_components)).all():
    raise ValueError(f'rewards are not all finite: {rewards[~np.isfinite(rewards)][:8]}')
  need = NEEDS.get(config.estimator)
  arguments = {'lengths': lengths, 'baseline': baseline, 'component_weights': component_weights}
  if need and arguments[need] is None:
    raise ValueError(f'estimator={config.estimator!r} needs {need}')
  if not rewards.size:
    return np.zeros(rewards.shape[:2], np.float32)
  extra = {need: np.asarray(arguments[need], np.float64)} if need else {}
  with np.errstate(over='ignore', invalid='ignore'):  # raised as a ValueError below
    advantages = ESTIMATORS[config.estimator](rewards, config, **extra).astype(np.float32)
  if not np.isfinite(advantages).all():
    raise ValueError(
      f'estimator={config.estimator!r}: rewards from {np.nanmin(rewards):g} to '
      f'{np.nanmax(rewards):g} give advantages beyond float32'
    )
  return advantages


def groups_with_variance(rewards) -> np.ndarray:
  """Returns bool[P], the groups that dynamic sampling uses: those of rewards not all equal.

  DAPO, https://arxiv.org/abs/2503.14476: zero-variance groups are dropped, from the denominators
  too, and more prompts are sampled up to a limit.

  Args:
    rewards: f64[P, G]; groups of one have no variance.
  """
  return has_variance(np.asarray(rewards, np.float64))[:, 0]


def running_baseline(baseline, rewards, *, decay=0.9) -> float:
  """Returns decay * baseline + (1 - decay) * mean(rewards); the mean where baseline is None.

  For the next batch: rewards compared with a mean that they are part of are biased.
  """
  mean = float(np.mean(rewards))
  return mean if baseline is None else decay * baseline + (1 - decay) * mean
