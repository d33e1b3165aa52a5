"""The cost estimate: forward passes, samples drawn for each one trained on, evaluations."""

import types

import numpy as np
import pytest
from episodes import graded_episode

from rft_jax.config import Config, Stage
from rft_jax.doctor import cost
from rft_jax.rollout.rollout import Rollout

CHAT = types.SimpleNamespace(decode=lambda ids: ''.join(map(chr, ids)), reasoning=None)
FORWARD_SECONDS = 6.0  # of a forward pass over all samples, as measured


def group(occurrence, answers):
  """Returns a group from {text: reward}; a token is a character."""
  return [
    graded_episode(reward, text=text, tokens=list(map(ord, text)), index=g, occurrence=occurrence)
    for g, (text, reward) in enumerate(answers.items())
  ]


GROUPS = [
  group(0, {'one\ntwo': 0.0, 'one\nsix': 1.0, 'ab': 1.0}),
  group(1, {'a\nbcde\nf': 0.5, 'xx': 0.5, 'yy': 0.5}),
]


def estimate(monkeypatch, *stages, seconds=12.0, **changes):
  """Returns the estimate from GROUPS, sampled in `seconds`, of a Config with changed fields."""
  config = Config(stages=stages)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 5, 4
  for path, value in changes.items():
    *names, field = path.split('__')
    holder = config
    for name in names:
      holder = getattr(holder, name)
    setattr(holder, field, value)
  clock = iter([0.0, FORWARD_SECONDS])
  monkeypatch.setattr(cost, 'score_batch', lambda *args, **kwargs: None)
  monkeypatch.setattr(cost, 'time', types.SimpleNamespace(monotonic=lambda: next(clock)))
  sampled = Rollout(GROUPS, {}, {})
  return cost.estimate(config, CHAT, None, sampled, seconds, rows=10, mesh=None)


def test_stages_and_evaluations_add_up_to_hours(monkeypatch):
  values = estimate(
    monkeypatch,
    Stage(algorithm='sft', steps=3),
    Stage(algorithm='grpo', steps=4),
    evaluate__every=2,
    evaluate__samples_per_prompt=4,
    sft__rows_per_step=7,
  )
  forward, sample = FORWARD_SECONDS / 6, 12.0 / 6  # a sequence
  sft, grpo = 7 * 3 * forward, 5 * 4 * (sample + 3 * forward)
  assert values['stages'] == {
    'stages[0] (sft)': {'steps': 3, 'seconds_a_step': pytest.approx(sft)},
    'stages[1] (grpo)': {'steps': 4, 'seconds_a_step': pytest.approx(grpo)},
  }
  assert values['evaluations'] == len({0, 2, 3, 4, 6, 7})
  assert values['seconds_an_evaluation'] == pytest.approx(10 * (1 + 4) * sample)
  seconds = 3 * sft + 4 * grpo + 6 * values['seconds_an_evaluation']
  assert values['hours'] == pytest.approx(seconds / 3600)


BY_LINES = {'credit__level': 'reasoning_step', 'credit__step_boundary': 'line'}


@pytest.mark.parametrize(
  'changes, expected',
  [
    ({}, 1),
    ({'advantage__estimator': 'remax'}, 1.25),  # a greedy completion for each four samples
    ({'rollout__dynamic_sampling_rounds': 3}, 2),  # one of two groups has zero variance
    ({**BY_LINES, 'credit__source': 'process'}, 1),
    # Of 28 tokens 3, 3 and 6 follow a first step, and 1 a second: 3 times each, but two samples
    # are in the same state after the first.
    ({**BY_LINES, 'credit__source': 'resample', 'credit__resamples': 3}, 1 + 3 * (3 + 6 + 1) / 28),
  ],
)
def test_samples_drawn_for_each_that_is_trained_on(monkeypatch, changes, expected):
  stage = Stage(algorithm='grpo', steps=1)
  step_seconds = lambda seconds: estimate(monkeypatch, stage, seconds=seconds, **changes)['stages'][
    'stages[0] (grpo)'
  ]['seconds_a_step']
  sampling = step_seconds(12.0) - step_seconds(0.0)  # without the passes of the update
  np.testing.assert_allclose(sampling / (5 * 4 * 12.0 / 6), expected)
