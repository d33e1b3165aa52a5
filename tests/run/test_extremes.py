"""What no run should meet, and some do: far log-ratios, nothing to learn from, G = 1, T = 1.

Whatever comes in, the parameters that come out are finite.
"""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
import tiny
from safetensors.numpy import load_file

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import ppo
from rft_jax.config import Stage
from rft_jax.objectives.off_policy import CORRECTIONS, CorrectionConfig
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig
from rft_jax.objectives.policy_losses import ANCHORED_AT_SAMPLER
from rft_jax.objectives.policy_objective import KL_ESTIMATORS, ObjectiveConfig, policy_objective
from rft_jax.records import metrics as metrics_file
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, TrainState

DECODER = models.DecoderConfig(
  vocab_size=24, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=16, tied_head=True
)


def _batch(far, P=4, G=2, T=5, masked=1):
  """A batch whose log-probs are far from any policy's; its first groups have no token that counts."""
  rng = np.random.default_rng(0)
  B = P * G
  lengths = np.resize([T, 1, max(T - 1, 1)], B).astype(np.int32)
  weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
  weights[: masked * G] = 0
  off = lambda shift: (np.resize([far, 0, -far], (B, T)) + shift).astype(np.float32)
  return Batch(
    rng.integers(0, 24, (P, 3)).astype(np.int32),
    np.full(P, 3, np.int32),
    rng.integers(0, 24, (B, T)).astype(np.int32),
    lengths,
    np.repeat(np.arange(P), G).astype(np.int32),
    weights,
    advantages=np.resize([1.0, -1, 0], (B, T)).astype(np.float32) * weights,
    old_logprobs=off(-3.0),
    reference_logprobs=-off(2.0),
    sampler_logprobs=off(-2.0),
    steps=np.minimum(np.arange(T) // 2 + np.zeros((B, 1)), 9).astype(np.int32),
    old_values=off(0.5),
    returns=-off(0.2),
  )


def _trained(loss, batch, critic=None):
  """Returns (state, metrics of each of two updates) of a policy that Adam takes through them."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  state = TrainState(0, models.make(DECODER, seed=0), {}, critic)
  names = ('policy', 'critic') if critic else ('policy',)
  tx = dict.fromkeys(names, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)))
  state = state._replace(optimizer={name: tx[name].init(getattr(state, name)) for name in names})
  update = updates.make_update(loss, tx, config=UpdateConfig(), temperature=1.0, mesh=mesh)
  found = []
  for _ in range(2):
    state, metrics = update(state, batch, names)
    found.append(metrics)
  return state, found


def _assert_finite(state):
  for path, leaf in jax.tree_util.tree_leaves_with_path((state.policy, state.critic)):
    assert np.isfinite(leaf).all(), sharding.name_of(path)


def _loss(loss='clip', correction='none', estimator='k3'):
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


# Every loss, every correction, every KL, each at least once: in all pairs they are tested by
# themselves.
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


@pytest.mark.parametrize('loss, correction, estimator', CASES)
def test_far_log_ratios_leave_finite_parameters(loss, correction, estimator):
  state, found = _trained(_loss(loss, correction, estimator), _batch(1e4))
  _assert_finite(state)
  assert all(np.isfinite(metrics['loss']) for metrics in found)
  assert not any(metrics['skipped_nonfinite'] for metrics in found)


@pytest.mark.parametrize('kind', ['separate', 'head'])
def test_far_values_leave_a_finite_critic(kind):
  critic = models.make_critic(models.make(DECODER, seed=0), kind)
  loss = functools.partial(
    ppo.loss, objective=ObjectiveConfig(), config=ppo.CriticConfig(), max_new_tokens=5
  )
  state, found = _trained(loss, _batch(1e4), critic)
  _assert_finite(state)
  assert not any(metrics['skipped_nonfinite'] for metrics in found)


@pytest.mark.parametrize('shape', [dict(P=1, G=1, T=1), dict(P=2, G=1), dict(T=1)])
@pytest.mark.parametrize('masked', ['none', 'all'])
def test_one_sample_one_token_and_nothing_at_all(shape, masked):
  batch = _batch(1e4, **shape, masked=shape.get('P', 4) if masked == 'all' else 0)
  before = models.make(DECODER, seed=0)
  state, found = _trained(_loss(), batch)
  _assert_finite(state)
  assert all(np.isfinite(value) for metrics in found for value in metrics.values())
  same = all((a == b).all() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.policy)))
  assert same == (masked == 'all')


CHARACTERS = {
  'type': 'python',
  'name': 'characters',
  'source': 'def grade(sample, item):\n  return sum(map(ord, sample["output_text"])) % 5 / 4\n',
}


def _run(tmp_path, algorithm, learning_rate, **rollout):
  config = tiny.config(tmp_path, grader=CHARACTERS)
  config.stages = (
    Stage(algorithm=algorithm, steps=3, optim=OptimConfig(learning_rate=learning_rate)),
  )
  config.critic.optim.learning_rate = learning_rate
  config.update.updates_per_batch = 2
  config.evaluate.every = 0
  for name, value in rollout.items():
    setattr(config.rollout, name, value)
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  weights = load_file(tmp_path / 'run' / 'export' / 'model.safetensors')
  for name, value in weights.items():
    assert np.isfinite(value).all(), name
  return metrics_file.read(tmp_path / 'run' / 'metrics.jsonl')


def test_a_run_of_one_sample_of_one_token(tmp_path):
  rows = _run(tmp_path, 'ppo', 1e-2, samples_per_prompt=1, max_new_tokens=1)
  assert all(row['completions/max_length'] == 1 and row['grad_norm'] > 0 for row in rows)


@pytest.mark.parametrize('learning_rate', [1e4, 1e30])
def test_a_learning_rate_beyond_reason(tmp_path, learning_rate):
  rows = _run(tmp_path, 'grpo', learning_rate)
  assert bool(sum(row['skipped_nonfinite'] for row in rows)) == (learning_rate == 1e30)
