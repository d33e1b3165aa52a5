"""The objective of reinforcement learning stages: policy loss, KL term and entropy bonus.

(policy loss) x (ratio level) x (aggregation) x (correction for the sampler) x (weights of tokens),
each selected by name, plus a KL term and an entropy bonus. GRPO, DAPO, GSPO, CISPO, RLOO and PPO
differ in these settings and in how advantages are estimated.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rft_jax.objectives import importance_ratios, kl, masked
from rft_jax.objectives.entropy import EntropyConfig, kl_cov_penalty
from rft_jax.objectives.masked import Maximum, Term, Weighted
from rft_jax.objectives.off_policy import (
  CORRECTIONS,
  CorrectionConfig,
  mismatch_metrics,
  stale_sequence_mask,
)
from rft_jax.objectives.policy_loss_config import (
  PolicyLossConfig,
  couples_tokens,
  incompatibilities,
)
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER, LOSSES

KL_ESTIMATORS = (*kl.ESTIMATORS, 'scored_k3')  # the last takes the ratio of the token too


@dataclasses.dataclass(slots=True, kw_only=True)
class ObjectiveConfig:
  """What a reinforcement learning stage minimises: policy loss, its aggregation, KL, entropy."""

  policy_loss: PolicyLossConfig = dataclasses.field(default_factory=PolicyLossConfig)
  # Importance-sampling correction for a sampler that rounds differently from the trainer, more so
  # with rollout.quantization.
  correction: CorrectionConfig = dataclasses.field(default_factory=CorrectionConfig)
  # token_mean: every token of the step has the same weight; sequence_mean: every completion has;
  # sequence_sum: a completion counts by its length; prompt_mean: every prompt counts the same;
  # constant: sum over tokens / (completions * max_new_tokens), Dr.GRPO's.
  aggregation: str = 'token_mean'
  kl_coef: float = 0.0  # weight of KL(policy || reference); 0: no reference pass
  kl_place: str = 'loss'  # or 'reward': subtracted from each token's reward, see kl_penalty.py
  kl_estimator: str = 'k3'  # in the loss; see objectives/kl.py for the gradient of each
  # In the reward: adapt kl_coef so that the KL is this many nats per completion; 0: constant.
  kl_target: float = 0.0
  kl_horizon: int = 10000  # completions in which kl_coef may then change by a fifth
  reference_every: int = 0  # steps after which the policy becomes the reference; 0: never
  entropy: EntropyConfig = dataclasses.field(default_factory=EntropyConfig)  # exploration

  def validate(self) -> list[str]:
    nested = [
      f'{group}.{problem}'
      for group in ('policy_loss', 'correction', 'entropy')
      for problem in getattr(self, group).validate()
    ]
    policy_loss, correction = self.policy_loss, self.correction.correction
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
        f'kl_target={self.kl_target} adapts the coefficient of a KL in the reward: need '
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
        policy_loss.loss not in ANCHORED_AT_SAMPLER or correction == 'none',
        f'correction.correction={correction!r} with policy_loss.loss={policy_loss.loss!r}, need '
        'none: the ratio of this loss is over the sampler already',
      ),
    )
    problems = nested + [problem for good, problem in checks if not good]
    if problems:
      return problems
    problems = [
      f'policy_loss and aggregation: {problem}'
      for problem in incompatibilities(policy_loss.loss, policy_loss.ratio_level, self.aggregation)
    ]
    if self.entropy.leaves_out_tokens and couples_tokens(policy_loss.loss, policy_loss.ratio_level):
      problems.append(
        f'entropy.top_share={self.entropy.top_share}, entropy.covariance='
        f'{self.entropy.covariance!r} with policy_loss.loss={policy_loss.loss!r} and '
        f'policy_loss.ratio_level={policy_loss.ratio_level!r}: they leave out tokens, but '
        'with this loss the loss of a token has a gradient by all tokens of its completion; need a '
        "loss on ratios of tokens, or ratio_level='sequence_token'"
      )
    return problems

  @property
  def kl_in_reward(self) -> bool:
    """Returns whether the KL is subtracted from the rewards, before the advantages."""
    return self.kl_coef > 0 and self.kl_place == 'reward'

  @property
  def skip_zero_advantages(self) -> bool:
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
  loss_mask, policy_loss = batch.loss_mask, config.policy_loss
  masked_or_none = lambda values: None if values is None else masked.apply_mask(values, loss_mask)
  logprobs = masked_or_none(statistics.logprobs)
  sampler = masked_or_none(batch.sampler_logprobs)
  old = masked_or_none(batch.old_logprobs)
  old = jax.lax.stop_gradient(logprobs) if old is None else old
  sizes = masked.Sizes(length=max_new_tokens, group_tokens=batch.group_tokens)
  aggregate = lambda values: masked.AGGREGATIONS[config.aggregation](values, loss_mask, sizes)
  over_tokens = lambda values: masked.over_tokens(values, loss_mask)

  anchor = sampler if policy_loss.loss in ANCHORED_AT_SAMPLER and sampler is not None else old
  ratio = _ratio(policy_loss.ratio_level, logprobs, anchor, batch)
  token_losses, bounds = LOSSES[policy_loss.loss](
    logprobs, anchor, ratio, batch.advantages, loss_mask, config=policy_loss
  )
  if sampler is not None:
    token_losses *= CORRECTIONS[config.correction.correction](
      old - sampler, loss_mask, config.correction
    )
    if config.correction.stale_limit:
      near_mask = stale_sequence_mask(
        logprobs, sampler, batch.advantages, loss_mask, limit=config.correction.stale_limit
      )
      token_losses *= near_mask
  if batch.token_loss_weights is not None:
    token_losses *= masked_or_none(batch.token_loss_weights)
  terms = {'policy': Term(1.0, aggregate(token_losses))}
  metrics: dict[str, Weighted | Maximum] = {
    name: over_tokens(bound.astype(jnp.float32)) for name, bound in bounds.items()
  }
  if config.kl_coef:
    reference = masked_or_none(batch.reference_logprobs)
    metrics['kl'] = over_tokens(kl.k3(logprobs, reference))
    if not config.kl_in_reward:
      estimate = _kl_estimate(config.kl_estimator, logprobs, reference, old, loss_mask)
      terms['kl'] = Term(config.kl_coef, aggregate(estimate))
  if config.entropy.bonus:
    coefficient = config.entropy.coef if batch.entropy_coef is None else batch.entropy_coef[:, None]
    terms['entropy_bonus'] = Term(1.0, over_tokens(-coefficient * statistics.entropy))
  if batch.kl_cov_mask is not None:
    penalty = kl_cov_penalty(logprobs, old, loss_mask, batch.kl_cov_mask)
    terms['kl_cov'] = Term(config.entropy.kl_cov_coef, aggregate(penalty))
  if sampler is not None:
    metrics |= mismatch_metrics(old - sampler, loss_mask, old)
    if config.correction.stale_limit:
      metrics['sampling/stale_share'] = over_tokens(1 - near_mask)
  return terms, metrics


def _ratio(level, logprobs, old_logprobs, batch):
  if level == 'reasoning_step':
    return importance_ratios.reasoning_step(
      logprobs, old_logprobs, batch.loss_mask, batch.reasoning_steps
    )
  return importance_ratios.LEVELS[level](logprobs, old_logprobs, batch.loss_mask)


def _kl_estimate(estimator, logprobs, reference_logprobs, old_logprobs, loss_mask):
  if estimator == 'scored_k3':
    ratio = importance_ratios.token(logprobs, old_logprobs, loss_mask)
    return kl.scored_k3(logprobs, reference_logprobs, ratio)
  return kl.ESTIMATORS[estimator](logprobs, reference_logprobs)
