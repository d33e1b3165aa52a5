"""What algorithms with rollouts share: sampling a step, its rewards, log-probs and objective."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from rft_jax.algorithms import noisy_grades
from rft_jax.algorithms.base import Algorithm, StageContext
from rft_jax.algorithms.noisy_grades import NoisyGradesState
from rft_jax.data import order
from rft_jax.objectives import gae, kl_penalty, masked, reward_shaping
from rft_jax.objectives.advantages import groups_with_variance
from rft_jax.objectives.entropy import exploration
from rft_jax.objectives.policy_objective import policy_objective
from rft_jax.rollout import rollout
from rft_jax.types import Batch, Episode


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLState:
  """What an algorithm with rollouts carries from step to step; saved as JSON in a checkpoint."""

  position: int = 0  # prompts of the data order sampled so far in this stage
  kl_coef: float | None = None  # the adaptive coefficient of objective.kl_target; None: kl_coef
  entropy_coef: float = 0.0  # the adaptive coefficient of objective.entropy.target
  baseline: float | None = None  # the running mean reward of advantage.estimator='reinforce'
  noisy_grades: NoisyGradesState = NoisyGradesState()

  @classmethod
  def from_json(cls, saved: dict[str, Any]) -> 'RLState':
    """Returns the state that dataclasses.asdict has made JSON of."""
    history = NoisyGradesState(**saved['noisy_grades'])
    return cls(**saved | {'noisy_grades': history})


def needs_kl(groups: dict) -> bool:
  """Returns whether the objective has a KL term, and so needs a reference policy."""
  return groups['objective'].kl_coef > 0


def needs_scores(groups: dict) -> bool:
  """Returns whether a step scores its batch under the policy before the update."""
  objective = groups['objective']
  several_updates = groups['update'].updates_per_batch > 1
  return several_updates or objective.kl_in_reward or objective.entropy.needs_scores


def forward_passes(groups: dict) -> float:
  """Returns the forward passes of a step over each of its sequences: update, reference, scoring."""
  return 3.0 + needs_kl(groups) + needs_scores(groups)


class GradedGroups(NamedTuple):
  """What a step has sampled and can learn from."""

  groups: list[list[Episode]]  # every sample graded; may be empty
  metrics: dict[str, float]
  state: RLState  # of the next step


def sample_groups(context: StageContext, state, step: int, sampler=None) -> GradedGroups:
  """Samples and grades the prompts of a step, records all samples, and returns the usable groups.

  With rollout.dynamic_sampling_rounds, zero-variance groups are dropped and more prompts are
  sampled in up to that many further rounds: the dynamic sampling of DAPO,
  https://arxiv.org/abs/2503.14476. Groups beyond prompts_per_step are not used.

  Args:
    sampler: the policy that samples; None: state.policy.
  """
  config = context.groups['rollout']
  if context.groups['objective'].reference_every:
    context.reference(state)  # also where a step turns out to have nothing to learn from
  P, start = config.prompts_per_step, state.algorithm_state.position
  rollouts, graded = [], []
  for _ in range(1 + config.dynamic_sampling_rounds):
    rows = order.rows_at(context.seed, start, P, len(context.examples))
    rollouts.append(
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
      for group in rollouts[-1].groups
      if all(episode.grade.reward is not None for episode in group)
    ]
    if config.dynamic_sampling_rounds and len(_groups_with_variance(graded)) >= P:
      break
  sampled = rollout.joined(rollouts)
  context.record(step, sampled)
  metrics = dict(sampled.metrics, epoch=start / len(context.examples))
  groups, noise_state, noise_metrics = noisy_grades.apply(
    graded, context.groups['noisy_grades'], state.algorithm_state.noisy_grades, step + 1
  )
  metrics |= noise_metrics
  if config.dynamic_sampling_rounds:
    groups = _groups_with_variance(groups)[:P]
    metrics |= {
      'dynamic_sampling/prompts': float(len(sampled.groups)),
      'dynamic_sampling/used': float(len(groups)),
    }
  next_state = dataclasses.replace(state.algorithm_state, position=start, noisy_grades=noise_state)
  return GradedGroups(groups, metrics, next_state)


def rewards_of(groups: list[list[Episode]], config, max_new_tokens: int) -> np.ndarray:
  """Returns the rewards f64[P, G], with the overlong penalty of the AdvantageConfig."""
  rewards = _rewards(groups)
  if not config.overlong_buffer:
    return rewards
  return rewards + config.overlong_penalty * reward_shaping.soft_overlong(
    lengths_of(groups), limit=max_new_tokens, buffer=config.overlong_buffer
  )


def lengths_of(groups: list[list[Episode]]) -> np.ndarray:
  """Returns the completion lengths in tokens, i64[P, G]."""
  return np.array([[len(episode.sample.tokens) for episode in group] for group in groups])


def with_logprobs(context: StageContext, state, batch: Batch):
  """Returns (the batch with the log-probs that its objective reads, the policy's scores or None).

  Scores are the scoring.TokenScores of the policy before the update, where anything needs them.
  """
  config = context.groups['objective']
  scores: Any = None
  if config.kl_coef:
    reference = context.score(context.reference(state), batch)
    batch = batch._replace(reference_logprobs=reference.logprobs)
  if config.aggregation == 'prompt_mean':
    batch = batch._replace(group_tokens=masked.tokens_of_groups(batch.loss_mask, batch.group))
  if needs_scores(context.groups):
    scores = context.score(state.policy, batch)
  if context.groups['update'].updates_per_batch > 1 or config.kl_in_reward:
    batch = batch._replace(old_logprobs=scores.logprobs)
  return batch, scores


def with_policy_objective(context: StageContext, collect) -> Algorithm:
  """Returns the Algorithm of collect, which computes advantages, with policy_objective as loss."""
  config, rollout_config = context.groups['objective'], context.groups['rollout']
  return Algorithm(
    collect,
    functools.partial(
      policy_objective, config=config, max_new_tokens=rollout_config.max_new_tokens
    ),
    temperature=rollout_config.temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
    skip_zero_advantages=config.skip_zero_advantages,
  )


def with_exploration(context: StageContext, step: int, batch: Batch, scores, state: RLState):
  """Returns (batch, next state, metrics) with the entropy settings of objective.entropy applied."""
  config = context.groups['objective'].entropy
  if not config.needs_scores:
    return batch, state, {}
  rng = np.random.default_rng([context.seed, step])
  batch, entropy_coef, metrics = exploration(batch, scores, config, state.entropy_coef, rng)
  return batch, dataclasses.replace(state, entropy_coef=entropy_coef), metrics


def token_rewards(
  batch: Batch, rewards, config, state: RLState
) -> tuple[np.ndarray, dict, RLState]:
  """Returns (rewards of tokens f32[B, T], metrics, next state).

  The reward is on the last token. With kl_place='reward' each token's KL is subtracted from it,
  times a coefficient that adapts to the measured KL where config.kl_target is set.

  Args:
    batch: with old_logprobs and reference_logprobs where the KL is in the reward.
    rewards: [B].
    config: an ObjectiveConfig.
  """
  by_token = gae.terminal_rewards(np.asarray(rewards, np.float32), batch.loss_mask)
  if not config.kl_in_reward:
    return np.asarray(by_token), {}, state
  coefficient = config.kl_coef if state.kl_coef is None else state.kl_coef
  by_token = kl_penalty.subtract_kl(
    by_token, batch.old_logprobs, batch.reference_logprobs, batch.loss_mask, coefficient=coefficient
  )
  # Both log-probs are set where the KL is in the reward.
  log_ratios = np.where(batch.loss_mask > 0, batch.old_logprobs - batch.reference_logprobs, 0.0)  # type: ignore[operator]
  measured = float(log_ratios.sum(1).mean())
  if config.kl_target:
    adapted = kl_penalty.adapt_kl_coefficient(
      coefficient,
      measured,
      target=config.kl_target,
      samples=len(batch.group),
      horizon=config.kl_horizon,
    )
    state = dataclasses.replace(state, kl_coef=adapted)
  return np.asarray(by_token), {'kl_per_completion': measured, 'kl_coef': coefficient}, state


def _groups_with_variance(groups):
  """Returns the groups whose rewards are not all equal."""
  if not groups:
    return []
  differs = groups_with_variance(_rewards(groups))
  return [group for group, varied in zip(groups, differs) if varied]


def _rewards(groups):
  return np.array([[episode.grade.reward for episode in group] for group in groups], np.float64)
