"""GRPO: several samples a prompt, each judged against its group; no critic.

Shao et al. 2024, https://arxiv.org/abs/2402.03300, with the token mean and the unequal clip
bounds of DAPO, https://arxiv.org/abs/2503.14476, and no KL term unless asked for.
"""
import functools

import numpy as np

from rft_jax import credit
from rft_jax.algorithms.base import Algorithm, Collected, Room
from rft_jax.data import order, packing
from rft_jax.objectives import masked
from rft_jax.objectives.advantages import NEEDS, AdvantageConfig, group_advantages
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.rollout import RolloutConfig
from rft_jax.types import Episode


SUPERVISED = False


def needs_reference(groups) -> bool:
  return groups['objective'].kl_coef > 0


def make(room: Room) -> Algorithm:
  """Returns the GRPO Algorithm over room.examples, sampled by room.rollout."""
  config: ObjectiveConfig = room.groups['objective']
  advantage: AdvantageConfig = room.groups['advantage']
  rollout: RolloutConfig = room.groups['rollout']
  updates_per_batch = room.groups['update'].updates_per_batch
  prompts_per_step = rollout.prompts_per_step

  def collect(state, step):
    start = (step - room.first_step) * prompts_per_step
    occurrences = list(range(start, start + prompts_per_step))
    rows = order.rows_at(room.seed, start, prompts_per_step, len(room.examples))
    sampled = room.rollout(state.policy, [room.examples[row] for row in rows], occurrences, step)
    room.keep(step, sampled)
    seen = dict(sampled.metrics)
    seen['epoch'] = (start + prompts_per_step) / len(room.examples)
    graded = [group for group in sampled.groups
              if all(episode.grade.reward is not None for episode in group)]
    if not graded:
      return Collected(None, seen)
    outcome = advantages(graded, advantage)
    batch = packing.from_groups(graded, outcome)
    if room.credit is not None:
      steps = room.credit(state.policy, graded, step)
      seen |= steps.metrics
      batch = batch._replace(advantages=credit.advantages(
          graded, batch.weights, outcome, steps, room.groups['credit']))
    if config.kl_coef:
      batch = batch._replace(reference_logprobs=room.score(room.reference, batch))
    if config.aggregation == 'prompt_mean':
      batch = batch._replace(group_tokens=masked.tokens_of_groups(batch.weights, batch.group))
    if updates_per_batch > 1:
      batch = batch._replace(old_logprobs=room.score(state.policy, batch))
    return Collected(batch, seen)

  return Algorithm(
      collect, functools.partial(policy_objective, config=config,
                                 max_new_tokens=rollout.max_new_tokens),
      temperature=rollout.temperature, updates_per_batch=updates_per_batch,
      zero_advantages_teach_nothing=not config.kl_coef)


def advantages(groups: list[list[Episode]], config: AdvantageConfig) -> np.ndarray:
  """Returns the advantages f32[P, G] of graded samples, as config.estimator compares them."""
  of = lambda value: np.array([[value(episode) for episode in group] for group in groups])
  rewards, given = of(lambda e: e.grade.reward), {}
  if config.estimator == 'gdpo':
    names = sorted({name for group in groups for e in group for name in e.grade.components})
    rewards = np.stack([of(lambda e, name=name: _component(e.grade, name)) for name in names], -1)
    given = {'component_weights': np.ones(len(names))}
  elif NEEDS.get(config.estimator) == 'lengths':
    given = {'lengths': of(lambda e: len(e.sample.tokens))}
  return group_advantages(rewards, config, **given)


def _component(grade, name) -> float:
  """Returns the score of one grader; after a policy fault what the fault costs, else NaN."""
  score = grade.components.get(name)
  missing = grade.reward if grade.errors else float('nan')
  return missing if score is None else score
