"""Noisy grades: corrected rewards, excluded groups and rows, and runs that continue."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
from episodes import graded_episode, graded_group
from workdirs import metric_rows

import rft_jax
from rft_jax.algorithms import noisy_grades
from rft_jax.algorithms.noisy_grades import NoisyGradesConfig, NoisyGradesState
from rft_jax.records import episodes, metrics


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(grade_low=1.0), 'grade_low=1.0 grade_high=1.0'),
    (dict(grade_high=float('inf')), 'both finite'),
    (dict(flip_rate_right=0.6, flip_rate_wrong=0.4), 'a grade carries no information'),
    (dict(flip_rate_wrong=-0.1), 'flip_rate_wrong=-0.1'),
    (dict(min_plausibility=1.0), 'min_plausibility=1.0'),
    (dict(contradictions=-1), 'contradictions=-1'),
    (dict(min_share=0.0), 'min_share=0.0'),
    (dict(min_trust=2.0), 'min_trust=2.0'),
    (dict(right_from=float('nan')), 'right_from=nan'),
    (dict(answer='{{ sample.output_json.genes'), 'answer'),
    (dict(answer='always the same'), 'answer'),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(changes, message):
  assert not NoisyGradesConfig().validate() and not noisy_grades.is_on(NoisyGradesConfig())
  assert any(message in problem for problem in NoisyGradesConfig(**changes).validate())


def test_by_default_groups_and_state_are_returned_unchanged():
  groups, state = [graded_group(['7'], [0.5])], NoisyGradesState()
  unchanged, next_state, metrics = noisy_grades.apply(groups, NoisyGradesConfig(), state, 1)
  assert unchanged is groups and next_state is state and metrics == {}


def test_rewards_are_clipped_then_corrected_and_components_stay():
  config = NoisyGradesConfig(clip=True, flip_rate_right=0.25, flip_rate_wrong=0.25)
  group = [
    graded_episode(reward, components={'x': reward}, index=g) for g, reward in enumerate([9.0, 0.5])
  ]
  (group,), _, values = noisy_grades.apply([group], config, NoisyGradesState(), 1)
  assert [e.grade.reward for e in group] == [1.5, 0.5]
  assert [e.grade.components['x'] for e in group] == [9.0, 0.5]
  assert values['noisy_grades/reward'] == 1.0


@pytest.mark.parametrize(
  'text, stop_reason, template, expected',
  [
    (' 7\n', 'stop', '', '7'),
    ('{"b": 1, "a": [2]}', 'stop', '', '{"a": [2], "b": 1}'),
    ('{"a":[2],"b":1}', 'stop', '', '{"a": [2], "b": 1}'),
    ('{"genes": ["ABRX", "BELQ"]}', 'stop', '{{ sample.output_json.genes[0] }}', 'ABRX'),
    ('{"genes": []}', 'stop', '{{ sample.output_json.genes[0] }}', None),
    ('no json', 'stop', '{{ sample.output_json.genes[0] }}', None),
    ('7', 'length', '', None),
    (None, 'stop', '', None),
    ('  ', 'stop', '', None),
  ],
)
def test_equal_answers_have_the_same_normal_form(text, stop_reason, template, expected):
  episode = graded_episode(0.0, text=text, stop_reason=stop_reason)
  assert noisy_grades.answer(episode, template) == expected


def test_a_row_with_a_wrong_reference_is_excluded_with_a_reason_and_included_again():
  config = NoisyGradesConfig(contradictions=2, min_trust=0.5)
  wrong = graded_group(['84'] * 3 + ['94'], [0, 0, 0, 1.0], source='rows.jsonl:1')
  hard = graded_group(['1', '2', '3', '4'], [0, 0, 0, 1.0], source='rows.jsonl:2')
  good = graded_group(['5'] * 4, [1.0] * 4, source='rows.jsonl:3')
  state, included = NoisyGradesState(), []
  for step in (1, 2, 3):
    groups, state, values = noisy_grades.apply([wrong, hard, good], config, state, step)
    included.append([group[0].item.source for group in groups])
  assert included == [
    ['rows.jsonl:1', 'rows.jsonl:2', 'rows.jsonl:3'],
    *[['rows.jsonl:2', 'rows.jsonl:3']] * 2,
  ]
  assert values['noisy_grades/groups_contradicted'] == values['noisy_grades/excluded_rows'] == 1
  (record,) = noisy_grades.excluded_rows(state)
  assert (record['row'], record['since'], record['first_contradiction']) == ('rows.jsonl:1', 2, 1)
  assert (record['answer'], record['share'], record['grade']) == ('84', 0.75, 0.0)
  assert 'in 3 consecutive visits' in record['why']
  corrected = graded_group(['84'] * 4, [1.0] * 4, source='rows.jsonl:1')
  saved = json.loads(json.dumps(dataclasses.asdict(state)))
  groups, state, _ = noisy_grades.apply([corrected], config, NoisyGradesState(**saved), 4)
  assert groups == [corrected] and noisy_grades.excluded_rows(state) == []


def test_an_implausible_group_is_excluded_from_its_step_alone():
  config = NoisyGradesConfig(min_plausibility=0.3)
  implausible = graded_group(['84'] * 7 + ['94'], [0] * 7 + [1.0])
  hard = graded_group('12345678', [1.0] + [0] * 7)
  groups, state, values = noisy_grades.apply([implausible, hard], config, NoisyGradesState(), 1)
  assert groups == [hard] and state == NoisyGradesState()
  assert values['noisy_grades/groups_implausible'] == 1


# ------------------------------------------------------------------ whole runs


def grpo_config(directory, **settings):
  """Returns the Config of 3 GRPO steps, each over all of its 4 rows."""
  config = tiny.config(directory)
  config.stages = config.stages[1:]
  config.data.train = tiny.write_rows(directory / 'train.jsonl', tiny.rows(4))
  config.rollout.prompts_per_step, config.evaluate.every, config.evaluate.rows = 4, 0, 1
  config.stages[0].steps, config.checkpoints.every = 3, 0
  config.noisy_grades = NoisyGradesConfig(**settings)
  return config


def recorded_rewards(workdir):
  return [
    [e['reward'] for e in episodes.read(workdir, step, ['reward'])]
    for step in episodes.steps(workdir)
  ]


@pytest.mark.full
def test_a_run_records_its_excluded_rows_and_continues_bit_for_bit(tmp_path):
  config = grpo_config(tmp_path, contradictions=1, min_share=0.01, min_trust=0.0, right_from=0.9)
  rft_jax.train(config, tmp_path / 'whole', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=1)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  rows = metric_rows(tmp_path / 'whole')
  assert rows == metric_rows(tmp_path / 'parts')
  texts = [(tmp_path / name / 'excluded_rows.jsonl').read_text() for name in ('whole', 'parts')]
  assert texts[0] == texts[1]
  records = [json.loads(line) for line in texts[0].splitlines()]
  assert len(records) == rows[-1]['noisy_grades/excluded_rows'] > 0
  assert all('train.jsonl:' in record['row'] and record['why'] for record in records)
  rewards = recorded_rewards(tmp_path / 'whole')
  assert [len(step_rewards) for step_rewards in rewards] == [16] * 2  # of excluded rows as well


@pytest.mark.full
def test_settings_that_change_no_grade_and_exclude_nothing_change_nothing(tmp_path):
  plain = grpo_config(tmp_path)
  rft_jax.train(plain, tmp_path / 'plain', quiet=True, stop_at_step=1)
  on = grpo_config(tmp_path, clip=True, min_plausibility=1e-9, contradictions=99)
  rft_jax.train(on, tmp_path / 'on', quiet=True, stop_at_step=1)
  rows = [metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('plain', 'on')]
  assert recorded_rewards(tmp_path / 'plain') == recorded_rewards(tmp_path / 'on')
  assert [row['loss'] for row in rows[0]] == [row['loss'] for row in rows[1]]
  assert np.any([row['grad_norm'] > 0 for row in rows[0]])
  assert not any(name.startswith('noisy_grades/') for name in rows[0][0])
  assert not (tmp_path / 'on' / 'excluded_rows.jsonl').exists()
