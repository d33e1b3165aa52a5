"""What the report compares: the arms of a run, other runs, reference levels, and the verdict."""

import random

import fake_runs
import pytest

from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics
from rft_jax.report import compared_policies, comparison, held_out, report, verdict
from rft_jax.report import workdir as runs


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('runs')
  fake_runs.write_all(folder)
  return folder


def test_a_run_of_one_stage_is_compared_with_the_base(tmp_path):
  fake_runs.write(tmp_path, stages=[{'algorithm': 'sft', 'steps': sum(fake_runs.STEPS)}])
  run = runs.read(tmp_path)
  own = compared_policies.of_run(run, [])
  assert [arm.label for arm in own] == [
    'Base checkpoint, step 0',
    'After fine-tuning: sft, step 200',
  ]
  said = verdict.give(own, [], run.stage_of(200))
  assert said['headline'].startswith('Fine-tuning helped: the sampled held-out grade rose')


def test_a_run_stopped_in_its_last_stage_is_judged_so_far(tmp_path):
  fake_runs.write(tmp_path, steps=140)
  run, excluded_rows = runs.read(tmp_path), []
  own = compared_policies.of_run(run, excluded_rows)
  assert own[-1].label == 'During reinforcement: grpo, step 140' and excluded_rows == []
  said = verdict.give(own, [], run.stage_of(140))
  assert said['headline'].startswith('Reinforcement helped so far: ')


@pytest.mark.parametrize(
  'change, why',
  [
    ({'gene': 'other'}, 'its held-out rows are not the same'),
    ({'messages': []}, 'its held-out rows are not the same'),
    ({'solution': 'told otherwise'}, ''),
  ],
)
def test_runs_are_paired_only_over_the_same_questions(folder, tmp_path, change, why):
  episodes = fake_runs.answers(0.5)
  episodes = [
    episode._replace(item=episode.item._replace(row=episode.item.row | change))
    for episode in episodes
  ]
  with metrics.Metrics(tmp_path) as log:
    log.evaluation(9, 'validation', 60, fake_runs.evaluation(random.Random(1), 0.5))
  episode_files.write(tmp_path / 'evaluations', 9, episodes)
  run, excluded_rows = runs.read(folder / 'run'), []
  last = compared_policies.of_run(run, [])[-1]
  (other,) = compared_policies.of_others(run, (f'x={tmp_path}',), last, excluded_rows)
  assert other.differs == why and len(excluded_rows) == bool(why)
  assert (verdict.change(other, last, 'grade') == {}) == bool(why)


def arm(step, mean, half, answers=None, **values):
  row = {
    'step': step,
    'split': 'validation',
    'rows': 50,
    'grade': fake_runs.interval(mean, half),
    **values,
  }
  return compared_policies.ComparedPolicy('before', f'step {step}', row, None, answers or {})


@pytest.mark.parametrize(
  'after, half, tone',
  [
    (0.60, 0.05, 'better'),
    (0.20, 0.05, 'worse'),
    (0.45, 0.05, 'same'),
    # Half widths 0.05 make a half width of 0.0707: intervals that overlap can still be apart.
    (0.47, 0.05, 'same'),
    (0.48, 0.05, 'better'),
  ],
)
def test_the_tone_follows_the_interval_of_the_change(after, half, tone):
  assert verdict.give([arm(0, 0.40, 0.05), arm(9, after, half)], [])['tone'] == tone


def test_a_paired_change_is_preferred():
  before, after = (
    {n: held_out.Answers({'reward': grade}, [{'reward': grade}]) for n, grade in enumerate(grades)}
    for grades in ([0.0, 0.5, 1.0], [0.1, 0.7, 1.3])
  )
  said = verdict.give([arm(0, 0.40, 0.05, before), arm(9, 0.45, 0.05, after)], [])
  assert said['tone'] == 'better'
  assert said['details'] == [
    'Against “step 0”: +0.20 [0.09, 0.31] sampled, paired over 3 '
    'held-out rows; in brackets 95 % intervals.'
  ]


def test_pairing_takes_out_how_hard_a_row_is():
  def answers(grades):
    return {n: held_out.Answers({}, [{'reward': grade}]) for n, grade in enumerate(grades)}

  before, after = answers([0.0, 0.5, 1.0, 0.2]), answers([0.1, 0.6, 1.2, None])
  change = held_out.paired_change(before, after)
  # Changes 0.1, 0.1, 0.2: mean 2/15, standard deviation 0.1 / sqrt(3), over sqrt(3) rows.
  half = 1.96 * 0.1 / 3
  assert change == pytest.approx(
    {'mean': 2 / 15, 'low': 2 / 15 - half, 'high': 2 / 15 + half, 'rows': 3}
  )
  assert held_out.paired_change(before, {}) is None


def test_better_means_less_of_what_is_bad():
  first = arm(
    0,
    0.4,
    0.05,
    truncated=fake_runs.interval(0.3, 0.02),
    mean_tokens=fake_runs.interval(0.9, 0.01),
    unparsable=fake_runs.interval(0.1, 0.1),
  )
  last = arm(
    9,
    0.2,
    0.05,
    truncated=fake_runs.interval(0.1, 0.02),
    mean_tokens=fake_runs.interval(0.2, 0.01),
    unparsable=fake_runs.interval(0.05, 0.1),
  )
  words = {row['name']: row['word'] for row in comparison.measures([first, last])['rows']}
  assert words == {
    'grade': 'worse',
    'truncated': 'better',
    'mean_tokens': '',
    'unparsable': 'unclear',
  }


def test_a_reference_of_another_form_is_named(tmp_path):
  path = tmp_path / 'reference.json'
  path.write_text('{"Bayes": 0.8}')
  with pytest.raises(ValueError, match="reference.json: 'Bayes' is 0.8, need an object"):
    report.write(tmp_path, title='t', config=report.ReportConfig(reference=str(path)))


def test_references_are_flat_or_of_a_task_and_can_be_chosen(folder, tmp_path):
  task, flat = folder / 'task.json', tmp_path / 'flat.json'
  flat.write_text('{"Bayes-optimal": {"mean": 0.8}}')
  levels = lambda reference: list(compared_policies.reference_levels(reference, []))
  assert levels(str(task)) == ['Bayes optimal', 'Reader', 'Every vote']
  assert levels(f'{task}:every_vote, reader') == ['Every vote', 'Reader']
  assert levels(str(flat)) == ['Bayes-optimal'] and levels('') == []
  with pytest.raises(ValueError, match="no reference 'writer', need one of bayes_optimal, reader"):
    levels(f'{task}:writer')


def test_a_reference_file_that_is_gone_does_not_cost_the_report(tmp_path):
  for reference in ('gone.json', 'gone.json:bayes_optimal'):
    excluded_rows = []
    assert compared_policies.reference_levels(str(tmp_path / reference), excluded_rows) == {}
    assert excluded_rows == [f'Reference levels: there is no file {tmp_path / "gone.json"}.']
