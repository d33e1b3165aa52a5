"""GRPO: the inputs of each advantage estimator, and runs with other losses and baselines."""

import numpy as np
import pytest
import tiny
from episodes import graded_episode
from workdirs import assert_same_runs

import rft_jax
from rft_jax.algorithms import grpo, rl_batch
from rft_jax.config import Stage
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.off_policy import CorrectionConfig
from rft_jax.objectives.policy_loss_config import PolicyLossConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.records import metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.training.optim import OptimConfig

# --- advantages -------------------------------------------------------------------------------


@pytest.mark.parametrize('estimator', ['group', 'rloo', 'gpg', 'maxrl', 'pass_at_k', 'best_of_n'])
def test_advantages_are_those_of_the_rewards(estimator):
  rewards = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
  groups = [[graded_episode(reward) for reward in row] for row in rewards]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(
    grpo.advantages(groups, rewards, config), group_advantages(rewards, config)
  )


@pytest.mark.parametrize('estimator', ['opo', 'reinforce_plus_plus'])
def test_lengths_are_those_of_the_samples(estimator):
  groups = [[graded_episode(0.0, tokens=[1] * 2), graded_episode(1.0, tokens=[1] * 6)]]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(
    grpo.advantages(groups, np.array([[0.0, 1.0]]), config),
    group_advantages([[0.0, 1.0]], config, lengths=[[2, 6]]),
  )


def test_gdpo_compares_each_grader_and_a_policy_fault_has_its_reward_in_all():
  groups = [
    [
      graded_episode(1.5, components={'right': 1.0, 'short': 0.5}),
      graded_episode(0.25, components={'right': 0.0, 'short': 0.25}),
      graded_episode(-1.0, errors={'sample_parse_error': True}),
      graded_episode(1.0, components={'right': 1.0, 'short': None}),
    ]
  ]
  config = AdvantageConfig(estimator='gdpo')
  nan = float('nan')
  expected = group_advantages(
    [[[1.0, 0.5], [0.0, 0.25], [-1.0, -1.0], [1.0, nan]]], config, component_weights=[1.0, 1.0]
  )
  advantages = grpo.advantages(groups, rl_batch.rewards_of(groups, config, 9), config)
  np.testing.assert_array_equal(advantages, expected)
  assert advantages[0, 2] < advantages[0, 1] < advantages[0, 0]


# --- runs -------------------------------------------------------------------------------------


def grpo_config(directory, steps):
  config = tiny.config(directory)
  config.stages = (Stage(algorithm='grpo', steps=steps, optim=OptimConfig(learning_rate=1e-2)),)
  config.evaluate.every = 0
  return config


@pytest.mark.full
def test_a_run_trains_with_losses_of_each_kind(tmp_path):
  config = grpo_config(tmp_path, steps=1)
  config.advantage.scale = 'none'
  for number, (policy_loss, aggregation, correction) in enumerate(
    [
      (PolicyLossConfig(loss='cispo'), 'prompt_mean', 'icepop'),
      (PolicyLossConfig(ratio_level='sequence'), 'sequence_mean', 'tis'),
      (PolicyLossConfig(loss='vespo', ratio_level='product'), 'constant', 'none'),
    ]
  ):
    config.objective = ObjectiveConfig(
      policy_loss=policy_loss,
      aggregation=aggregation,
      correction=CorrectionConfig(correction=correction),
    )
    rft_jax.train(config, tmp_path / str(number), quiet=True)
    (row,) = metrics.read(tmp_path / str(number) / 'metrics.jsonl')
    assert row['grad_norm'] > 0 and row['skipped_nonfinite'] == 0


@pytest.mark.full
@pytest.mark.parametrize('estimator', ['remax', 'reinforce'])
def test_a_run_with_a_baseline_continues_bit_for_bit(tmp_path, estimator):
  config = grpo_config(tmp_path, steps=4)
  config.checkpoints.every, config.advantage.estimator = 2, estimator
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert_same_runs(tmp_path / 'whole', tmp_path / 'parts', 4)
  rows = metrics.read(tmp_path / 'whole' / 'metrics.jsonl')
  assert all(row['grad_norm'] > 0 for row in rows)
  checkpoints = Checkpoints(tmp_path / 'whole' / 'checkpoints')
  algorithm_state = checkpoints.metadata('last')['algorithm_state']
  if estimator == 'remax':
    assert 0 <= rows[0]['greedy/reward'] <= 1
  else:
    expected = rows[0]['reward']
    for row in rows[1:]:
      expected = 0.9 * expected + 0.1 * row['reward']
    np.testing.assert_allclose(algorithm_state['baseline'], expected, rtol=1e-6)
