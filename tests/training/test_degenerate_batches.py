"""Degenerate batches: extreme log-ratios and values, no trained tokens, G = 1, T = 1.

The parameters stay finite in all of them.
"""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from rft_jax import models, sharding
from rft_jax.algorithms import ppo
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER
from rft_jax.objectives.policy_objective import KL_ESTIMATORS, ObjectiveConfig, policy_objective
from rft_jax.training import update as updates
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, TrainState

DECODER = models.DecoderConfig(
  vocab_size=24, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=16, tied_head=True
)


def degenerate_batch(far, P=4, G=2, T=5, masked_groups=1):
  """Returns a batch whose log-probs and values are far from those of any model.

  Args:
    masked_groups: number of groups without trained tokens.
  """
  rng = np.random.default_rng(0)
  B = P * G
  lengths = np.resize([T, 1, max(T - 1, 1)], B).astype(np.int32)
  loss_mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
  loss_mask[: masked_groups * G] = 0
  far_values = lambda shift: (np.resize([far, 0, -far], (B, T)) + shift).astype(np.float32)
  return Batch(
    rng.integers(0, 24, (P, 3)).astype(np.int32),
    np.full(P, 3, np.int32),
    rng.integers(0, 24, (B, T)).astype(np.int32),
    lengths,
    np.repeat(np.arange(P), G).astype(np.int32),
    loss_mask,
    advantages=np.resize([1.0, -1, 0], (B, T)).astype(np.float32) * loss_mask,
    old_logprobs=far_values(-3.0),
    reference_logprobs=-far_values(2.0),
    sampler_logprobs=far_values(-2.0),
    reasoning_steps=np.minimum(np.arange(T) // 2 + np.zeros((B, 1)), 9).astype(np.int32),
    old_values=far_values(0.5),
    returns=-far_values(0.2),
  )


def two_updates(loss, batch, critic=None):
  """Returns (state after two updates by Adam, metrics of each)."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = TrainState(0, models.make(DECODER, seed=0), {}, critic)
  names = ('policy', 'critic') if critic else ('policy',)
  tx = dict.fromkeys(names, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)))
  state = state._replace(optimizer={name: tx[name].init(getattr(state, name)) for name in names})
  update = updates.make_update(loss, tx, config=UpdateConfig(), temperature=1.0, mesh=mesh)
  rows = []
  for _ in range(2):
    state, metrics = update(state, batch, names)
    rows.append(metrics)
  return state, rows


def assert_finite(state):
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.policy, state.critic)):
    assert np.isfinite(leaf).all(), sharding.name_of(path)


def objective(loss='clip', correction='none', estimator='k3'):
  level, aggregations = list(SUPPORTED[loss].items())[-1]
  config = ObjectiveConfig(
    policy_loss=PolicyLossConfig(loss=loss, ratio_level=level),
    aggregation=aggregations[0],
    correction=CorrectionConfig(correction=correction),
    kl_coef=0.1,
    kl_estimator=estimator,
  )
  assert not config.validate()
  return functools.partial(policy_objective, config=config, max_new_tokens=5)


# Every loss, correction and KL estimator at least once; their pairs have unit tests of their own.
CORRECTED = [loss for loss in SUPPORTED if loss not in ANCHORED_AT_SAMPLER]
CASES = [
  (loss, correction, estimator)
  for (loss, correction), estimator in zip(
    [
      *zip(itertools.cycle(CORRECTED), CORRECTIONS),
      *((loss, 'none') for loss in ANCHORED_AT_SAMPLER),
    ],
    itertools.cycle(KL_ESTIMATORS),
  )
]


@pytest.mark.full
@pytest.mark.parametrize('loss, correction, estimator', CASES)
def test_extreme_log_ratios_leave_finite_parameters(loss, correction, estimator):
  state, rows = two_updates(objective(loss, correction, estimator), degenerate_batch(1e4))
  assert_finite(state)
  assert all(np.isfinite(metrics['loss']) for metrics in rows)
  assert not any(metrics['skipped_nonfinite'] for metrics in rows)


@pytest.mark.full
@pytest.mark.parametrize('kind', ['separate', 'head'])
def test_extreme_values_leave_a_finite_critic(kind):
  critic = models.make_critic(models.make(DECODER, seed=0), kind)
  loss = functools.partial(
    ppo.loss, objective=ObjectiveConfig(), config=ppo.CriticConfig(), max_new_tokens=5
  )
  state, rows = two_updates(loss, degenerate_batch(1e4), critic)
  assert_finite(state)
  assert not any(metrics['skipped_nonfinite'] for metrics in rows)


@pytest.mark.full
@pytest.mark.parametrize('shape', [dict(P=1, G=1, T=1), dict(P=2, G=1), dict(T=1)])
@pytest.mark.parametrize('masked', ['none', 'all'])
def test_one_sample_one_token_or_no_trained_token_leave_finite_parameters(shape, masked):
  masked_groups = shape.get('P', 4) if masked == 'all' else 0
  batch = degenerate_batch(1e4, **shape, masked_groups=masked_groups)
  before = models.make(DECODER, seed=0)
  state, rows = two_updates(objective(), batch)
  assert_finite(state)
  assert all(np.isfinite(value) for metrics in rows for value in metrics.values())
  pairs = zip(jax.tree.leaves(before), jax.tree.leaves(state.policy))
  assert all((a == b).all() for a, b in pairs) == (masked == 'all')
