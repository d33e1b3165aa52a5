"""A small rare-disease task, its world and cases."""

import numpy as np
import pytest

from rft_jax.tasks import rare_disease
from rft_jax.tasks.rare_disease import simulator
from rft_jax.tasks.rare_disease import world as worlds


@pytest.fixture(scope='module')
def config():
  return rare_disease.Config(train_rows=60, validation_rows=30)


@pytest.fixture(scope='module')
def task_files(config):
  return rare_disease.make(config)


@pytest.fixture(scope='module')
def world(config):
  return worlds.make_world(config)


@pytest.fixture(scope='module')
def cases(world):
  rng = np.random.default_rng(7)
  return [simulator.draw_case(world, rng) for _ in range(40)]
