"""What reinforced algorithms do before and beside their advantages: sample, grade, score."""

import functools
from typing import NamedTuple

import numpy as np

from rft_jax.algorithms import noisy_grades
from rft_jax.algorithms.base import Algorithm, StageContext
from rft_jax.data import order
from rft_jax.objectives import gae, masked, reward_shaping
from rft_jax.objectives.advantages import groups_with_signal
from rft_jax.objectives.entropy import exploration
from rft_jax.objectives.policy_objective import policy_objective
from rft_jax.rollout import rollout
from rft_jax.types import Batch, Episode


def with_kl(groups) -> bool:
  """Returns whether the objective asks for a reference policy."""
  return groups['objective'].kl_coef > 0


class Gathered(NamedTuple):
  """What a step has sampled and can learn from."""

  groups: list[list[Episode]]  # graded whole; may be empty
  metrics: dict[str, float]
  algorithm_state: dict  # the next one


def gather(context: StageContext, state, step: int, sampler=None) -> Gathered:
  """Samples the prompts of a step, puts all of it on record, and keeps what can be trusted.

  With rollout.dynamic_sampling_rounds, groups of which all rewards are equal are dropped and further prompts
  are sampled, so many times at most: the dynamic sampling of DAPO,
  https://arxiv.org/abs/2503.14476. What is sampled beyond prompts_per_step groups is not used.

  Args:
    sampler: the policy that samples; None: state.policy.
  """
  config = context.groups['rollout']
  if context.groups['objective'].reference_every:
    context.reference(state)  # also where a step turns out to have nothing to learn from
  P, start = config.prompts_per_step, state.algorithm_state.get('position', 0)
  sampled, graded = [], []
  for _ in range(1 + config.dynamic_sampling_rounds):
    rows = order.rows_at(context.seed, start, P, len(context.examples))
    sampled.append(
      context.rollout(
        state.policy if sampler is None else sampler,
        [context.examples[row] for row in rows],
        list(range(start, start + P)),
        step,
      )
    )
    start += P
    graded += [
      group
      for group in sampled[-1].groups
      if all(episode.grade.reward is not None for episode in group)
    ]
    if config.dynamic_sampling_rounds and len(_with_signal(graded)) >= P:
      break
  everything = rollout.joined(sampled)
  context.keep(step, everything)
  metrics = dict(everything.metrics, epoch=start / len(context.examples))
  groups, algorithm_state, seen = noisy_grades.apply(
    graded, context.groups['noisy_grades'], {**state.algorithm_state, 'position': start}, step + 1
  )
  metrics |= seen
  if config.dynamic_sampling_rounds:
    groups = _with_signal(groups)[:P]
    metrics |= {
      'dynamic_sampling/prompts': float(len(everything.groups)),
      'dynamic_sampling/used': float(len(groups)),
    }
  return Gathered(groups, metrics, algorithm_state)


def rewards_of(groups: list[list[Episode]], config, max_new_tokens: int) -> np.ndarray:
  """Returns the rewards f64[P, G] of graded samples, less what config asks for their length."""
  rewards = _rewards(groups)
  if not config.overlong_buffer:
    return rewards
  return rewards + config.overlong_penalty * reward_shaping.soft_overlong(
    lengths_of(groups), limit=max_new_tokens, buffer=config.overlong_buffer
  )


def lengths_of(groups: list[list[Episode]]) -> np.ndarray:
  """Returns the tokens of each sample, i64[P, G]."""
  return np.array([[len(episode.sample.tokens) for episode in group] for group in groups])


def with_logprobs(context: StageContext, state, batch: Batch):
  """Returns (the batch with the log-probs and counts that its objective reads, Scored or None).

  Scored is of the policy before the update, where anything asks for it.
  """
  config, scored = context.groups['objective'], None
  if config.kl_coef:
    batch = batch._replace(reference_logprobs=context.score(context.reference(state), batch).logprobs)
  if config.aggregation == 'prompt_mean':
    batch = batch._replace(group_tokens=masked.tokens_of_groups(batch.loss_mask, batch.group))
  several = context.groups['update'].updates_per_batch > 1
  if several or config.kl_in_reward or config.entropy.needs_scores:
    scored = context.score(state.policy, batch)
  if several or config.kl_in_reward:
    batch = batch._replace(old_logprobs=scored.logprobs)
  return batch, scored


def with_policy_objective(context: StageContext, collect) -> Algorithm:
  """Returns the Algorithm of collect, which gives advantages, and of policy_objective, its loss."""
  config, rollout = context.groups['objective'], context.groups['rollout']
  return Algorithm(
    collect,
    functools.partial(policy_objective, config=config, max_new_tokens=rollout.max_new_tokens),
    temperature=rollout.temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
    zero_advantages_teach_nothing=config.zero_advantages_teach_nothing,
  )


def explore(context: StageContext, step: int, batch: Batch, scored, algorithm_state):
  """Returns (batch, memory, metrics) with what config.objective.entropy asks for."""
  config = context.groups['objective'].entropy
  if not config.needs_scores:
    return batch, algorithm_state, {}
  return exploration(batch, scored, config, algorithm_state, np.random.default_rng([context.seed, step]))


def token_rewards(batch: Batch, rewards, config, algorithm_state) -> tuple[np.ndarray, dict, dict]:
  """Returns (rewards on tokens f32[B, T], metrics, the next memory).

  The reward stands on the last token; with kl_place='reward' every token pays for its KL, by a
  coefficient that config.kl_target lets follow the KL that is measured.

  Args:
    batch: with old_logprobs and reference_logprobs where the KL is in the reward.
    rewards: [B].
    config: an ObjectiveConfig.
  """
  on_tokens = gae.terminal_rewards(np.asarray(rewards, np.float32), batch.loss_mask)
  if not config.kl_in_reward:
    return np.asarray(on_tokens), {}, algorithm_state
  coefficient = algorithm_state.get('kl_coef', config.kl_coef)
  on_tokens = gae.subtract_kl(
    on_tokens, batch.old_logprobs, batch.reference_logprobs, batch.loss_mask, coefficient=coefficient
  )
  difference = np.where(batch.loss_mask > 0, batch.old_logprobs - batch.reference_logprobs, 0.0)
  measured = float(difference.sum(1).mean())
  if config.kl_target:
    algorithm_state = {
      **algorithm_state,
      'kl_coef': gae.adapt_kl_coefficient(
        coefficient,
        measured,
        target=config.kl_target,
        samples=len(batch.group),
        horizon=config.kl_horizon,
      ),
    }
  return np.asarray(on_tokens), {'kl_per_completion': measured, 'kl_coef': coefficient}, algorithm_state


def _with_signal(groups):
  """Returns the groups of which not all rewards are equal."""
  if not groups:
    return []
  signal = groups_with_signal(_rewards(groups)).groups
  return [group for group, differs in zip(groups, signal) if differs]


def _rewards(groups):
  return np.array([[episode.grade.reward for episode in group] for group in groups], np.float64)
