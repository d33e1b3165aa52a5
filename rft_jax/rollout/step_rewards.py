"""Rewards of reasoning steps: from a grader of steps, from grades of prefixes, or by resampling."""

import time

import numpy as np

from rft_jax import graders
from rft_jax.errors import GraderFaults
from rft_jax.objectives import reasoning_steps
from rft_jax.rollout import grading_queue
from rft_jax.rollout.credit import CreditConfig, StepRewards, splitter
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.rollout.state_values import Resampling


def make(
  chat,
  config: CreditConfig,
  rollout: RolloutConfig,
  *,
  grader,
  step_grader,
  seed: int,
  mesh,
  response_format=None,
):
  """Returns step_rewards(policy, groups, step) -> StepRewards, for groups with every sample graded.

  Args:
    grader: the run's.
    step_grader: of config.grader; None: the run's.

  Raises (in a call):
    GraderFaults: more than rollout.max_grader_faults of the grades failed.
  """
  split = splitter(chat, config)

  def step_rewards(policy, groups, step) -> StepRewards:
    began = time.monotonic()
    episodes = [episode for group in groups for episode in group]
    splits = [split(episode.sample.tokens) for episode in episodes]
    if config.source == 'resample':
      resampling = Resampling(chat, config.resamples, rollout, grader, seed, mesh, response_format)
      grades, metrics = resampling.grades(policy, episodes, splits, step)
    else:
      grades, metrics = _grade_steps(step_grader or grader, episodes, splits, config.source)
    _check_faults(grades, rollout, step)
    # With prefix and resample the last state is the answer, which has its grade.
    states_only = config.source != 'process'
    prompt_values = _prompt_values(groups, config.source)
    rewards = [
      _rewards(
        [grades[b, j] for j in range(len(steps.ends) - states_only)],
        config.source,
        prompt_values[b],
        episodes[b].grade.reward,
      )
      for b, steps in enumerate(splits)
    ]
    complete, first = np.ones(len(groups), bool), 0
    for p, group in enumerate(groups):
      complete[p] = all(None not in row for row in rewards[first : first + len(group)])
      first += len(group)
    result = StepRewards(
      [steps.ends for steps in splits],
      [[0.0 if reward is None else reward for reward in row] for row in rewards],
      complete,
      {},
    )
    return result._replace(
      metrics=_metrics(result, config) | metrics | {'seconds/credit': time.monotonic() - began}
    )

  return step_rewards


def _grade_steps(grader, episodes, splits, source):
  """Returns ({(row, step): rewards}, metrics): grades of each step, or of each prefix."""
  with grading_queue.GradingQueue(grader) as queue:
    for b, (episode, steps) in enumerate(zip(episodes, splits)):
      # The longest prefix is the answer, which has its grade.
      for j in range(len(steps.ends) - (source == 'prefix')):
        before = steps.prefixes[j - 1] if j else ''
        reasoning_step = {'text': steps.contents[j], 'before': before, 'index': j}
        text = steps.contents[j] if source == 'process' else steps.prefixes[j]
        item = {**episode.item.row, 'reasoning_step': reasoning_step}
        queue.submit((b, j), item, graders.make_sample(text)[0])
  metrics = grading_queue.metrics(queue.counts())
  rewards = {key: [grade.reward] for key, grade in queue.grades.items()}
  return rewards, {f'credit/{name}': value for name, value in metrics.items()}


def _rewards(grades, source, prompt_value, final_grade) -> list[float | None]:
  """Returns the reward of each step of a sample; None where a grade is missing.

  Args:
    grades: of each step; for prefix and resample those of each state between two steps.
  """
  means = [None if None in row else float(np.mean(row)) for row in grades]
  if source == 'process':
    return means
  values = [prompt_value, *means, final_grade]
  if None in values:
    return [None] * (len(means) + 1)
  return reasoning_steps.differences([values])[0].tolist()


def _prompt_values(groups, source) -> list[float]:
  """Returns the value of each sample's prompt: for resample the mean grade of the other samples."""
  if source != 'resample':
    return [0.0] * sum(map(len, groups))
  values = []
  for group in groups:
    grades = np.array([episode.grade.reward for episode in group], np.float64)
    values += ((grades.sum() - grades) / max(len(grades) - 1, 1)).tolist()
  return values


def _check_faults(grades, rollout, step):
  rewards = [reward for row in grades.values() for reward in row]
  failed = sum(reward is None for reward in rewards)
  if failed > rollout.max_grader_faults * len(rewards):
    raise GraderFaults(
      f'step {step}: the grader failed on {failed} of {len(rewards)} reasoning steps, more than '
      f'rollout.max_grader_faults={rollout.max_grader_faults}. Correct credit.grader or the rows; '
      'the run continues from its last checkpoint.'
    )


def _metrics(result, config):
  counts = np.array([len(row) for row in result.ends])
  rewards = [reward for row in result.rewards for reward in row]
  return {
    'credit/reasoning_steps_mean': float(counts.mean()),
    'credit/at_max_reasoning_steps': float((counts == config.max_reasoning_steps).mean()),
    'credit/reasoning_step_reward': float(np.mean(rewards)),
    'credit/groups_without_step_rewards': float((~result.complete).sum()),
  }
