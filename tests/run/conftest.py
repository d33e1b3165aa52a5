"""A finished run: a warm-up of three steps, then three of GRPO with a reference policy."""

import copy

import pytest
import tiny

import rft_jax


@pytest.fixture(scope='session')
def run_directory(tmp_path_factory):
  """Returns the folder of the files of the run: train.jsonl, validation.jsonl, base."""
  return tmp_path_factory.mktemp('run')


@pytest.fixture(scope='session')
def run_config(run_directory):
  config = tiny.config(run_directory)
  config.objective.kl_coef = 0.05
  config.update.updates_per_batch = 2
  config.checkpoints.keep_last = 4  # those of steps 2, 3, 4 and 6
  return config


@pytest.fixture
def config(run_config):
  """Returns the Config of the run, for the test alone."""
  return copy.deepcopy(run_config)


@pytest.fixture(scope='session')
def finished(run_directory, run_config):
  """Returns the workdir of the run, trained in one go."""
  rft_jax.train(copy.deepcopy(run_config), run_directory / 'finished', quiet=True)
  return run_directory / 'finished'
