"""A finished run of rejection sampling: it is examined, and its export is a teacher."""

import pytest
import tiny

import rft_jax
from rft_jax.config import Stage
from rft_jax.training.optim import OptimConfig

# Rarely equal for two samples, and learned in a few steps.
LETTERS = {
  'type': 'python',
  'name': 'letters',
  'source': 'def grade(sample, item):\n'
  '  text = sample["output_text"]\n'
  '  return sum(c.isascii() for c in text) / (len(text) + 1)\n',
}


@pytest.fixture(scope='session')
def make_config():
  """Returns a function that makes the Config of one stage, graded by the share of ASCII letters."""

  def make_config(directory, algorithm, steps, learning_rate=1e-2):
    optim = OptimConfig(learning_rate=learning_rate)
    stages = (Stage(algorithm=algorithm, steps=steps, optim=optim),)
    config = tiny.config(directory, grader=LETTERS, stages=stages)
    config.evaluate.every = 0
    return config

  return make_config


@pytest.fixture(scope='session')
def rejection_workdir(tmp_path_factory, make_config):
  """Returns the workdir of a run that was trained on the better half of its samples."""
  directory = tmp_path_factory.mktemp('rejection')
  config = make_config(directory, 'rejection', 8, learning_rate=2e-2)
  config.rejection.per_prompt = 2
  rft_jax.train(config, directory / 'run', quiet=True)
  return directory / 'run'
