"""PPO: token advantages from a critic (GAE) that is trained together with the policy.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, on completions as in Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155: the reward on the last token, the KL in loss or reward
(objective.kl_place), generalized advantage estimates, whitened over the batch.

A state transition is a token; with credit.level='reasoning_step' it is a reasoning step, and with
'response' the whole completion. A transition of several tokens has one value (of the state it
starts in), one advantage and one return, which are those of all its tokens.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.algorithms.rl_batch import (
  RLState,
  forward_passes,
  needs_kl,
  rewards_of,
  sample_groups,
  token_rewards,
  with_exploration,
  with_logprobs,
)
from rft_jax.bucketing import coarse_bucket
from rft_jax.data import batching
from rft_jax.models import CRITIC_KINDS
from rft_jax.objectives import reasoning_steps
from rft_jax.objectives.gae import AdvantageEstimate, gae
from rft_jax.objectives.masked import Term, over_tokens
from rft_jax.objectives.policy_objective import policy_objective
from rft_jax.objectives.value_loss import value_loss
from rft_jax.objectives.whitening import whiten
from rft_jax.rollout import credit
from rft_jax.training.optim import OptimConfig


@dataclasses.dataclass(slots=True, kw_only=True)
class CriticConfig:
  """The critic of PPO: its model, its optimizer, and how its values become advantages."""

  # separate: a decoder of its own, initialised from `source`; head: a linear map of the policy's
  # hidden states, a thousandth of the memory, whose loss also trains the policy.
  kind: str = 'separate'
  # HF directory or hub id of a reward model with the policy's vocabulary, of any shape: initial
  # weights and head of the critic. '': those of the policy, with a head of zeros.
  source: str = ''
  optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
  vf_coef: float = 0.5  # weight of its loss; with 'separate' Adam cancels it, with 'head' not
  clip: float = 0.2  # the most that a value may change in an update; 0: no limit
  warmup_steps: int = 0  # first steps of the stage, in which the critic alone is trained
  discount: float = 1.0
  gae_lambda: float = 0.95  # 1: return minus value; 0: reward plus next value minus value
  whiten: bool = True  # scale advantages to mean 0 and std 1 over the tokens of the step

  def validate(self) -> list[str]:
    checks = (
      (self.kind in CRITIC_KINDS, f'kind={self.kind!r}, need one of {CRITIC_KINDS}'),
      (
        not self.source or self.kind == 'separate',
        f"source={self.source!r}, need '' with "
        f'kind={self.kind!r}: only a separate critic has weights of its own to start from',
      ),
      (self.vf_coef > 0, f'vf_coef={self.vf_coef}, need > 0'),
      (self.clip >= 0, f'clip={self.clip}, need >= 0 (0: off)'),
      (self.warmup_steps >= 0, f'warmup_steps={self.warmup_steps}, need >= 0'),
      (0 < self.discount <= 1, f'discount={self.discount}, need > 0 and <= 1'),
      (0 <= self.gae_lambda <= 1, f'gae_lambda={self.gae_lambda}, need 0 to 1'),
    )
    return [f'optim.{problem}' for problem in self.optim.validate()] + [
      problem for good, problem in checks if not good
    ]


def problems(groups: dict, steps: int) -> list[str]:
  """Returns what of other groups does not fit this algorithm."""
  warmup = groups['critic'].warmup_steps
  if warmup < steps:
    return []
  return [
    f'critic.warmup_steps={warmup} in a stage of {steps} steps, need fewer: the policy would never '
    'be trained'
  ]


REQUIREMENTS = Requirements(
  'prompts',
  label='reinforcement',
  passes=lambda groups: (
    forward_passes(groups) + {'separate': 3 + 1, 'head': 1}[groups['critic'].kind]
  ),
  credit_levels=('response', 'reasoning_step', 'token'),
  reference=needs_kl,
  critic=lambda groups: groups['critic'].kind,
  critic_optim=lambda groups, stage_optim: groups['critic'].optim,
  critic_source=lambda groups: groups['critic'].source,
  initial_state=RLState,
  problems=problems,
)


def make(context: StageContext) -> Algorithm:
  """Returns the PPO Algorithm over context.examples, sampled by context.rollout."""
  objective, config = context.groups['objective'], context.groups['critic']
  rollout, advantage = context.groups['rollout'], context.groups['advantage']
  credit_config = context.groups['credit']

  def collect(state, step):
    groups, metrics, next_state = sample_groups(context, state, step)
    if not groups:
      return StepBatch(None, metrics, next_state)
    # A fixed width: what runs outside jit on the whole batch is compiled once.
    batch = batching.from_groups(groups, width=rollout.max_new_tokens)
    batch, scores = with_logprobs(context, state, batch)
    rewards = rewards_of(groups, advantage, rollout.max_new_tokens).reshape(-1)
    step_rewards, ends = 0.0, None
    if context.credit is not None:
      steps = context.credit(state.policy, groups, step)
      rewards, step_rewards = credit.on_tokens(
        groups, batch.loss_mask, rewards, steps, credit_config
      )
      ends, metrics = steps.ends, metrics | steps.metrics
      step_numbers = reasoning_steps.step_indices(ends, batch.loss_mask.shape[1])
      batch = batch._replace(reasoning_steps=step_numbers)
    elif credit_config.level == 'response':
      ends = [[n - 1] for n in batch.completion_lengths]
    by_token, kl_metrics, next_state = token_rewards(batch, rewards, objective, next_state)
    values = context.values(state, batch)
    estimate = estimate_advantages(
      by_token + step_rewards,
      values,
      batch.loss_mask,
      ends,
      discount=config.discount,
      gae_lambda=config.gae_lambda,
    )
    advantages = estimate.advantages
    if config.whiten:
      advantages = whiten(advantages, batch.loss_mask)
    batch = batch._replace(
      advantages=np.asarray(advantages), old_values=values, returns=np.asarray(estimate.returns)
    )
    metrics |= kl_metrics | critic_metrics(batch)
    batch, next_state, entropy_metrics = with_exploration(context, step, batch, scores, next_state)
    return StepBatch(batch, metrics | entropy_metrics, next_state)

  policy_starts = context.first_step + config.warmup_steps
  return Algorithm(
    collect,
    functools.partial(
      loss, objective=objective, config=config, max_new_tokens=rollout.max_new_tokens
    ),
    temperature=rollout.temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
    trained_models=lambda step: ('policy', 'critic') if step >= policy_starts else ('critic',),
  )


def estimate_advantages(rewards, values, loss_mask, ends, **settings) -> AdvantageEstimate:
  """Returns gae(...) over tokens, or over transitions of several tokens each.

  Args:
    rewards, values, loss_mask: f32[B, T].
    ends: B lists, the last token of each transition; None: each token is one.
    settings: discount and gae_lambda.
  """
  if ends is None:
    return gae(rewards, values, loss_mask, **settings)
  first_values = reasoning_steps.first_values(values, ends, loss_mask)
  reward_sums = reasoning_steps.step_sums(rewards, ends, loss_mask)
  J = coarse_bucket(max(map(len, ends)))
  pad = lambda rows: np.array([np.pad(row, (0, J - len(row))) for row in rows], np.float32)
  transition_mask = pad([np.ones(len(row)) for row in ends])
  estimate = gae(pad(reward_sums), pad(first_values), transition_mask, **settings)
  to_tokens = lambda by_step: reasoning_steps.to_tokens(
    [row[: len(row_ends)] for row, row_ends in zip(np.asarray(by_step), ends)], ends, loss_mask
  )
  return AdvantageEstimate(to_tokens(estimate.advantages), to_tokens(estimate.returns))


def critic_metrics(batch) -> dict[str, float]:
  """Returns mean value, mean return, and the explained variance of the returns."""
  trained = batch.loss_mask > 0
  values, returns = batch.old_values[trained], batch.returns[trained]
  variance = float(returns.var())
  explained = 1 - float((returns - values).var()) / variance if variance else 0.0
  return {
    'critic/value_mean': float(values.mean()),
    'critic/return_mean': float(returns.mean()),
    'critic/explained_variance': explained,
  }


def loss(statistics, batch, *, objective, config: CriticConfig, max_new_tokens: int):
  """The policy objective plus vf_coef times the squared error of the values, clipped."""
  terms, metrics = policy_objective(
    statistics, batch, config=objective, max_new_tokens=max_new_tokens
  )
  errors, clipped = value_loss(
    statistics.values, batch.old_values, batch.returns, batch.loss_mask, clip=config.clip or None
  )
  terms['value'] = Term(config.vf_coef, over_tokens(errors, batch.loss_mask))
  metrics['critic/clip_ratio'] = over_tokens(clipped.astype(jnp.float32), batch.loss_mask)
  return terms, metrics
