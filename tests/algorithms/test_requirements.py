"""What each algorithm requires of a run: forward passes for the cost estimate."""

import pytest

from rft_jax.algorithms import ALGORITHMS
from rft_jax.config import Config


def config_with(changes):
  """Returns a Config of 4 samples per prompt, with fields by dotted name changed."""
  config = Config()
  for path, value in ({'rollout.samples_per_prompt': 4} | changes).items():
    *groups, name = path.split('.')
    group = config
    for part in groups:
      group = getattr(group, part)
    setattr(group, name, value)
  return config


@pytest.mark.parametrize(
  'algorithm, changes, expected',
  [
    ('sft', {}, 3),  # forward, and backward twice as long
    ('grpo', {}, 3),
    ('grpo', {'update.updates_per_batch': 2}, 4),  # the policy before both is scored
    ('grpo', {'objective.kl_coef': 0.1}, 4),  # the reference
    ('grpo', {'objective.kl_coef': 0.1, 'objective.kl_place': 'reward'}, 5),
    ('ppo', {}, 7),  # a critic of its own: its values, and its update
    ('ppo', {'critic.kind': 'head'}, 4),  # its values; it is trained in the policy's update
    ('rejection', {'rejection.per_prompt': 1}, 0.75),  # one sample of four is trained on
    ('distillation', {}, 5),  # student and teacher are scored
    ('distillation', {'update.updates_per_batch': 2}, 5),
    ('dpo', {}, 6),  # of a pair, which is two sequences
    ('reward_model', {}, 6),
    ('kto', {}, 4),  # an update, and the mismatched completions of the reference point
  ],
)
def test_forward_passes_over_a_sequence(algorithm, changes, expected):
  groups = config_with(changes).groups()
  assert ALGORITHMS[algorithm].REQUIREMENTS.passes(groups) == expected
