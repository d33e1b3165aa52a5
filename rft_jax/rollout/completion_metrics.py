"""Logged metrics of a step's samples: lengths, truncation, rewards, faults."""

import collections

import numpy as np

from rft_jax.types import Episode


def metrics(groups: list[list[Episode]]) -> dict[str, float]:
  """Returns the metrics of groups of samples, under TRL's names where TRL has one."""
  episodes = [episode for group in groups for episode in group]
  graded = [group for group in groups if all(e.grade.reward is not None for e in group)]
  lengths = np.array([len(e.sample.tokens) for e in episodes])
  terminated = np.array([e.sample.stop_reason == 'stop' for e in episodes])
  values = {
    'completions/mean_length': lengths.mean(),
    'completions/min_length': lengths.min(),
    'completions/max_length': lengths.max(),
    'completions/clipped_ratio': 1 - terminated.mean(),
    'completions/mean_terminated_length': lengths[terminated].mean() if terminated.any() else 0.0,
    'reasoning_tokens_mean': np.mean([e.reasoning_tokens for e in episodes]),
    'groups_dropped': len(groups) - len(graded),
    'step_tokens': lengths.sum() + sum(len(group[0].prompt_ids) for group in groups),
  }
  errors = collections.Counter(
    key for e in episodes for key, value in e.grade.errors.items() if value is True
  )
  values |= {f'errors/{key}': count / len(episodes) for key, count in errors.items()}
  if graded:
    rewards = np.array([[e.grade.reward for e in group] for group in graded])
    values['reward'] = rewards.mean()
    values['reward_std'] = rewards.std(1, ddof=1).mean() if rewards.shape[1] > 1 else 0.0
    values['frac_reward_zero_std'] = np.mean(rewards.max(1) == rewards.min(1))
    scores = collections.defaultdict(list)
    for group in graded:
      for episode in group:
        for name, score in episode.grade.components.items():
          if score is not None:
            scores[name].append(score)
    for name, values_of_name in scores.items():
      values[f'rewards/{name}/mean'] = np.mean(values_of_name)
      std = np.std(values_of_name, ddof=1) if len(values_of_name) > 1 else 0.0
      values[f'rewards/{name}/std'] = std
  return {name: float(value) for name, value in values.items()}
