"""The estimated cost of a run: from a measured rollout and a measured forward pass.

A forward pass reads every token of a sequence once; an update is three (forward, and twice as much
backward).
"""

import time

import jax.numpy as jnp
import numpy as np

from rft_jax.data import batching
from rft_jax.rollout.credit import splitter
from rft_jax.rollout.state_values import first_in_state
from rft_jax.training.scoring import score_batch


def estimate(config, chat, policy, sampled, seconds, *, rows: int, mesh) -> dict:
  """Returns {'stages', 'evaluations', 'seconds_an_evaluation', 'hours'}, without compilation.

  Args:
    sampled: a Rollout of the policy.
    seconds: the time that it took, grading included.
    rows: held-out rows.
  """
  episodes = sampled.episodes()
  forward = _forward_seconds(config, policy, sampled.groups, mesh) / len(episodes)
  sampling = seconds / len(episodes)
  sample_seconds = sampling * _sampled_per_trained(config, chat, sampled.groups)
  stages, total = {}, 0.0
  for number, stage in enumerate(config.stages):
    a_step = _step_seconds(config, stage, forward, sample_seconds)
    name = f'stages[{number}] ({stage.algorithm})'
    stages[name] = {'steps': stage.steps, 'seconds_a_step': a_step}
    total += stage.steps * a_step
  every, steps = config.evaluate.every, config.total_steps()
  ends = {0, *(span.end for span in config.spans())}
  evaluations = len(ends | set(range(0, steps + 1, every) if every else ()))
  an_evaluation = rows * (1 + config.evaluate.samples_per_prompt) * sampling
  return {
    'stages': stages,
    'evaluations': evaluations,
    'seconds_an_evaluation': an_evaluation,
    'hours': (total + evaluations * an_evaluation) / 3600,
  }


def _step_seconds(config, stage, forward, sample_seconds) -> float:
  """Returns the seconds of a training step of a stage.

  Args:
    forward: seconds of a forward pass over one sequence.
    sample_seconds: of one sample that is trained on.
  """
  requirements, groups = config.requirements(stage), config.groups()
  passes, rows = requirements.passes(groups), requirements.rows_per_step(groups)
  if requirements.rows != 'prompts':
    return rows * passes * forward
  return rows * config.rollout.samples_per_prompt * (sample_seconds + passes * forward)


def _sampled_per_trained(config, chat, groups) -> float:
  """Returns the tokens that are sampled for each token of a sample that is trained on."""
  ratio = 1.0
  if config.advantage.estimator == 'remax':
    ratio += 1 / config.rollout.samples_per_prompt
  if config.rollout.dynamic_sampling_rounds:
    rewards = [[episode.grade.reward for episode in group] for group in groups]
    zero_variance = np.mean([len(set(group_rewards)) < 2 for group_rewards in rewards])
    needed = 1 / (1 - zero_variance) if zero_variance < 1 else np.inf
    ratio *= min(1 + config.rollout.dynamic_sampling_rounds, needed)
  return ratio + _resampled_tokens(config.credit, chat, groups)


def _resampled_tokens(credit, chat, groups) -> float:
  """Returns the tokens that credit by resampling samples, for each token of the rollout."""
  if credit.level != 'reasoning_step' or credit.source != 'resample':
    return 0.0
  split, episodes = splitter(chat, credit), [episode for group in groups for episode in group]
  splits = [split(episode.sample.tokens) for episode in episodes]
  # Completions from a state are taken to be as long as the rest of the first sample in it.
  rest = sum(
    splits[b].ends[-1] - splits[b].ends[j]
    for b, j in set(first_in_state(episodes, splits).values())
  )
  sampled = sum(len(episode.sample.tokens) for episode in episodes)
  return credit.resamples * rest / max(sampled, 1)


def _forward_seconds(config, policy, groups, mesh) -> float:
  """Returns the seconds of a forward pass over the groups."""
  batch = batching.from_groups(groups, np.zeros((len(groups), len(groups[0]))))
  score = lambda: score_batch(
    policy, batch, config.update, mesh=mesh, temperature=jnp.float32(config.rollout.temperature)
  )
  score()  # compiles
  began = time.monotonic()
  score()
  return time.monotonic() - began
