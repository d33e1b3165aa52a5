"""Compared policies: those of a run, those of other runs, and reference levels."""

import random

import fake_runs
import pytest

from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics
from rft_jax.report import compared_policies, report, verdict
from rft_jax.report import workdir as runs


def test_a_run_of_one_stage_is_compared_with_the_base(tmp_path):
  fake_runs.write(tmp_path, stages=[{'algorithm': 'sft', 'steps': sum(fake_runs.STEPS)}])
  run = runs.read(tmp_path)
  run_policies = compared_policies.from_run(run, [])
  assert [policy.label for policy in run_policies] == [
    'Base checkpoint, step 0',
    'After fine-tuning: sft, step 200',
  ]
  summary = verdict.summarize(run_policies, [], run.stage_of(200))
  assert summary['headline'].startswith('Fine-tuning helped: the sampled held-out grade rose')


def test_a_run_stopped_in_its_last_stage_is_judged_so_far(tmp_path):
  fake_runs.write(tmp_path, steps=140)
  run, omissions = runs.read(tmp_path), []
  run_policies = compared_policies.from_run(run, omissions)
  assert run_policies[-1].label == 'During reinforcement: grpo, step 140' and omissions == []
  summary = verdict.summarize(run_policies, [], run.stage_of(140))
  assert summary['headline'].startswith('Reinforcement helped so far: ')


@pytest.mark.parametrize(
  'change, reason',
  [
    ({'gene': 'other'}, 'its held-out rows are not the same'),
    ({'messages': []}, 'its held-out rows are not the same'),
    ({'solution': 'another one'}, ''),
  ],
)
def test_runs_are_paired_only_over_the_same_prompts_and_references(
  folder, tmp_path, change, reason
):
  episodes = fake_runs.answers(0.5)
  episodes = [
    episode._replace(item=episode.item._replace(row=episode.item.row | change))
    for episode in episodes
  ]
  with metrics.Metrics(tmp_path) as log:
    log.write_evaluation(9, 'validation', 60, fake_runs.evaluation(random.Random(1), 0.5))
  episode_files.write(tmp_path / 'evaluations', 9, episodes)
  run, omissions = runs.read(folder / 'run'), []
  last = compared_policies.from_run(run, [])[-1]
  (other,) = compared_policies.from_other_runs(run, (f'x={tmp_path}',), last, omissions)
  assert other.unpaired_reason == reason and len(omissions) == bool(reason)
  assert (verdict.metric_change(other, last, 'grade') == {}) == bool(reason)


def test_a_reference_of_another_form_is_named(tmp_path):
  path = tmp_path / 'reference.json'
  path.write_text('{"Bayes": 0.8}')
  with pytest.raises(ValueError, match="reference.json: 'Bayes' is 0.8, need an object"):
    report.write(tmp_path, title='t', config=report.ReportConfig(reference=str(path)))


def test_references_are_flat_or_those_of_a_task_and_can_be_selected(folder, tmp_path):
  task, flat = folder / 'task.json', tmp_path / 'flat.json'
  flat.write_text('{"Bayes-optimal": {"mean": 0.8}}')
  levels = lambda reference: list(compared_policies.reference_levels(reference, []))
  assert levels(str(task)) == ['Bayes optimal', 'Reader', 'Every vote']
  assert levels(f'{task}:every_vote, reader') == ['Every vote', 'Reader']
  assert levels(str(flat)) == ['Bayes-optimal'] and levels('') == []
  with pytest.raises(ValueError, match="no reference 'writer', need one of bayes_optimal, reader"):
    levels(f'{task}:writer')


def test_a_missing_reference_file_is_only_mentioned(tmp_path):
  for reference in ('gone.json', 'gone.json:bayes_optimal'):
    omissions = []
    assert compared_policies.reference_levels(str(tmp_path / reference), omissions) == {}
    assert omissions == [f'Reference levels: there is no file {tmp_path / "gone.json"}.']
