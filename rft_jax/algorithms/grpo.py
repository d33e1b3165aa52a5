"""GRPO and its relatives: advantages of samples within their group, no critic.

Shao et al. 2024, https://arxiv.org/abs/2402.03300, with the token mean and the unequal clip
bounds of DAPO, https://arxiv.org/abs/2503.14476, and no KL term by default. `advantage` sets what
a sample is compared with, `objective` sets the loss: RLOO, REINFORCE++, ReMax, DAPO, GSPO and
CISPO are settings of the two.
"""

import dataclasses

import numpy as np

from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.algorithms.rl_batch import (
  RLState,
  forward_passes,
  lengths_of,
  needs_kl,
  rewards_of,
  sample_groups,
  token_rewards,
  with_exploration,
  with_logprobs,
  with_policy_objective,
)
from rft_jax.data import batching
from rft_jax.objectives.advantage_estimators import NEEDS
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages, running_baseline
from rft_jax.objectives.gae import returns_to_go
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.objectives.reasoning_steps import step_indices
from rft_jax.objectives.whitening import whiten
from rft_jax.rollout import credit
from rft_jax.types import Episode


def problems(groups: dict, steps: int) -> list[str]:
  """Returns what of other groups does not fit this algorithm."""
  G = groups['rollout'].samples_per_prompt
  return (
    [
      f'rollout.samples_per_prompt={G}, need >= 2 for grpo: the advantage compares the samples of '
      'a prompt'
    ]
    if G < 2
    else []
  )


REQUIREMENTS = Requirements(
  'prompts',
  label='reinforcement',
  passes=forward_passes,
  credit_levels=('response', 'reasoning_step'),
  reference=needs_kl,
  initial_state=RLState,
  problems=problems,
)


def make(context: StageContext) -> Algorithm:
  """Returns the GRPO Algorithm over context.examples, sampled by context.rollout."""
  config: ObjectiveConfig = context.groups['objective']
  advantage: AdvantageConfig = context.groups['advantage']
  rollout = context.groups['rollout']
  example_by_source = {example.item.source: example for example in context.examples}

  def collect(state, step):
    groups, metrics, next_state = sample_groups(context, state, step)
    greedy_rewards = None
    if groups and advantage.estimator == 'remax':
      groups, greedy_rewards, greedy_metrics = with_greedy(
        context, state, step, groups, example_by_source
      )
      metrics |= greedy_metrics
    if not groups:
      return StepBatch(None, metrics, next_state)
    # A fixed width where token_rewards runs outside jit: each new shape would compile again.
    width = rollout.max_new_tokens if config.kl_in_reward else 0
    batch, scores = with_logprobs(context, state, batching.from_groups(groups, width=width))
    rewards, by_token = rewards_of(groups, advantage, rollout.max_new_tokens), None
    if config.kl_in_reward:
      by_token, kl_metrics, next_state = token_rewards(
        batch, rewards.reshape(-1), config, next_state
      )
      metrics |= kl_metrics
      rewards = np.float64(by_token).sum(1).reshape(rewards.shape)
    running = next_state.baseline
    baseline = rewards.mean() if running is None else running
    if advantage.estimator == 'reinforce':
      renewed = running_baseline(running, rewards, decay=advantage.baseline_decay)
      next_state = dataclasses.replace(next_state, baseline=renewed)
    batch, credit_metrics = _with_advantages(
      context,
      state,
      step,
      groups,
      batch,
      rewards,
      by_token,
      baseline if greedy_rewards is None else greedy_rewards,
    )
    batch, next_state, entropy_metrics = with_exploration(context, step, batch, scores, next_state)
    return StepBatch(batch, metrics | credit_metrics | entropy_metrics, next_state)

  return with_policy_objective(context, collect)


def _with_advantages(
  context: StageContext, state, step, groups, batch, rewards, by_token, baseline
):
  """Returns (the batch with advantages f32[B, T], metrics of the credit assignment).

  Args:
    by_token: f32[B, T], rewards of tokens where the KL is in the reward; else None.
  """
  advantage: AdvantageConfig = context.groups['advantage']
  if by_token is not None and advantage.estimator == 'reinforce_plus_plus':
    # Every token has a return of its own.
    returns = returns_to_go(by_token, batch.loss_mask)
    return batch._replace(advantages=np.asarray(whiten(returns, batch.loss_mask))), {}
  by_sample = advantages(groups, rewards, advantage, baseline=baseline)
  if context.credit is None:
    return batch._replace(advantages=by_sample.reshape(-1, 1) * batch.loss_mask), {}
  steps = context.credit(state.policy, groups, step)
  by_step = credit.advantages(groups, batch.loss_mask, by_sample, steps, context.groups['credit'])
  step_numbers = step_indices(steps.ends, batch.loss_mask.shape[1])
  return batch._replace(advantages=by_step, reasoning_steps=step_numbers), steps.metrics


def with_greedy(context: StageContext, state, step, groups, example_by_source):
  """Returns (groups, rewards of their greedy completions f64[P], metrics): ReMax's baseline.

  Groups whose greedy completion could not be graded are dropped.

  Args:
    example_by_source: {item.source: its Example}.
  """
  examples = [example_by_source[group[0].item.source] for group in groups]
  decoded = context.greedy(state.policy, examples, [group[0].occurrence for group in groups], step)
  rewards = [group[0].grade.reward for group in decoded.groups]
  graded = [p for p, reward in enumerate(rewards) if reward is not None]
  metrics = {'greedy/reward': float(np.mean([rewards[p] for p in graded]))} if graded else {}
  return ([groups[p] for p in graded], np.array([rewards[p] for p in graded]), metrics)


def advantages(
  groups: list[list[Episode]], rewards: np.ndarray, config: AdvantageConfig, *, baseline=None
) -> np.ndarray:
  """Returns the advantages f32[P, G] of graded samples by config.estimator.

  Args:
    rewards: f64[P, G], of the samples.
    baseline: for the estimators that need one, see group_advantages.
  """
  need, inputs = NEEDS.get(config.estimator), {}
  if config.estimator == 'gdpo':
    names = sorted({name for group in groups for e in group for name in e.grade.components})
    scores = lambda name: np.array([[_component(e.grade, name) for e in group] for group in groups])
    rewards = np.stack([scores(name) for name in names], -1)
    inputs = {'component_weights': np.ones(len(names))}
  elif need == 'lengths':
    inputs = {'lengths': lengths_of(groups)}
  elif need == 'baseline':
    inputs = {'baseline': baseline}
  return group_advantages(rewards, config, **inputs)


def _component(grade, name) -> float:
  """Returns the score of one grader; after a policy fault the reward of the fault, else NaN."""
  score = grade.components.get(name)
  missing = grade.reward if grade.errors else float('nan')
  return missing if score is None else score
