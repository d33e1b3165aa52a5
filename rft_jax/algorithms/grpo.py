"""GRPO: several samples a prompt, each judged against its group; no critic.

Shao et al. 2024, https://arxiv.org/abs/2402.03300, with the token mean and the unequal clip
bounds of DAPO, https://arxiv.org/abs/2503.14476, and no KL term unless asked for.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.algorithms.base import Algorithm, Room
from rft_jax.data import order, packing
from rft_jax.objectives import kl, masked
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.off_policy import truncated_importance
from rft_jax.objectives.policy_losses import clipped_surrogate
from rft_jax.rollout import RolloutConfig
from rft_jax.update import Term

AGGREGATIONS = ('token_mean', 'sequence_mean', 'constant')


@dataclasses.dataclass(slots=True, kw_only=True)
class GrpoConfig:
  """The policy loss of GRPO."""
  clip_low: float = 0.2  # the ratio's gradient stops below 1 - clip_low
  clip_high: float = 0.28  # and above 1 + clip_high
  kl_coef: float = 0.0  # weight of KL(policy || reference) in the loss; 0: no reference pass
  kl_estimator: str = 'k3'  # k1, k2 or k3; see objectives/kl.py for what each one's gradient is
  # Each token's loss is weighted by what the trainer gives it over what the sampler gave it, at
  # most this (truncated importance sampling); the two differ by rounding, and more with
  # rollout.quantization. 0: no weights.
  importance_sampling_cap: float = 2.0
  # token_mean: every token of the step weighs the same; sequence_mean: every completion does;
  # constant: sum over tokens / (completions * max_new_tokens), Dr.GRPO's.
  aggregation: str = 'token_mean'

  def validate(self) -> list[str]:
    checks = (
        (0 <= self.clip_low <= 1, f'clip_low={self.clip_low}, need 0 to 1'),
        (self.clip_high >= 0, f'clip_high={self.clip_high}, need >= 0'),
        (self.kl_coef >= 0, f'kl_coef={self.kl_coef}, need >= 0'),
        (self.kl_estimator in kl.ESTIMATORS,
         f'kl_estimator={self.kl_estimator!r}, need one of {tuple(kl.ESTIMATORS)}'),
        (self.importance_sampling_cap >= 0,
         f'importance_sampling_cap={self.importance_sampling_cap}, need >= 0 (0: no weights)'),
        (self.aggregation in AGGREGATIONS,
         f'aggregation={self.aggregation!r}, need one of {AGGREGATIONS}'),
    )
    return [problem for good, problem in checks if not good]


SUPERVISED = False


def needs_reference(groups) -> bool:
  return groups['grpo'].kl_coef > 0


def make(room: Room) -> Algorithm:
  """Returns the GRPO Algorithm over room.examples, sampled by room.rollout."""
  config: GrpoConfig = room.groups['grpo']
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
      return None, seen
    rewards = np.array([[episode.grade.reward for episode in group] for group in graded])
    batch = packing.from_groups(graded, group_advantages(rewards, advantage))
    if config.kl_coef:
      batch = batch._replace(reference_logprobs=room.score(room.reference, batch))
    if updates_per_batch > 1:
      batch = batch._replace(old_logprobs=room.score(state.policy, batch))
    return batch, seen

  return Algorithm(
      collect, functools.partial(loss, config=config, max_new_tokens=rollout.max_new_tokens),
      temperature=rollout.temperature, updates_per_batch=updates_per_batch,
      zero_advantages_teach_nothing=not config.kl_coef)


def loss(statistics, batch, *, config: GrpoConfig, max_new_tokens: int):
  """The clipped surrogate plus kl_coef times the KL estimate, each over its own denominator."""
  logprobs = statistics.logprobs
  old = jax.lax.stop_gradient(logprobs) if batch.old_logprobs is None else batch.old_logprobs
  aggregate = {
      'token_mean': masked.over_tokens,
      'sequence_mean': masked.over_sequences,
      'constant': functools.partial(masked.over_constant, length=max_new_tokens),
  }[config.aggregation]
  over_tokens = lambda values: masked.over_tokens(values, batch.weights)

  surrogate, bound_low, bound_high = clipped_surrogate(
      logprobs, old, batch.advantages, clip_low=config.clip_low, clip_high=config.clip_high)
  if config.importance_sampling_cap and batch.sampler_logprobs is not None:
    surrogate *= truncated_importance(old, batch.sampler_logprobs,
                                      cap=config.importance_sampling_cap)
  terms = {'policy': Term(1.0, aggregate(surrogate, batch.weights))}
  metrics = {
      'clip_ratio/low_mean': over_tokens(bound_low.astype(jnp.float32)),
      'clip_ratio/high_mean': over_tokens(bound_high.astype(jnp.float32)),
      'clip_ratio/region_mean': over_tokens((bound_low | bound_high).astype(jnp.float32)),
  }
  if config.kl_coef:
    estimate = kl.ESTIMATORS[config.kl_estimator](logprobs, batch.reference_logprobs)
    terms['kl'] = Term(config.kl_coef, aggregate(estimate, batch.weights))
    metrics['kl'] = over_tokens(kl.k3(logprobs, batch.reference_logprobs))
  if batch.sampler_logprobs is not None:
    difference = old - batch.sampler_logprobs
    metrics['sampling/sampling_logp_difference/mean'] = over_tokens(jnp.abs(difference))
    metrics['sampling/importance_sampling_ratio/mean'] = over_tokens(
        jnp.exp(jnp.clip(difference, -kl.MAX_LOG_RATIO, kl.MAX_LOG_RATIO)))
  return terms, metrics
