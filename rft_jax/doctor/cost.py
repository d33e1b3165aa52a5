"""What a run will take, before it is run: sampling as measured, passes of the model as measured.

A pass reads every token of a sequence once; an update is three, forward and twice as much backward.
"""

import time

import jax.numpy as jnp
import numpy as np

from rft_jax.data import batching
from rft_jax.rollout.credit import splitter
from rft_jax.rollout.state_values import first_in_state
from rft_jax.training.update import score_batch


def estimate(config, chat, policy, sampled, seconds, *, rows: int, mesh) -> dict:
  """Returns {'stages', 'evaluations', 'seconds_an_evaluation', 'hours'}, compilation left out.

  Args:
    sampled: a Rollout of the policy.
    seconds: that it took, grades included.
    rows: held out.
  """
  episodes = sampled.episodes()
  forward = _forward(config, policy, sampled.groups, mesh) / len(episodes)
  sampling = seconds / len(episodes)
  samples = sampling * _samples(config, chat, sampled.groups)
  stages, total = {}, 0.0
  for number, (stage, kind) in enumerate(zip(config.stages, config.learns_from())):
    each = _of_step(config, stage.algorithm, kind, forward, samples)
    stages[f'stages[{number}] ({stage.algorithm})'] = {'steps': stage.steps, 'seconds_a_step': each}
    total += stage.steps * each
  every, steps = config.evaluate.every, config.total_steps()
  ends = {0, *(span.end for span in config.spans())}
  evaluations = len(ends | set(range(0, steps + 1, every) if every else ()))
  each = rows * (1 + config.evaluate.samples_per_prompt) * sampling
  return {
    'stages': stages,
    'evaluations': evaluations,
    'seconds_an_evaluation': each,
    'hours': (total + evaluations * each) / 3600,
  }


def passes(config, algorithm: str) -> float:
  """Returns how often a step of an algorithm that samples reads each of its sequences."""
  objective = config.objective
  if algorithm == 'rejection':
    kept = config.rejection.per_prompt / config.rollout.samples_per_prompt
    return 3 * min(1.0, kept if config.rejection.threshold is None else 1.0)
  scored = (
    config.update.updates_per_batch > 1 or objective.kl_in_reward or objective.entropy.needs_scores
  )
  critic = {'separate': 3 + 1, 'head': 1}[config.critic.kind] if algorithm == 'ppo' else 0
  teacher = 1 + (not scored) if algorithm == 'distillation' else 0
  return 3 + (objective.kl_coef > 0) + scored + critic + teacher


def _of_step(config, algorithm, kind, forward, samples) -> float:
  """Returns the seconds of a step; a pair is two sequences, and KTO sets answers behind others."""
  if kind == 'targets':
    return config.sft.rows_per_step * 3 * forward
  if kind == 'pairs':
    return getattr(config, algorithm).pairs_per_step * 6 * forward
  if kind == 'answers':
    return config.kto.rows_per_step * 4 * forward
  sequences = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
  return sequences * (samples + passes(config, algorithm) * forward)


def _samples(config, chat, groups) -> float:
  """Returns how many samples are made, in tokens, for each one that is learnt from."""
  found = 1.0
  if config.advantage.estimator == 'remax':
    found += 1 / config.rollout.samples_per_prompt
  if config.rollout.dynamic_sampling_rounds:
    rewards = [[episode.grade.reward for episode in group] for group in groups]
    alike = np.mean([len(set(of_group)) < 2 for of_group in rewards])
    found *= min(1 + config.rollout.dynamic_sampling_rounds, 1 / (1 - alike) if alike < 1 else np.inf)
  return found + _resampled(config.credit, chat, groups)


def _resampled(credit, chat, groups) -> float:
  """Returns the tokens that credit by resampling asks for, for each token sampled."""
  if credit.level != 'reasoning_step' or credit.source != 'resample':
    return 0.0
  split, episodes = splitter(chat, credit), [episode for group in groups for episode in group]
  parts = [split(episode.sample.tokens) for episode in episodes]
  # As much is taken to follow a state as the first sample that was in it has said from there.
  rest = sum(
    parts[b].ends[-1] - parts[b].ends[j] for b, j in set(first_in_state(episodes, parts).values())
  )
  return credit.resamples * rest / max(sum(len(one.sample.tokens) for one in episodes), 1)


def _forward(config, policy, groups, mesh) -> float:
  """Returns the seconds of one pass over the groups."""
  batch = batching.from_groups(groups, np.zeros((len(groups), len(groups[0]))))
  score = lambda: score_batch(
    policy, batch, config.update, mesh=mesh, temperature=jnp.float32(config.rollout.temperature)
  )
  score()  # compiles
  began = time.monotonic()
  score()
  return time.monotonic() - began
