"""PPO: every token judged by a critic, which learns beside the policy what is to be expected.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, on completions as in Ouyang et al. 2022,
https://arxiv.org/abs/2203.02155: the grade on the last token, the KL where objective.kl_place says,
generalised advantage estimates, whitened over the batch.

A state transition is a token; with credit.level='reasoning_step' it is a step of the reasoning, and with
'response' the whole answer. Transitions of several tokens have one value, that of the state in
which they begin, one advantage and one return, which all their tokens have.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.algorithms.rl_batch import (
  explore,
  gather,
  rewards_of,
  token_rewards,
  with_kl,
  with_logprobs,
)
from rft_jax.bucketing import few
from rft_jax.data import batching
from rft_jax.models import CRITIC_KINDS
from rft_jax.objectives import reasoning_steps
from rft_jax.objectives.gae import AdvantageEstimate, gae, value_loss, whiten
from rft_jax.objectives.masked import Term, over_tokens
from rft_jax.objectives.policy_objective import policy_objective
from rft_jax.rollout import credit
from rft_jax.training.optim import OptimConfig


@dataclasses.dataclass(slots=True, kw_only=True)
class CriticConfig:
  """The critic of PPO: what it is, how it learns, and how its values become advantages."""

  # separate: a decoder of its own, which starts as source; head: a linear map of the policy's
  # hidden states, a thousandth of the memory, whose loss moves the policy too.
  kind: str = 'separate'
  # A reward model of the policy's vocabulary, as HF directory or hub id, from which the critic
  # starts: its own shape, its own head. '': the policy, with a head of 0.
  source: str = ''
  optim: OptimConfig = dataclasses.field(default_factory=lambda: OptimConfig(learning_rate=1e-5))
  vf_coef: float = 0.5  # weight of its loss; matters to head, Adam makes up for it in separate
  clip: float = 0.2  # how far a value may move in an update; 0: as far as it likes
  warmup_steps: int = 0  # first steps of the stage in which the critic learns alone
  discount: float = 1.0
  gae_lambda: float = 0.95  # 1: the return less the value; 0: the next value less this one
  whiten: bool = True  # advantages to mean 0 and std 1 over the tokens of the step

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


REQUIREMENTS = Requirements(
  'prompts',
  reference=with_kl,
  critic=lambda groups: groups['critic'].kind,
  critic_optim=lambda groups, of_stage: groups['critic'].optim,
)


def make(context: StageContext) -> Algorithm:
  """Returns the PPO Algorithm over room.examples, sampled by room.rollout."""
  objective, config = context.groups['objective'], context.groups['critic']
  rollout, advantage = context.groups['rollout'], context.groups['advantage']
  by = context.groups['credit']

  def collect(state, step):
    groups, metrics, algorithm_state = gather(context, state, step)
    if not groups:
      return Collected(None, metrics, algorithm_state)
    # Of one width in all steps: what is worked out on the whole batch is then compiled once.
    batch = batching.from_groups(groups, width=rollout.max_new_tokens)
    batch, scored = with_logprobs(context, state, batch)
    rewards = rewards_of(groups, advantage, rollout.max_new_tokens).reshape(-1)
    of_steps, ends = 0.0, None
    if context.credit is not None:
      given = context.credit(state.policy, groups, step)
      rewards, of_steps = credit.on_tokens(groups, batch.loss_mask, rewards, given, by)
      ends, metrics = given.ends, metrics | given.metrics
      batch = batch._replace(reasoning_steps=reasoning_steps.numbers(ends, batch.loss_mask.shape[1]))
    elif by.level == 'response':
      ends = [[n - 1] for n in batch.completion_lengths]
    on_tokens, seen, algorithm_state = token_rewards(batch, rewards, objective, algorithm_state)
    values = context.values(state, batch)
    found = estimated(
      on_tokens + of_steps,
      values,
      batch.loss_mask,
      ends,
      discount=config.discount,
      gae_lambda=config.gae_lambda,
    )
    advantages = whiten(found.advantages, batch.loss_mask) if config.whiten else found.advantages
    batch = batch._replace(
      advantages=np.asarray(advantages), old_values=values, returns=np.asarray(found.returns)
    )
    metrics |= seen | told(batch)
    batch, algorithm_state, seen = explore(context, step, batch, scored, algorithm_state)
    return Collected(batch, metrics | seen, algorithm_state)

  warm = context.first_step + config.warmup_steps
  return Algorithm(
    collect,
    functools.partial(
      loss, objective=objective, config=config, max_new_tokens=rollout.max_new_tokens
    ),
    temperature=rollout.temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
    trains=lambda step: ('policy', 'critic') if step >= warm else ('critic',),
  )


def estimated(rewards, values, weights, ends, **settings) -> AdvantageEstimate:
  """Returns gae(...) over tokens, or over transitions of several tokens each.

  Args:
    rewards, values, weights: f32[B, T].
    ends: B lists, the last token of each transition; None: each token is one.
    settings: discount and gae_lambda.
  """
  if ends is None:
    return gae(rewards, values, weights, **settings)
  firsts, sums = (
    reasoning_steps.first_values(values, ends, weights),
    reasoning_steps.sums(rewards, ends, weights),
  )
  J = few(max(map(len, ends)))
  wide = lambda rows: np.array([np.pad(row, (0, J - len(row))) for row in rows], np.float32)
  there = wide([np.ones(len(row)) for row in ends])
  found = gae(wide(sums), wide(firsts), there, **settings)
  spread = lambda of_steps: reasoning_steps.to_tokens(
    [row[: len(places)] for row, places in zip(np.asarray(of_steps), ends)], ends, weights
  )
  return AdvantageEstimate(spread(found.advantages), spread(found.returns))


def told(batch) -> dict[str, float]:
  """Returns what people look at: the values, the returns, and how much of these the critic knew."""
  here = batch.loss_mask > 0
  values, returns = batch.old_values[here], batch.returns[here]
  spread = float(returns.var())
  explained = 1 - float((returns - values).var()) / spread if spread else 0.0
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
