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
from rft_jax.objectives.advantages import NEEDS, AdvantageConfig, group_advantages
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig
from rft_jax.objectives.policy_choices import PolicyLossConfig, refusals
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER, LOSSES
from rft_jax.objectives.ratios import LEVELS
from rft_jax.rollout import RolloutConfig
from rft_jax.types import Episode
from rft_jax.update import Term


@dataclasses.dataclass(slots=True, kw_only=True)
class GrpoConfig:
  """The loss of GRPO and its relatives: which policy loss, how it is aggregated, and a KL term."""
  policy_loss: PolicyLossConfig = dataclasses.field(default_factory=PolicyLossConfig)
  # What makes up for a sampler that rounds otherwise than the trainer; more with
  # rollout.quantization.
  correction: CorrectionConfig = dataclasses.field(default_factory=CorrectionConfig)
  kl_coef: float = 0.0  # weight of KL(policy || reference) in the loss; 0: no reference pass
  kl_estimator: str = 'k3'  # see objectives/kl.py for what each one's gradient is
  # token_mean: every token of the step weighs the same; sequence_mean: every completion does;
  # sequence_sum: a completion weighs by its length; prompt_mean: every prompt weighs the same;
  # constant: sum over tokens / (completions * max_new_tokens), Dr.GRPO's.
  aggregation: str = 'token_mean'

  def validate(self) -> list[str]:
    nested = [f'{group}.{problem}' for group in ('policy_loss', 'correction')
              for problem in getattr(self, group).validate()]
    chosen, correction = self.policy_loss, self.correction.correction
    checks = (
        (self.kl_coef >= 0, f'kl_coef={self.kl_coef}, need >= 0'),
        (self.kl_estimator in kl.ESTIMATORS,
         f'kl_estimator={self.kl_estimator!r}, need one of {tuple(kl.ESTIMATORS)}'),
        (self.aggregation in masked.AGGREGATIONS,
         f'aggregation={self.aggregation!r}, need one of {tuple(masked.AGGREGATIONS)}'),
        (chosen.loss not in ANCHORED_AT_SAMPLER or correction == 'none',
         f'correction.correction={correction!r} with policy_loss.loss={chosen.loss!r}, need none: '
         'its ratio is over the sampler already'),
    )
    found = nested + [problem for good, problem in checks if not good]
    if found:
      return found
    return [f'policy_loss and aggregation: {problem}' for problem in refusals(
        chosen.loss, chosen.ratio_level, self.aggregation)]


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
    batch = packing.from_groups(graded, advantages(graded, advantage))
    if config.kl_coef:
      batch = batch._replace(reference_logprobs=room.score(room.reference, batch))
    if config.aggregation == 'prompt_mean':
      batch = batch._replace(group_tokens=masked.tokens_of_groups(batch.weights, batch.group))
    if updates_per_batch > 1:
      batch = batch._replace(old_logprobs=room.score(state.policy, batch))
    return batch, seen

  return Algorithm(
      collect, functools.partial(loss, config=config, max_new_tokens=rollout.max_new_tokens),
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


def loss(statistics, batch, *, config: GrpoConfig, max_new_tokens: int):
  """The policy loss, corrected for the sampler, plus kl_coef times the KL estimate.

  Each is aggregated over its own denominator.
  """
  weights, chosen = batch.weights, config.policy_loss
  only = lambda values: None if values is None else masked.only(values, weights)
  logprobs, sampler = only(statistics.logprobs), only(batch.sampler_logprobs)
  old = only(batch.old_logprobs)
  old = jax.lax.stop_gradient(logprobs) if old is None else old
  sizes = masked.Sizes(length=max_new_tokens, group_tokens=batch.group_tokens)
  aggregate = lambda values: masked.AGGREGATIONS[config.aggregation](values, weights, sizes)
  over_tokens = lambda values: masked.over_tokens(values, weights)

  anchor = sampler if chosen.loss in ANCHORED_AT_SAMPLER and sampler is not None else old
  ratio = LEVELS[chosen.ratio_level](logprobs, anchor, weights)
  surrogate, bounds = LOSSES[chosen.loss](logprobs, anchor, ratio, batch.advantages, weights,
                                          config=chosen)
  if sampler is not None:
    surrogate *= CORRECTIONS[config.correction.correction](old - sampler, weights,
                                                           config.correction)
  terms = {'policy': Term(1.0, aggregate(surrogate))}
  metrics = {name: over_tokens(bound.astype(jnp.float32)) for name, bound in bounds.items()}
  if config.kl_coef:
    reference = only(batch.reference_logprobs)
    estimate = kl.ESTIMATORS[config.kl_estimator](logprobs, reference)
    terms['kl'] = Term(config.kl_coef, aggregate(estimate))
    metrics['kl'] = over_tokens(kl.k3(logprobs, reference))
  if sampler is not None:
    difference = old - sampler
    metrics['sampling/sampling_logp_difference/mean'] = over_tokens(jnp.abs(difference))
    metrics['sampling/importance_sampling_ratio/mean'] = over_tokens(kl.clamped_exp(difference))
  return terms, metrics
