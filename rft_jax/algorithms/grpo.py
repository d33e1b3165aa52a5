"""GRPO and its relatives: several samples a prompt, each judged against others; no critic.

Shao et al. 2024, https://arxiv.org/abs/2402.03300, with the token mean and the unequal clip
bounds of DAPO, https://arxiv.org/abs/2503.14476, and no KL term unless asked for. What a sample
is compared with is config.advantage, what is minimised is config.objective: RLOO, REINFORCE++,
ReMax, DAPO, GSPO and CISPO are settings of the two.
"""

import numpy as np

from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.algorithms.rl_batch import (
  explore,
  gather,
  lengths_of,
  rewards_of,
  token_rewards,
  with_kl,
  with_logprobs,
  with_policy_objective,
)
from rft_jax.data import batching
from rft_jax.objectives.advantages import NEEDS, AdvantageConfig, group_advantages, running_baseline
from rft_jax.objectives.gae import returns_to_go, whiten
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.objectives.reasoning_steps import numbers
from rft_jax.rollout import credit
from rft_jax.types import Episode

REQUIREMENTS = Requirements('prompts', reference=with_kl)


def make(context: StageContext) -> Algorithm:
  """Returns the GRPO Algorithm over room.examples, sampled by room.rollout."""
  config: ObjectiveConfig = context.groups['objective']
  advantage: AdvantageConfig = context.groups['advantage']
  rollout = context.groups['rollout']
  of_source = {example.item.source: example for example in context.examples}

  def collect(state, step):
    groups, metrics, algorithm_state = gather(context, state, step)
    greedy = None
    if groups and advantage.estimator == 'remax':
      groups, greedy, seen = with_greedy(context, state, step, groups, of_source)
      metrics |= seen
    if not groups:
      return Collected(None, metrics, algorithm_state)
    width = rollout.max_new_tokens if config.kl_in_reward else 0  # what is eager compiles once
    batch, scored = with_logprobs(context, state, batching.from_groups(groups, width=width))
    rewards = rewards_of(groups, advantage, rollout.max_new_tokens)
    if config.kl_in_reward:
      on_tokens, seen, algorithm_state = token_rewards(batch, rewards.reshape(-1), config, algorithm_state)
      metrics |= seen
      rewards = np.float64(on_tokens).sum(1).reshape(rewards.shape)
    baseline = greedy if greedy is not None else algorithm_state.get('baseline', rewards.mean())
    if advantage.estimator == 'reinforce':
      algorithm_state = {
        **algorithm_state,
        'baseline': running_baseline(
          algorithm_state.get('baseline'), rewards, decay=advantage.baseline_decay
        ),
      }
    if config.kl_in_reward and advantage.estimator == 'reinforce_plus_plus':
      # Every token has a return of its own.
      found = np.asarray(whiten(returns_to_go(on_tokens, batch.loss_mask), batch.loss_mask))
    else:
      of_samples = advantages(groups, rewards, advantage, baseline=baseline)
      found = of_samples.reshape(-1, 1) * batch.loss_mask
      if context.credit is not None:
        steps = context.credit(state.policy, groups, step)
        metrics |= steps.metrics
        found = credit.advantages(groups, batch.loss_mask, of_samples, steps, context.groups['credit'])
        batch = batch._replace(reasoning_steps=numbers(steps.ends, batch.loss_mask.shape[1]))
    batch, algorithm_state, seen = explore(context, step, batch._replace(advantages=found), scored, algorithm_state)
    return Collected(batch, metrics | seen, algorithm_state)

  return with_policy_objective(context, collect)


def with_greedy(context: StageContext, state, step, groups, of_source):
  """Returns (groups, rewards of each prompt's greedy completion f64[P], metrics): ReMax's baseline.

  Groups whose greedy completion could not be graded are left out.

  Args:
    of_source: the source of an item -> its Example.
  """
  examples = [of_source[group[0].item.source] for group in groups]
  decoded = context.greedy(state.policy, examples, [group[0].occurrence for group in groups], step)
  rewards = [group[0].grade.reward for group in decoded.groups]
  kept = [p for p, reward in enumerate(rewards) if reward is not None]
  metrics = {'greedy/reward': float(np.mean([rewards[p] for p in kept]))} if kept else {}
  return ([groups[p] for p in kept], np.array([rewards[p] for p in kept]), metrics)


def advantages(
  groups: list[list[Episode]], rewards: np.ndarray, config: AdvantageConfig, *, baseline=None
) -> np.ndarray:
  """Returns the advantages f32[P, G] of graded samples, as config.estimator compares them.

  Args:
    rewards: f64[P, G], of the samples.
    baseline: for the estimators that need one, see group_advantages.
  """
  need, given = NEEDS.get(config.estimator), {}
  if config.estimator == 'gdpo':
    names = sorted({name for group in groups for e in group for name in e.grade.components})
    of = lambda name: np.array([[_component(e.grade, name) for e in group] for group in groups])
    rewards = np.stack([of(name) for name in names], -1)
    given = {'component_weights': np.ones(len(names))}
  elif need == 'lengths':
    given = {'lengths': lengths_of(groups)}
  elif need == 'baseline':
    given = {'baseline': baseline}
  return group_advantages(rewards, config, **given)


def _component(grade, name) -> float:
  """Returns the score of one grader; after a policy fault what the fault costs, else NaN."""
  score = grade.components.get(name)
  missing = grade.reward if grade.errors else float('nan')
  return missing if score is None else score
