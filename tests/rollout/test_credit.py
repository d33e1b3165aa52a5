"""Credit assignment: from rewards of steps to advantages of tokens, and its settings."""

import dataclasses

import numpy as np
import pytest
from credit_groups import GOOD, LINES, credit_group, rewards_of_steps
from workdirs import checkpoint_arrays, metric_rows

import rft_jax
from rft_jax.config import Stage
from rft_jax.data import batching
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.rollout import credit
from rft_jax.rollout.credit import CreditConfig


def test_outcome_and_process_weights_blend_advantages_and_padding_has_none():
  groups = [credit_group(('one\nsix', 1.0), ('six\nsix', 0.0))]
  outcome = np.array([[0.5, -0.5]], np.float32)
  batch = batching.from_groups(groups, outcome)
  steps = rewards_of_steps(groups, LINES)
  assert steps.rewards == [[1.0, 0.0], [0.0, 0.0]]
  # Centred at each step: (1/2, 0) and (-1/2, 0); summed to the end: the same.
  for weights, first, second in (
    ((-1.0, 1.0), 1.0, 0.5),
    ((2.0, 3.0), 2.5, 1.0),
    ((0.0, 1.0), 0.5, 0.0),
  ):
    config = dataclasses.replace(LINES, outcome_weight=weights[0], process_weight=weights[1])
    advantages = credit.advantages(groups, batch.loss_mask, outcome, steps, config)
    expected = np.array([[first] * 4 + [second] * 4, [-first] * 4 + [-second] * 4], np.float32)
    np.testing.assert_allclose(advantages, expected, rtol=1e-6)
  shorter = batch.loss_mask.copy()
  shorter[:, -1] = 0
  assert (credit.advantages(groups, shorter, outcome, steps, LINES)[:, -1] == 0).all()
  normalised = dataclasses.replace(LINES, estimator='normalised', outcome_weight=0.0)
  advantages = credit.advantages(groups, batch.loss_mask, outcome, steps, normalised)
  # mean 1/4, std 1/2 (ddof 1): z = 1.5 and -0.5; the first row's sum to the end is 1.
  np.testing.assert_allclose(advantages[:, 0], [1.0, -1.0], rtol=1e-3)
  np.testing.assert_allclose(advantages[:, 4], [-0.5, -0.5], rtol=1e-3)


def test_samples_of_one_step_have_the_advantages_of_whole_samples():
  groups = [credit_group(('7', 1.0), ('8\n9', 0.25), ('long', 0.5))]
  config = CreditConfig(level='reasoning_step', step_boundary='turn')
  outcome = group_advantages([[1.0, 0.25, 0.5]], AdvantageConfig(scale='none'))
  batch = batching.from_groups(groups, outcome)
  steps = rewards_of_steps(groups, config)
  np.testing.assert_array_equal(
    credit.advantages(groups, batch.loss_mask, outcome, steps, config), batch.advantages
  )


@pytest.mark.full
def test_a_run_with_one_step_a_sample_equals_a_run_by_samples(grpo_config, tmp_path):
  config = dataclasses.replace(grpo_config, advantage=AdvantageConfig(scale='none'))
  rft_jax.train(config, tmp_path / 'samples', quiet=True)
  by_turn = CreditConfig(level='reasoning_step', step_boundary='turn')
  rft_jax.train(dataclasses.replace(config, credit=by_turn), tmp_path / 'turns', quiet=True)
  arrays, expected = (checkpoint_arrays(tmp_path / name, 2) for name in ('turns', 'samples'))
  assert arrays.keys() == expected.keys()
  assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
  assert metric_rows(tmp_path / 'turns')[0]['credit/reasoning_steps_mean'] == 1
  assert 'credit/reasoning_steps_mean' not in metric_rows(tmp_path / 'samples')[0]


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(level='sentence'), "level='sentence'"),
    (dict(source='process'), 'grader is empty'),
    (dict(source='resample', grader=GOOD), 'need none for source='),
    (dict(source='process', grader=GOOD, estimator='difference'), 'no values of states'),
    (dict(step_boundary='delimiter'), "delimiter='' with step_boundary='delimiter'"),
    (dict(delimiter=';'), "delimiter=';' with step_boundary='paragraph'"),
    (dict(max_reasoning_steps=1), 'max_reasoning_steps=1'),
    (dict(outcome_weight=-0.5), 'outcome_weight=-0.5'),
    (dict(process_weight=0.0), 'process_weight=0.0'),
    (dict(resamples=0), 'resamples=0'),
    (dict(estimator='mean', step_boundary='word', source='oracle'), "estimator='mean'"),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(changes, message):
  problems = CreditConfig(**{'level': 'reasoning_step', **changes}).validate()
  assert any(message in problem for problem in problems)


def test_levels_that_an_algorithm_cannot_assign_are_refused(grpo_config):
  config = dataclasses.replace(grpo_config, credit=CreditConfig(level='token'))
  assert any("need algorithm 'ppo'" in problem for problem in config.problems())
  resample = CreditConfig(level='reasoning_step', source='resample')
  config = dataclasses.replace(grpo_config, credit=resample)
  assert config.problems() == []
  config.stages = (Stage(algorithm='sft', steps=1),)
  assert any("need a stage of 'grpo'" in problem for problem in config.problems())
  config.stages = (Stage(algorithm='ppo', steps=1),)
  assert any('its critic values the states already' in problem for problem in config.problems())
