"""Robust settings in a run: off they change nothing, on they leave out what they say."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

import rft_jax
from rft_jax.algorithms import noisy_grades
from rft_jax.algorithms.noisy_grades import NoisyGradesConfig, NoisyGradesState
from rft_jax.records import episodes, metrics
from rft_jax.types import Episode, Grade, Item, Sample


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(grade_low=1.0), 'grade_low=1.0 grade_high=1.0'),
    (dict(grade_high=float('inf')), 'both finite'),
    (dict(flip_rate_right=0.6, flip_rate_wrong=0.4), 'a grade says nothing'),
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
def test_what_cannot_be_is_refused(changes, words):
  assert not NoisyGradesConfig().validate() and not noisy_grades.is_on(NoisyGradesConfig())
  assert any(words in problem for problem in NoisyGradesConfig(**changes).validate())


def test_components_cannot_be_corrected_through_the_whole_grade(tmp_path):
  config = tiny.config(tmp_path)
  config.advantage.estimator, config.noisy_grades.clip = 'gdpo', True
  assert any('noisy_grades.clip' in problem for problem in config.problems())


def _group(texts, rewards, row=None, source='rows.jsonl:1', stop='stop'):
  return [
    Episode(
      Item(row or {}, source),
      0,
      g,
      [1],
      Sample([1], [0.0], None, stop),
      '',
      text,
      0,
      Grade(reward, {'x': reward}, {}),
      0,
    )
    for g, (text, reward) in enumerate(zip(texts, rewards))
  ]


def test_off_it_hands_back_what_it_was_given():
  groups, state = [_group(['7'], [0.5])], NoisyGradesState()
  unchanged, next_state, metrics = noisy_grades.apply(groups, NoisyGradesConfig(), state, 1)
  assert unchanged is groups and next_state is state and metrics == {}


def test_rewards_are_clipped_then_corrected_and_components_stay():
  config = NoisyGradesConfig(clip=True, flip_rate_right=0.25, flip_rate_wrong=0.25)
  (group,), _, told = noisy_grades.apply([_group(['1', '2'], [9.0, 0.5])], config, NoisyGradesState(), 1)
  assert [e.grade.reward for e in group] == [1.5, 0.5]
  assert [e.grade.components['x'] for e in group] == [9.0, 0.5] and told['noisy_grades/reward'] == 1.0


@pytest.mark.parametrize(
  'text, stop, asked, expected',
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
def test_what_a_sample_says(text, stop, asked, expected):
  assert noisy_grades.answer(_group([text], [0.0], stop=stop)[0], asked) == expected


def test_a_row_with_a_wrong_reference_leaves_is_explained_and_comes_back():
  config = NoisyGradesConfig(contradictions=2, min_trust=0.5)
  bad = _group(['84'] * 3 + ['94'], [0, 0, 0, 1.0], source='rows.jsonl:1')
  hard = _group(['1', '2', '3', '4'], [0, 0, 0, 1.0], source='rows.jsonl:2')
  good = _group(['5'] * 4, [1.0] * 4, source='rows.jsonl:3')
  state, kept = NoisyGradesState(), []
  for step in (1, 2, 3):
    groups, state, told = noisy_grades.apply([bad, hard, good], config, state, step)
    kept.append([group[0].item.source for group in groups])
  assert (
    kept
    == [['rows.jsonl:1', 'rows.jsonl:2', 'rows.jsonl:3']] + [['rows.jsonl:2', 'rows.jsonl:3']] * 2
  )
  assert told['noisy_grades/groups_contradicted'] == told['noisy_grades/excluded_rows'] == 1
  (line,) = noisy_grades.excluded_rows(state)
  assert (line['row'], line['since'], line['first_contradiction']) == ('rows.jsonl:1', 2, 1)
  assert (line['answer'], line['share'], line['grade']) == ('84', 0.75, 0.0)
  assert 'in 3 consecutive visits' in line['why']
  mended = _group(['84'] * 4, [1.0] * 4, source='rows.jsonl:1')
  saved = json.loads(json.dumps(dataclasses.asdict(state)))
  groups, state, _ = noisy_grades.apply([mended], config, NoisyGradesState(**saved), 4)
  assert groups == [mended] and noisy_grades.excluded_rows(state) == []


def test_hits_that_most_samples_contradict_are_left_out_of_their_step_alone():
  config = NoisyGradesConfig(min_plausibility=0.3)
  bad, hard = _group(['84'] * 7 + ['94'], [0] * 7 + [1.0]), _group('12345678', [1.0] + [0] * 7)
  groups, state, told = noisy_grades.apply([bad, hard], config, NoisyGradesState(), 1)
  assert groups == [hard] and state == NoisyGradesState() and told['noisy_grades/groups_implausible'] == 1


# ------------------------------------------------------------------ whole runs


def _config(directory, **settings):
  """GRPO steps, each over all of its 4 rows; not to the end, where report and export are made."""
  config = tiny.config(directory)
  config.stages = config.stages[1:]
  config.data.train = tiny.write_rows(directory / 'train.jsonl', tiny.rows(4))
  config.rollout.prompts_per_step, config.evaluate.every, config.evaluate.rows = 4, 0, 1
  config.stages[0].steps, config.checkpoints.every = 3, 0
  config.noisy_grades = NoisyGradesConfig(**settings)
  return config


def _rewards(workdir):
  return [
    [e['reward'] for e in episodes.read(workdir, step, ['reward'])]
    for step in episodes.steps(workdir)
  ]


ON = dict(contradictions=1, min_share=0.01, min_trust=0.0, right_from=0.9)


def test_a_run_that_leaves_rows_out_records_them_and_goes_on_as_if_never_stopped(tmp_path):
  config = _config(tmp_path, **ON)
  rft_jax.train(config, tmp_path / 'whole', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=1)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  whole, parts = (metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('whole', 'parts'))
  timed = ('seconds/', 'compilations')
  assert [{k: v for k, v in row.items() if not k.startswith(timed)} for row in whole] == [
    {k: v for k, v in row.items() if not k.startswith(timed)} for row in parts
  ]
  texts = [(tmp_path / name / 'excluded_rows.jsonl').read_text() for name in ('whole', 'parts')]
  assert texts[0] == texts[1]
  lines = [json.loads(line) for line in texts[0].splitlines()]
  assert len(lines) == whole[-1]['noisy_grades/excluded_rows'] > 0
  assert all('train.jsonl:' in line['row'] and line['why'] for line in lines)
  assert [len(rewards) for rewards in _rewards(tmp_path / 'whole')] == [16] * 2  # all on record


def test_settings_that_change_no_grade_and_leave_nothing_out_change_nothing(tmp_path):
  plain = _config(tmp_path)
  rft_jax.train(plain, tmp_path / 'plain', quiet=True, stop_at_step=1)
  on = _config(tmp_path, clip=True, min_plausibility=1e-9, contradictions=99)
  rft_jax.train(on, tmp_path / 'on', quiet=True, stop_at_step=1)
  rows = [metrics.read(tmp_path / name / 'metrics.jsonl') for name in ('plain', 'on')]
  assert _rewards(tmp_path / 'plain') == _rewards(tmp_path / 'on')
  assert [row['loss'] for row in rows[0]] == [row['loss'] for row in rows[1]]
  assert np.any([row['grad_norm'] > 0 for row in rows[0]])
  assert not any(name.startswith('noisy_grades/') for name in rows[0][0])
  assert not (tmp_path / 'on' / 'excluded_rows.jsonl').exists()
