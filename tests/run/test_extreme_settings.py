"""Runs at the limits of their settings: one sample of one token, a far too high learning rate."""

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

import rft_jax
from rft_jax.config import Stage
from rft_jax.records import metrics
from rft_jax.training.optim import OptimConfig

CHARACTERS = {
  'type': 'python',
  'name': 'characters',
  'source': 'def grade(sample, item):\n  return sum(map(ord, sample["output_text"])) % 5 / 4\n',
}


def train(directory, algorithm, learning_rate, **rollout):
  """Returns the metrics of a run of three steps, after a check that its export is finite."""
  config = tiny.config(directory, grader=CHARACTERS)
  config.stages = (
    Stage(algorithm=algorithm, steps=3, optim=OptimConfig(learning_rate=learning_rate)),
  )
  config.critic.optim.learning_rate = learning_rate
  config.update.updates_per_batch = 2
  config.evaluate.every = 0
  for name, value in rollout.items():
    setattr(config.rollout, name, value)
  rft_jax.train(config, directory / 'run', quiet=True)
  weights = load_file(directory / 'run' / 'export' / 'model.safetensors')
  assert not [name for name, values in weights.items() if not np.isfinite(values).all()]
  return metrics.read(directory / 'run' / 'metrics.jsonl')


@pytest.mark.full
def test_one_sample_of_one_token(tmp_path):
  rows = train(tmp_path, 'ppo', 1e-2, samples_per_prompt=1, max_new_tokens=1)
  assert all(row['completions/max_length'] == 1 and row['grad_norm'] > 0 for row in rows)


@pytest.mark.full
@pytest.mark.parametrize('learning_rate', [1e4, 1e30])
def test_a_far_too_high_learning_rate(tmp_path, learning_rate):
  rows = train(tmp_path, 'grpo', learning_rate)
  assert bool(sum(row['skipped_nonfinite'] for row in rows)) == (learning_rate == 1e30)
