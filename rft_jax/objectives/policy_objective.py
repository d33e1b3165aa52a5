"""The loss of reinforced stages, put together by name from the pure functions of this folder.

(policy loss) x (ratio level) x (aggregation) x (correction for the sampler) x (weights of tokens),
plus a KL term and an entropy bonus. GRPO, DAPO, GSPO, CISPO, RLOO and PPO differ in what a config
says here and in whose advantages they are.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rft_jax.objectives import importance_ratios, kl, masked
from rft_jax.objectives.entropy import EntropyConfig, kl_cov_penalty
from rft_jax.objectives.masked import Term
from rft_jax.objectives.off_policy import (
  CORRECTIONS,
  CorrectionConfig,
  mismatch_metrics,
  stale_sequence_mask,
)
from rft_jax.objectives.policy_loss_config import (
  PolicyLossConfig,
  incompatibilities,
  spread_gradient,
)
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER, LOSSES

KL_ESTIMATORS = (*kl.ESTIMATORS, 'scored_k3')  # the last reads the ratio of the token too


@dataclasses.dataclass(slots=True, kw_only=True)
class ObjectiveConfig:
  """What a reinforced stage minimises: a policy loss, how it is aggregated, KL, and entropy."""

  policy_loss: PolicyLossConfig = dataclasses.field(default_factory=PolicyLossConfig)
  # What makes up for a sampler that rounds otherwise than the trainer; more with
  # rollout.quantization.
  correction: CorrectionConfig = dataclasses.field(default_factory=CorrectionConfig)
  # token_mean: every token of the step weighs the same; sequence_mean: every completion does;
  # sequence_sum: a completion weighs by its length; prompt_mean: every prompt weighs the same;
  # constant: sum over tokens / (completions * max_new_tokens), Dr.GRPO's.
  aggregation: str = 'token_mean'
  kl_coef: float = 0.0  # weight of KL(policy || reference); 0: no reference pass
  kl_place: str = 'loss'  # or 'reward': each token pays for its log-ratio before the advantages
  kl_estimator: str = 'k3'  # in the loss; see objectives/kl.py for what each one's gradient is
  kl_target: float = 0.0  # in the reward: kl_coef follows the KL to so many nats a completion
  kl_horizon: int = 10000  # completions in which kl_coef may then change by a fifth
  reference_every: int = 0  # steps after which the policy becomes the reference; 0: never
  entropy: EntropyConfig = dataclasses.field(default_factory=EntropyConfig)  # exploration

  def validate(self) -> list[str]:
    nested = [
      f'{group}.{problem}'
      for group in ('policy_loss', 'correction', 'entropy')
      for problem in getattr(self, group).validate()
    ]
    chosen, correction = self.policy_loss, self.correction.correction
    checks = (
      (self.kl_coef >= 0, f'kl_coef={self.kl_coef}, need >= 0'),
      (
        self.kl_estimator in KL_ESTIMATORS,
        f'kl_estimator={self.kl_estimator!r}, need one of {KL_ESTIMATORS}',
      ),
      (self.kl_place in ('loss', 'reward'), f"kl_place={self.kl_place!r}, need 'loss' or 'reward'"),
      (self.kl_target >= 0, f'kl_target={self.kl_target}, need >= 0 (0: kl_coef stays)'),
      (
        not self.kl_target or (self.kl_place == 'reward' and self.kl_coef > 0),
        f'kl_target={self.kl_target} moves the coefficient of a KL in the reward: need '
        "kl_place='reward' and kl_coef > 0",
      ),
      (self.reference_every >= 0, f'reference_every={self.reference_every}, need >= 0'),
      (
        not self.reference_every or self.kl_coef > 0,
        f'reference_every={self.reference_every} with kl_coef=0: there is no reference to renew',
      ),
      (
        self.aggregation in masked.AGGREGATIONS,
        f'aggregation={self.aggregation!r}, need one of {tuple(masked.AGGREGATIONS)}',
      ),
      (
        chosen.loss not in ANCHORED_AT_SAMPLER or correction == 'none',
        f'correction.correction={correction!r} with policy_loss.loss={chosen.loss!r}, need none: '
        'its ratio is over the sampler already',
      ),
    )
    found = nested + [problem for good, problem in checks if not good]
    if found:
      return found
    found = [
      f'policy_loss and aggregation: {problem}'
      for problem in incompatibilities(chosen.loss, chosen.ratio_level, self.aggregation)
    ]
    if self.entropy.leaves_out_tokens and spread_gradient(chosen.loss, chosen.ratio_level):
      found.append(
        f'entropy.top_share={self.entropy.top_share}, entropy.covariance='
        f'{self.entropy.covariance!r} with policy_loss.loss={chosen.loss!r} and '
        f'policy_loss.ratio_level={chosen.ratio_level!r}: they leave out tokens, and '
        'there the loss of every token moves all tokens of its answer; need a loss on '
        "ratios of tokens, or ratio_level='sequence_token'"
      )
    return found

  @property
  def kl_in_reward(self) -> bool:
    """Returns whether every token pays for its KL before the advantages."""
    return self.kl_coef > 0 and self.kl_place == 'reward'

  @property
  def zero_advantages_teach_nothing(self) -> bool:
    """Returns whether groups of which all advantages are 0 have no gradient from any term."""
    entropy = self.entropy
    kl_in_loss = self.kl_coef > 0 and not self.kl_in_reward
    return not (kl_in_loss or entropy.bonus or entropy.covariance == 'kl_cov')


def policy_objective(statistics, batch, *, config: ObjectiveConfig, max_new_tokens: int):
  """Returns (terms, metrics): the policy loss, corrected for the sampler, KL, and entropy.

  Each is aggregated over its own denominator.

  Args:
    statistics: TokenStatistics of the policy being trained.
    batch: a Batch with advantages; old_logprobs None means those of `statistics`.
    max_new_tokens: the divisor of the aggregation 'constant'.
  """
  weights, chosen = batch.loss_mask, config.policy_loss
  only = lambda values: None if values is None else masked.only(values, weights)
  logprobs, sampler = only(statistics.logprobs), only(batch.sampler_logprobs)
  old = only(batch.old_logprobs)
  old = jax.lax.stop_gradient(logprobs) if old is None else old
  sizes = masked.Sizes(length=max_new_tokens, group_tokens=batch.group_tokens)
  aggregate = lambda values: masked.AGGREGATIONS[config.aggregation](values, weights, sizes)
  over_tokens = lambda values: masked.over_tokens(values, weights)

  anchor = sampler if chosen.loss in ANCHORED_AT_SAMPLER and sampler is not None else old
  if chosen.ratio_level == 'reasoning_step':
    ratio = importance_ratios.step(logprobs, anchor, weights, batch.reasoning_steps)
  else:
    ratio = importance_ratios.LEVELS[chosen.ratio_level](logprobs, anchor, weights)
  surrogate, bounds = LOSSES[chosen.loss](
    logprobs, anchor, ratio, batch.advantages, weights, config=chosen
  )
  if sampler is not None:
    surrogate *= CORRECTIONS[config.correction.correction](
      old - sampler, weights, config.correction
    )
    if config.correction.stale_limit:
      near = stale_sequence_mask(
        logprobs, sampler, batch.advantages, weights, limit=config.correction.stale_limit
      )
      surrogate *= near
  if batch.token_loss_weights is not None:
    surrogate *= only(batch.token_loss_weights)
  terms = {'policy': Term(1.0, aggregate(surrogate))}
  metrics = {name: over_tokens(bound.astype(jnp.float32)) for name, bound in bounds.items()}
  if config.kl_coef:
    reference = only(batch.reference_logprobs)
    metrics['kl'] = over_tokens(kl.k3(logprobs, reference))
    if not config.kl_in_reward:
      if config.kl_estimator == 'scored_k3':
        estimate = kl.scored_k3(
          logprobs, reference, importance_ratios.token(logprobs, old, weights)
        )
      else:
        estimate = kl.ESTIMATORS[config.kl_estimator](logprobs, reference)
      terms['kl'] = Term(config.kl_coef, aggregate(estimate))
  if config.entropy.bonus:
    coefficient = config.entropy.coef if batch.entropy_coef is None else batch.entropy_coef[:, None]
    terms['entropy_bonus'] = Term(1.0, over_tokens(-coefficient * statistics.entropy))
  if batch.kl_cov_mask is not None:
    terms['kl_cov'] = Term(
      config.entropy.kl_cov_coef, aggregate(kl_cov_penalty(logprobs, old, weights, batch.kl_cov_mask))
    )
  if sampler is not None:
    metrics |= mismatch_metrics(old - sampler, weights, old)
    if config.correction.stale_limit:
      metrics['sampling/stale_share'] = over_tokens(1 - near)
  return terms, metrics
