"""Metrics of the samples of a step."""

import pytest
from episodes import graded_episode

from rft_jax.rollout.completion_metrics import metrics


def test_metrics_have_trls_definitions():
  scored = lambda reward, count: graded_episode(
    reward, tokens=[1] * count, components={'exact': reward}
  )
  unresponsive = graded_episode(
    0.0, tokens=[1] * 7, errors={'unresponsive_reward_error': True}, stop_reason='length'
  )
  values = metrics([[scored(1.0, 2), scored(0.0, 4), unresponsive, scored(0.0, 3)]])
  assert values['reward'] == 0.25
  assert values['reward_std'] == pytest.approx(0.5)  # ddof 1, within the group
  assert values['frac_reward_zero_std'] == 0.0
  assert values['rewards/exact/mean'] == pytest.approx(1 / 3)  # of the samples it scored
  assert values['errors/unresponsive_reward_error'] == 0.25
  assert values['completions/clipped_ratio'] == 0.25
  assert values['completions/mean_length'] == 4.0
  assert values['completions/mean_terminated_length'] == 3.0
  assert (values['completions/min_length'], values['completions/max_length']) == (2.0, 7.0)
  assert values['step_tokens'] == 16 + 2  # the prompt once


def test_groups_with_an_ungraded_sample_are_counted_and_have_no_reward():
  failed = [graded_episode(None, errors={'python_grader_server_error': True}), graded_episode(1.0)]
  values = metrics([failed, [graded_episode(0.5), graded_episode(0.5)]])
  assert values['groups_dropped'] == 1 and values['reward'] == 0.5
  assert values['frac_reward_zero_std'] == 1.0
  assert 'reward' not in metrics([failed])
