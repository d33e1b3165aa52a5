"""Resampling: each state once, random numbers by seed, step and state, and a run that continues."""

import dataclasses

import pytest
from credit_groups import byte_chat, credit_group, replace_engine, rewards_of_steps
from workdirs import assert_same_runs, metric_rows

import rft_jax
from rft_jax import hf
from rft_jax.records import episodes
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.rollout import rollout, step_rewards
from rft_jax.rollout.credit import CreditConfig
from rft_jax.run import build

# The tiny policy writes random bytes, of which half are no characters: they end its steps.
RESAMPLE = CreditConfig(
  level='reasoning_step',
  step_boundary='delimiter',
  delimiter='\ufffd',
  source='resample',
  resamples=2,
  max_reasoning_steps=3,
)


def test_samples_in_the_same_state_are_resampled_once(monkeypatch):
  chat = byte_chat(('<think>', '</think>'))
  answers = ('<think>a\nb</think>7', 1.0), ('<think>a\nc</think>8', 0.0)
  arguments = replace_engine(
    monkeypatch,
    [
      ['b</think>7', 'b</think>7'],  # after a, of both samples: 1
      ['7', 'no'],  # after a and b: 1/2
      ['7', '8'],  # after a and c: 1/2
    ],
    chat,
  )
  config = CreditConfig(
    level='reasoning_step', step_boundary='line', source='resample', resamples=2
  )
  group = credit_group(*answers, occurrence=5, chat=chat)
  steps = rewards_of_steps([group], config, chat)
  assert steps.rewards == [[1.0, -0.5, 0.5], [0.0, -0.5, -0.5]]
  assert steps.metrics['credit/resampled'] == 6
  assert len(set(map(tuple, arguments['prompts']))) == 3
  # Two prompts with equal texts have states of their own.
  two_prompts = [[episode._replace(occurrence=5 + g) for g, episode in enumerate(group)]]
  replace_engine(monkeypatch, [['7', '7']] * 4, chat)
  assert rewards_of_steps(two_prompts, config, chat).metrics['credit/resampled'] == 8


@pytest.mark.full
def test_completions_depend_on_seed_step_and_state_alone(grpo_config):
  config = dataclasses.replace(grpo_config, credit=RESAMPLE)
  with build.components(config) as components:
    policy, _ = hf.load(config.model.source)
    sample = rollout.make(components.chat, components.grader, config.rollout, seed=0, mesh=None)
    groups = sample(policy, components.train[0][:3], [7, 8, 9], 1).groups

    def rewards(groups, *, seed, step):
      step_rewards_of = step_rewards.make(
        components.chat,
        RESAMPLE,
        config.rollout,
        grader=components.grader,
        step_grader=None,
        seed=seed,
        mesh=None,
      )
      return step_rewards_of(policy, groups, step).rewards

    together = rewards(groups, seed=0, step=1)
    assert rewards(groups[1:2], seed=0, step=1) == together[4:8]
    assert rewards(groups, seed=1, step=1) != together
    assert rewards(groups, seed=0, step=2) != together
    assert max(map(len, together)) > 1


@pytest.mark.full
def test_a_run_that_resamples_continues_bit_for_bit(grpo_config, tmp_path):
  config = dataclasses.replace(grpo_config, credit=RESAMPLE)
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', stop_at_step=1, quiet=True)
  assert Checkpoints(tmp_path / 'parts' / 'checkpoints').latest() == 1
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert_same_runs(tmp_path / 'whole', tmp_path / 'parts', 2)
  rows = metric_rows(tmp_path / 'whole')
  assert all(row['credit/resampled'] > 0 and row['grad_norm'] > 0 for row in rows)
  assert episodes.steps(tmp_path / 'whole') == [1, 2]
