"""From the rewards of a group to the advantages of its samples. Host arrays, numpy."""
import dataclasses

import numpy as np

SCALES = ('group', 'batch', 'none')


@dataclasses.dataclass(slots=True, kw_only=True)
class AdvantageConfig:
  """How a reward is compared with the others of its group."""
  scale: str = 'group'  # divide the centred reward by the std of its group, of the batch, or not
  epsilon: float = 1e-4  # added to that std
  ddof: int = 1  # std over G - ddof

  def validate(self) -> list[str]:
    problems = []
    if self.scale not in SCALES:
      problems.append(f'scale={self.scale!r}, need one of {SCALES}')
    if self.epsilon < 0:
      problems.append(f'epsilon={self.epsilon}, need >= 0')
    if self.ddof not in (0, 1):
      problems.append(f'ddof={self.ddof}, need 0 or 1')
    return problems


def group_advantages(rewards, config: AdvantageConfig) -> np.ndarray:
  """Returns how much better each sample did than its group.

      A = (r - mean_g) / (std + epsilon)

  with std of the group (GRPO, https://arxiv.org/abs/2402.03300), of the batch
  (https://arxiv.org/abs/2508.08221), or 1 without epsilon (Dr.GRPO,
  https://arxiv.org/abs/2503.20783). A group whose rewards are all equal, and a group of one,
  gives exactly 0; that is decided by comparison, since a computed std can be a rounding error.

  Args:
    rewards: f64[P, G], finite; the groups that were graded whole.
  Returns:
    f32[P, G]
  """
  rewards = np.asarray(rewards, np.float64)
  centred = rewards - rewards.mean(1, keepdims=True)
  if config.scale == 'group':
    centred = centred / (_std(rewards, config.ddof, axis=1) + config.epsilon)
  elif config.scale == 'batch':
    centred = centred / (_std(rewards, config.ddof, axis=None) + config.epsilon)
  equal = rewards.max(1, keepdims=True) == rewards.min(1, keepdims=True)
  return np.where(equal, 0.0, centred).astype(np.float32)


def _std(rewards, ddof, axis):
  count = rewards.size if axis is None else rewards.shape[axis]
  if count <= ddof:
    return np.ones((1, 1))
  return rewards.std(axis=axis, ddof=ddof, keepdims=True)
