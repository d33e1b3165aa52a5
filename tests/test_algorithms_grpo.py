"""GRPO's batch: which rewards, lengths and grader scores each estimator is given."""
import numpy as np
import pytest
import tiny

from rft_jax import build
from rft_jax.algorithms import grpo
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.types import Episode, Grade, Item, Sample

MULTI = {'type': 'multi', 'name': 'both', 'calculate_output': 'right + short', 'graders': {
    'right': {'type': 'string_check', 'name': 'right', 'operation': 'eq',
              'input': '{{ sample.output_text }}', 'reference': '{{ item.answer }}'},
    'short': {'type': 'length', 'name': 'short', 'input': '{{ sample.output_text }}',
              'unit': 'characters', 'soft_limit': 4, 'hard_limit': 40}}}


def _episode(reward, components, errors=None, tokens=3):
  return Episode(Item({}, 'x:1'), 0, 0, [1], Sample([1] * tokens, [0.0] * tokens, None, 'stop'),
                 '', '', 0, Grade(reward, components, errors or {}), 0)


@pytest.mark.parametrize('estimator', ['group', 'rloo', 'gpg', 'maxrl', 'pass_at_k', 'best_of_n'])
def test_rewards_are_compared_as_the_estimator_says(estimator):
  rewards = np.array([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
  groups = [[_episode(reward, {'x': reward}) for reward in row] for row in rewards]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(grpo.advantages(groups, config), group_advantages(rewards, config))


@pytest.mark.parametrize('estimator', ['opo', 'reinforce_plus_plus'])
def test_lengths_are_those_of_the_samples(estimator):
  groups = [[_episode(0.0, {}, tokens=2), _episode(1.0, {}, tokens=6)]]
  config = AdvantageConfig(estimator=estimator)
  np.testing.assert_array_equal(
      grpo.advantages(groups, config),
      group_advantages([[0.0, 1.0]], config, lengths=[[2, 6]]))


def test_gdpo_compares_grader_by_grader_and_faults_are_paid_for():
  groups = [[_episode(1.5, {'right': 1.0, 'short': 0.5}),
             _episode(0.25, {'right': 0.0, 'short': 0.25}),
             _episode(-1.0, {}, {'sample_parse_error': True}),
             _episode(1.0, {'right': 1.0, 'short': None})]]
  config = AdvantageConfig(estimator='gdpo')
  nan = float('nan')
  expected = group_advantages([[[1.0, 0.5], [0.0, 0.25], [-1.0, -1.0], [1.0, nan]]], config,
                              component_weights=[1.0, 1.0])
  found = grpo.advantages(groups, config)
  np.testing.assert_array_equal(found, expected)
  assert found[0, 2] < found[0, 1] < found[0, 0]


def test_gdpo_over_one_grader_is_refused_before_anything_is_paid_for(tmp_path):
  config = tiny.config(tmp_path)
  config.advantage.estimator = 'gdpo'
  with pytest.raises(build.Refused, match='need type multi'):
    with build.rooms(config):
      pass
  config.grader = MULTI
  with build.rooms(config) as rooms:
    assert rooms.grader.name == 'both'


@pytest.mark.parametrize('estimator', ['remax', 'reinforce'])
def test_estimators_without_their_baseline_are_refused(tmp_path, estimator):
  config = tiny.config(tmp_path)
  config.advantage.estimator = estimator
  assert any(estimator in problem and 'rloo' in problem for problem in config.problems())
