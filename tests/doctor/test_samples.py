"""Findings from samples: reward variance, grader and policy faults, truncation."""

import pytest
from episodes import graded_episode

from rft_jax.config import DoctorConfig
from rft_jax.doctor import samples
from rft_jax.rollout.rollout import RolloutConfig


def groups_of(rewards):
  return [[graded_episode(reward) for reward in row] for row in rewards]


@pytest.mark.parametrize(
  'rewards, verdict, message',
  [
    ([[0.0, 1.0], [0.5, 0.25]], 'fine', '0% of 2 rows have the same grade'),
    ([[0.0, 1.0], [0.5, 0.5]], 'warning', 'little reward variance'),
    ([[0.0, 0.0], [0.0, 0.0]], 'no-go', 'no reward variance: mean grade 0.000'),
    ([[0.0, 0.0], [0.0, 0.0]], 'no-go', 'Too hard: most samples get 0.'),
    ([[1.0, 1.0], [1.0, 1.0]], 'no-go', 'Too easy: most samples get 1.'),
    ([[None, 1.0], [1.0, None]], 'no-go', 'no row could be graded'),
  ],
)
def test_reward_variance_within_rows(rewards, verdict, message):
  (finding,), values = samples.grades(groups_of(rewards), DoctorConfig(), 1.0)
  assert finding.verdict == verdict and message in finding.text
  assert len(values['rows']) == 2


def test_values_of_grades():
  _, values = samples.grades(groups_of([[0.0, 1.0], [1.0, 1.0], [None, 1.0]]), DoctorConfig(), 1.0)
  assert values['reward_mean'] == 0.75 and values['reward_max'] == 1.0
  assert values['frac_reward_zero_std'] == 0.5
  assert values['pass@1'] == 0.75 and values['pass@2'] == 1.0
  assert values['rows'][0] == {'row': 'rows.jsonl:1', 'mean': 0.5, 'std': 0.5}
  assert values['rows'][2]['mean'] is None


def test_grader_faults_are_no_go_and_frequent_policy_faults_a_warning():
  graded = [graded_episode(1.0)] * 3
  failed = [graded_episode(None, errors={'python_grader_server_error': True})]
  config = RolloutConfig()
  (finding,), values = samples.faults(graded + failed, config)
  assert finding.verdict == 'no-go' and 'the grader fails on 25% of the samples' in finding.text
  assert 'rows.jsonl:1: python_grader_server_error' in finding.text
  assert values == {'errors': {'python_grader_server_error': 0.25}}
  unparsable = [graded_episode(0.0, errors={'sample_parse_error': True})] * 4
  (finding,), _ = samples.faults(graded + unparsable, config)
  assert finding.verdict == 'warning' and 'sample_parse_error in 57% of the samples' in finding.text
  (finding,), _ = samples.faults(graded, config)
  assert finding == ('fine', 'faults: none')


def test_the_same_exception_in_most_samples_is_no_go():
  details = 'Traceback\n  File "grader.py", line 2\nKeyError: \'gold\''
  errors = {'python_grader_runtime_error': True, 'python_grader_runtime_error_details': details}
  raising = [graded_episode(0.0, errors=errors)] * 3
  (finding,), _ = samples.faults(raising + [graded_episode(0.0)], RolloutConfig())
  assert finding.verdict == 'no-go' and "in 75% of the samples: KeyError: 'gold'" in finding.text


def test_frequent_truncation_is_a_warning():
  complete, truncated = graded_episode(1.0), graded_episode(0.0, stop_reason='length')
  config = RolloutConfig(max_new_tokens=24)
  (finding,), values = samples.tokens([complete, truncated], config)
  assert finding.verdict == 'warning'
  assert '50% truncated at rollout.max_new_tokens=24' in finding.text
  assert values == {'tokens_mean': 1.0, 'truncated': 0.5}
  (finding,), _ = samples.tokens([complete] * 9 + [truncated], config)
  assert finding.verdict == 'fine'
