"""The Config of a tiny GRPO run, for runs with credit by reasoning steps."""

import pytest
import tiny

from rft_jax.config import Stage


@pytest.fixture(scope='module')
def grpo_config(tmp_path_factory):
  config = tiny.config(tmp_path_factory.mktemp('credit'))
  config.stages = (Stage(algorithm='grpo', steps=2, optim=config.stages[1].optim),)
  config.grader = {
    'type': 'python',
    'name': 'letters',
    'source': 'def grade(sample, item):\n  return sum(map(ord, sample["output_text"])) % 7 / 6\n',
  }
  config.evaluate.every = 0
  return config
