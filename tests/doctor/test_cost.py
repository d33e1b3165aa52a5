"""What the doctor says a run will take: each pass of the model and each extra sample is counted."""

import types

import pytest

from rft_jax.config import Config
from rft_jax.doctor import cost

ROLLOUT = {'rollout.samples_per_prompt': 4}


def _config(**changes):
  config = Config()
  for path, value in (ROLLOUT | changes).items():
    *groups, name = path.split('.')
    holder = config
    for group in groups:
      holder = getattr(holder, group)
    setattr(holder, name, value)
  return config


@pytest.mark.parametrize(
  'algorithm, changes, expected',
  [
    ('grpo', {}, 3),  # forward, and backward twice as long
    ('grpo', {'update.updates_per_batch': 2}, 4),  # the policy before both is scored
    ('grpo', {'objective.kl_coef': 0.1}, 4),  # the reference
    ('grpo', {'objective.kl_coef': 0.1, 'objective.kl_place': 'reward'}, 5),
    ('ppo', {}, 7),  # a critic of its own: its values, and its update
    ('ppo', {'critic.kind': 'head'}, 4),  # its values; it learns in the policy's update
    ('rejection', {'rejection.per_prompt': 1}, 0.75),  # one sample of four is learnt from
    ('distillation', {}, 5),  # student and teacher are scored
    ('distillation', {'update.updates_per_batch': 2}, 5),
  ],
)
def test_passes_over_a_sampled_sequence(algorithm, changes, expected):
  assert cost.passes(_config(**changes), algorithm) == expected


def _group(occurrence, answers):
  return [
    types.SimpleNamespace(
      occurrence=occurrence,
      sample=types.SimpleNamespace(tokens=[ord(c) for c in text]),
      grade=types.SimpleNamespace(reward=reward),
    )
    for text, reward in answers.items()
  ]


CHAT = types.SimpleNamespace(decode=lambda ids: ''.join(map(chr, ids)), reasoning=None)
BY_LINES = {'credit.level': 'reasoning_step', 'credit.step_boundary': 'line'}


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({}, 1),
    ({'advantage.estimator': 'remax'}, 1.25),  # a greedy one beside four
    ({'rollout.dynamic_sampling_rounds': 3}, 2),  # of two groups one has no signal
    ({**BY_LINES, 'credit.source': 'process'}, 1),
    # Of 24 tokens 3, 3 and 6 stand behind a first step, and 1 behind a second: 3 times each, but
    # two samples are in the same state after the first.
    ({**BY_LINES, 'credit.source': 'resample', 'credit.resamples': 3}, 1 + 3 * (3 + 6 + 1) / 24),
  ],
)
def test_samples_made_for_each_that_is_learnt_from(changes, expected):
  groups = [
    _group(0, {'one\ntwo': 0.0, 'one\nsix': 1.0, 'ab': 1.0}),
    _group(1, {'a\nbcde\nf': 0.5}),
  ]
  assert cost._samples(_config(**changes), CHAT, groups) == pytest.approx(expected)
