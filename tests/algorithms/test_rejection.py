"""Rejection sampling: which samples are selected, and runs that are trained on them alone."""

import numpy as np
import pytest
from episodes import graded_group

import rft_jax
from rft_jax.algorithms import rejection
from rft_jax.algorithms.rejection import RejectionConfig
from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics

# --- selection --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({}, [1]),
    ({'per_prompt': 2}, [1, 4]),
    ({'per_prompt': 2, 'distinct': False}, [1, 2]),
    ({'per_prompt': 0, 'threshold': 1.0}, [1, 4]),
    ({'per_prompt': 0, 'threshold': 0.5}, [1, 4, 0, 5]),
    ({'per_prompt': 3, 'threshold': 0.5, 'distinct': False}, [1, 2, 4]),
    ({'threshold': 1.5}, []),
  ],
)
def test_the_best_samples_are_selected_in_the_order_of_their_grades(settings, expected):
  group = graded_group('abbcde', [0.5, 1.0, 1.0, 0.0, 1.0, 0.5])
  selected = rejection.select(group, RejectionConfig(**settings))
  assert [episode.index for episode in selected] == expected


def test_of_equal_grades_none_is_selected_unless_asked_for():
  equal = graded_group('ab', [1.0, 1.0])
  assert rejection.select(equal, RejectionConfig()) == []
  assert rejection.select(equal, RejectionConfig(tied=True)) == equal[:1]
  assert rejection.select(equal, RejectionConfig(per_prompt=0, threshold=1.0)) == equal


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'per_prompt': 0}, 'learns nothing from all of its own samples'),
    ({'per_prompt': -1}, '>= 0'),
    ({'tied': True, 'threshold': 0.5}, 'already decides'),
    ({'samples_from': 'base'}, "'base'"),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(changes, message):
  (problem,) = RejectionConfig(**changes).validate()
  assert message in problem


def test_a_selection_of_all_samples_is_refused(tmp_path, make_config):
  config = make_config(tmp_path, 'rejection', 1)
  config.rollout.samples_per_prompt = 1
  (problem,) = config.problems()
  assert 'keeps every sample' in problem
  config.rejection = RejectionConfig(per_prompt=0)
  (problem,) = config.problems()
  assert 'rejection.per_prompt=0' in problem
  config.rejection = RejectionConfig(per_prompt=0, threshold=1.0)
  assert config.problems() == []


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_run_trains_on_the_selected_samples_and_records_all(rejection_workdir):
  rows = metrics.read(rejection_workdir / 'metrics.jsonl')
  for row in rows:
    episodes = episode_files.read(rejection_workdir, row['step'])
    assert len(episodes) == 32
    groups = {}
    for episode in episodes:
      groups.setdefault(episode['occurrence'], []).append(episode)
    selected_rewards, zero_variance = [], 0
    for group in groups.values():
      distinct = sorted({e['text']: e['reward'] for e in group}.values(), reverse=True)
      equal = len({e['reward'] for e in group}) == 1
      selected_rewards += [] if equal else distinct[:2]
      zero_variance += equal
    np.testing.assert_allclose(row['rejection/kept_share'], len(selected_rewards) / 32)
    np.testing.assert_allclose(row['rejection/prompts_without'], zero_variance / len(groups))
    np.testing.assert_allclose(row['rejection/kept_reward'], np.mean(selected_rewards), rtol=1e-6)
    assert row['rejection/kept_reward'] > row['reward'] and row['grad_norm'] > 0
    assert row['loss/nll'] > 0 and 'entropy' in row and row['skipped_nonfinite'] == 0
  rewards = [row['reward'] for row in rows]
  assert np.mean(rewards[-3:]) > 1.25 * np.mean(rewards[:3])


@pytest.mark.full
def test_samples_of_the_reference_do_not_depend_on_the_policy(tmp_path, make_config):
  config, texts = make_config(tmp_path, 'rejection', 2), {}
  for source, rate in (('reference', 1e-2), ('reference', 1e-9), ('policy', 1e-2)):
    config.rejection.samples_from = source
    config.stages[0].optim.learning_rate = rate
    workdir = tmp_path / f'{source}{rate}'
    rft_jax.train(config, workdir, quiet=True)
    texts[source, rate] = [episode['text'] for episode in episode_files.read(workdir, 2)]
  assert texts['reference', 1e-2] == texts['reference', 1e-9] != texts['policy', 1e-2]


def test_a_step_without_selected_samples_has_no_update(tmp_path, make_config):
  config = make_config(tmp_path, 'rejection', 1)
  config.rejection.threshold = 5.0
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  (row,) = metrics.read(tmp_path / 'run' / 'metrics.jsonl')
  assert row['rejection/kept_share'] == 0 and row['rejection/prompts_without'] == 1
  assert 'loss' not in row and len(episode_files.read(tmp_path / 'run', 1)) == 32
