"""What algorithms with rollouts share: dynamic sampling."""

import pytest
import tiny
from workdirs import assert_same_runs

import rft_jax
from rft_jax.config import Stage
from rft_jax.records import metrics
from rft_jax.training.optim import OptimConfig


@pytest.mark.full
def test_dynamic_sampling_replaces_zero_variance_groups_up_to_its_bound(tmp_path):
  config = tiny.config(tmp_path)
  config.stages = (Stage(algorithm='grpo', steps=3, optim=OptimConfig(learning_rate=1e-2)),)
  config.evaluate.every, config.checkpoints.every = 0, 2
  config.rollout.dynamic_sampling_rounds, config.rollout.samples_per_prompt = 2, 2
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert_same_runs(tmp_path / 'whole', tmp_path / 'parts', 3)
  P = config.rollout.prompts_per_step
  rows = metrics.read(tmp_path / 'whole' / 'metrics.jsonl')
  for row in rows:
    prompts, used = row['dynamic_sampling/prompts'], row['dynamic_sampling/used']
    assert prompts in (P, 2 * P, 3 * P) and used <= P
    assert used == P or prompts == 3 * P
    assert round((1 - row['frac_reward_zero_std']) * prompts) >= used
  assert max(row['dynamic_sampling/prompts'] for row in rows) > P
