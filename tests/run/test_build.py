"""The components of a run: rows for each stage, and combinations that are refused."""

import pytest
import tiny

from rft_jax.errors import InputError
from rft_jax.run import build

LENGTH = {
  'type': 'length',
  'name': 'short',
  'input': '{{ sample.output_text }}',
  'unit': 'characters',
  'soft_limit': 4,
  'hard_limit': 40,
}


def test_gdpo_needs_a_grader_with_parts(tmp_path):
  config = tiny.config(tmp_path)
  config.advantage.estimator = 'gdpo'
  with pytest.raises(InputError, match='need type multi'):
    with build.components(config):
      pass
  config.grader = {
    'type': 'multi',
    'name': 'both',
    'calculate_output': 'close + short',
    'graders': {'close': tiny.GRADER, 'short': LENGTH},
  }
  with build.components(config) as components:
    assert components.grader.name == 'both'
