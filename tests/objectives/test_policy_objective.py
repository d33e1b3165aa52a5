"""The policy objective: sums over microbatches, entropy terms, and its settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.data import batching
from rft_jax.objectives import masked
from rft_jax.objectives.entropy import EntropyConfig
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.types import Batch

# --- microbatches -----------------------------------------------------------------------------


def random_batch():
  """Returns (log-probs, a batch of six groups of three), one row without trained tokens."""
  rng = np.random.default_rng(0)
  P, G, T = 6, 3, 5
  lengths = rng.integers(1, T + 1, P * G).astype(np.int32)
  loss_mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
  loss_mask[4] = 0
  noise = lambda scale: (scale * rng.normal(size=loss_mask.shape)).astype(np.float32)
  group = np.repeat(np.arange(P), G).astype(np.int32)
  old = noise(0.3) - 2
  sampler = old + noise(0.01)
  sampler[7] += 1.0  # one row is far off
  return noise(0.3) - 2, Batch(
    np.zeros((P, 2), np.int32),
    np.ones(P, np.int32),
    np.zeros((P * G, T), np.int32),
    lengths,
    group,
    loss_mask,
    advantages=noise(1.0),
    old_logprobs=old,
    reference_logprobs=noise(0.3) - 2,
    sampler_logprobs=sampler,
    group_tokens=masked.tokens_of_groups(loss_mask, group),
    reasoning_steps=np.tile(np.arange(T, dtype=np.int32) // 2, (P * G, 1)),
  )


def term_sums(config, logprobs, batch, gradient_of=None):
  """Returns the Weighted of each term, or the gradient of its total by the log-probs."""

  def sums(logprobs):
    statistics = TokenStatistics(logprobs, 0 * logprobs, logprobs > 0)
    terms, _ = policy_objective(statistics, batch, config=config, max_new_tokens=5)
    return {name: term.sum for name, term in terms.items()}

  if gradient_of:
    return jax.grad(lambda x: sums(x)[gradient_of].total)(logprobs)
  return sums(logprobs)


COMBINATIONS = [
  (loss, level, aggregation, 'none' if loss in ANCHORED_AT_SAMPLER else 'tis')
  for loss, levels in SUPPORTED.items()
  for level, aggregations in levels.items()
  for aggregation in aggregations
]
COMBINATIONS += [('clip', 'token', 'token_mean', correction) for correction in CORRECTIONS]


@pytest.mark.full
def test_sums_and_gradients_of_microbatches_add_up_to_those_of_the_batch():
  """For every supported combination of loss, ratio level and aggregation, and every correction."""
  logprobs, batch = random_batch()
  offenders = []
  for loss, level, aggregation, correction in COMBINATIONS:
    config = ObjectiveConfig(
      policy_loss=PolicyLossConfig(loss=loss, ratio_level=level),
      kl_coef=0.1,
      correction=CorrectionConfig(correction=correction),
      aggregation=aggregation,
    )
    assert not config.validate()
    whole = term_sums(config, logprobs, batch)
    gradient = term_sums(config, logprobs, batch, 'policy')
    added, parts = None, []
    for groups in ([0, 1, 2], [3, 4, 5]):
      rows = np.isin(batch.group, groups)
      part = batching.select(batch, np.array(groups))
      sums = term_sums(config, logprobs[rows], part)
      added = sums if added is None else jax.tree.map(np.add, added, sums)
      parts.append(term_sums(config, logprobs[rows], part, 'policy'))
    if not (
      np.isfinite(gradient).all()
      and np.abs(gradient).sum() > 0
      and all(np.allclose(added[name], whole[name], rtol=1e-5, atol=1e-6) for name in whole)
      and np.allclose(np.concatenate(parts), gradient, rtol=1e-5, atol=1e-7)
    ):
      offenders.append((loss, level, aggregation, correction))
  assert not offenders


# --- entropy terms ----------------------------------------------------------------------------


def entropy_batch(B=40, T=50):
  """Returns (a batch with advantages, log-probs, entropies), NaN on padding."""
  rng = np.random.default_rng(0)
  loss_mask = np.float32(np.arange(T) < rng.integers(1, T + 1, B)[:, None])
  on_tokens = lambda x: np.where(loss_mask > 0, x, np.nan).astype(np.float32)
  batch = Batch(
    None,
    np.ones(B // 4),
    np.zeros((B, T), np.int32),
    loss_mask.sum(1),
    np.arange(B) // 4,
    loss_mask,
    advantages=on_tokens(rng.normal(size=(B, T))),
  )
  logprobs = on_tokens(-rng.exponential(2, (B, T)))
  return batch, logprobs, on_tokens(rng.exponential(1, (B, T)))


def objective_terms(config, batch, logprobs, entropies):
  statistics = TokenStatistics(logprobs, entropies, logprobs > 0)
  return policy_objective(statistics, batch, config=config, max_new_tokens=50)


def objective_value(config, batch, logprobs, entropies):
  terms, _ = objective_terms(config, batch, logprobs, entropies)
  return sum(term.coefficient * term.sum.total / term.sum.weight for term in terms.values())


def test_the_entropy_bonus_is_the_coefficient_times_the_mean_entropy():
  batch, logprobs, entropies = entropy_batch()
  clean = jnp.nan_to_num(entropies)
  config = ObjectiveConfig(entropy=EntropyConfig(coef=0.03))
  value = functools.partial(objective_value, config, batch, logprobs)
  without_bonus = objective_value(ObjectiveConfig(), batch, logprobs, clean)
  np.testing.assert_allclose(
    value(entropies), without_bonus - 0.03 * np.nanmean(entropies), rtol=1e-5
  )
  gradient = jax.grad(value)(clean)
  np.testing.assert_allclose(gradient, -0.03 * batch.loss_mask / batch.loss_mask.sum(), rtol=1e-5)
  adaptive = ObjectiveConfig(entropy=EntropyConfig(target=1.0))
  with_coef = batch._replace(entropy_coef=np.full(len(batch.loss_mask), 0.03, np.float32))
  np.testing.assert_allclose(
    objective_value(adaptive, with_coef, logprobs, clean), value(clean), rtol=1e-6
  )


def test_kl_cov_tokens_have_a_penalty_and_masked_out_tokens_no_gradient():
  batch, logprobs, _ = entropy_batch(B=4, T=6)
  old = jnp.nan_to_num(logprobs)
  penalty_mask = np.zeros_like(batch.loss_mask)
  penalty_mask[0, 0] = 1
  batch = batch._replace(old_logprobs=old, kl_cov_mask=penalty_mask, advantages=0 * batch.loss_mask)
  config = ObjectiveConfig(entropy=EntropyConfig(covariance='kl_cov', kl_cov_coef=2.0))
  gradient = jax.grad(lambda x: objective_value(config, batch, x, 0 * old))(old + 0.25)
  expected = 2.0 * penalty_mask / batch.loss_mask.sum()
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)
  loss_weights = batch.loss_mask.copy()
  loss_weights[1] = 0
  masked_batch = batch._replace(
    kl_cov_mask=None, token_loss_weights=loss_weights, advantages=batch.loss_mask
  )
  gradient = jax.grad(lambda x: objective_value(ObjectiveConfig(), masked_batch, x, 0 * old))(old)
  np.testing.assert_allclose(gradient, -loss_weights / batch.loss_mask.sum(), rtol=1e-6)


def test_stale_samples_with_negative_advantages_have_no_gradient():
  sampler = np.full((3, 4), -1.0, np.float32)
  advantages = np.float32([[-1] * 4, [1] * 4, [-1] * 4])
  logprobs = jnp.float32(sampler - np.array([[0.9], [0.9], [0.1]]))
  batch = Batch(
    None,
    None,
    np.zeros((3, 4)),
    None,
    np.arange(3),
    np.ones_like(sampler),
    advantages=advantages,
    old_logprobs=sampler,
    sampler_logprobs=sampler,
  )
  limit = lambda value: ObjectiveConfig(correction=CorrectionConfig(stale_limit=value))
  gradient = lambda config: jax.grad(lambda x: objective_value(config, batch, x, 0 * x))(logprobs)
  unlimited, limited = gradient(limit(0.0)), gradient(limit(0.5))
  np.testing.assert_array_equal(limited[0], 0)
  np.testing.assert_array_equal(limited[1:], unlimited[1:])
  metrics = masked.means(objective_terms(limit(0.5), batch, logprobs, 0 * logprobs)[1])
  np.testing.assert_allclose(metrics['sampling/stale_share'], 1 / 3)
  without_limit = objective_terms(limit(0.0), batch, logprobs, 0 * logprobs)[1]
  assert 'sampling/stale_share' not in without_limit


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'config, message',
  [
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='gmpo'), aggregation='token_mean'), 'gmpo'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(ratio_level='sequence')), 'once per token'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='dppo_tv')), 'over the sampler already'),
    (ObjectiveConfig(policy_loss=PolicyLossConfig(loss='ppo')), "policy_loss.loss='ppo'"),
    (ObjectiveConfig(correction=CorrectionConfig(cap=0)), 'correction.cap=0'),
    (ObjectiveConfig(aggregation='mean', kl_estimator='k4'), "kl_estimator='k4'"),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(config, message):
  assert any(message in problem for problem in config.validate())


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'coef': 0.1, 'target': 0.2}, 'the coefficient is adapted'),
    ({'coef': -0.1}, 'punishes exploring'),
    ({'top_share': 0.0}, 'top_share=0.0'),
    ({'top_share': 1.2}, 'top_share=1.2'),
    ({'covariance': 'cov'}, "covariance='cov'"),
    ({'target': -1.0}, 'target=-1.0'),
    ({'clip_cov_low': 6.0}, 'low < high'),
    ({'kl_cov_share': 0.0}, 'kl_cov_share=0.0'),
    ({'kl_cov_coef': 0.0}, 'kl_cov_coef=0.0'),
    ({'target_step': 0.0}, 'target_step=0.0'),
  ],
)
def test_invalid_entropy_settings_are_refused_with_the_reason(changes, message):
  (problem,) = ObjectiveConfig(entropy=EntropyConfig(**changes)).validate()
  assert problem.startswith('entropy.') and message in problem


@pytest.mark.parametrize(
  'loss, level',
  [('clip', 'sequence'), ('gmpo', 'token'), ('luspo', 'sequence'), ('clip', 'product')],
)
def test_leaving_out_tokens_needs_a_loss_on_ratios_of_tokens(loss, level):
  aggregation = 'sequence_sum' if loss == 'luspo' else 'sequence_mean'
  make = lambda changes: ObjectiveConfig(
    policy_loss=PolicyLossConfig(loss=loss, ratio_level=level),
    aggregation=aggregation,
    entropy=EntropyConfig(**changes),
  )
  (problem,) = make({'top_share': 0.2}).validate()
  assert 'has a gradient by all tokens of its completion' in problem
  assert not make({'covariance': 'kl_cov'}).validate()


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({}, True),
    ({'kl_coef': 0.1}, False),
    ({'entropy': EntropyConfig(coef=0.1)}, False),
    ({'entropy': EntropyConfig(target=0.1)}, False),
    ({'entropy': EntropyConfig(covariance='kl_cov')}, False),
    ({'entropy': EntropyConfig(covariance='clip_cov', top_share=0.5)}, True),
  ],
)
def test_zero_advantages_are_skipped_only_where_no_other_term_reads_them(changes, expected):
  assert ObjectiveConfig(**changes).skip_zero_advantages == expected
