"""Training end to end: stop and continue, the files of a workdir, refusals, grader faults."""

import json
import shutil

import numpy as np
import pytest
import tiny
from workdirs import assert_same_runs, checkpoint_arrays

import rft_jax
from rft_jax import graders
from rft_jax.config import Stage
from rft_jax.errors import GraderFaults, InputError
from rft_jax.records import episodes, metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.training.optim import OptimConfig


@pytest.mark.parametrize('stop', [2, 3, 4])
def test_stopped_and_continued_equals_uninterrupted(run_directory, config, finished, stop):
  workdir = run_directory / f'stopped_{stop}'
  rft_jax.train(config, workdir, stop_at_step=stop, quiet=True)
  assert Checkpoints(workdir / 'checkpoints').latest() == stop
  rft_jax.train(config, workdir, quiet=True)
  assert_same_runs(workdir, finished, 6)
  for step in (4, 5, 6):
    assert episodes.read(workdir, step) == episodes.read(finished, step)
    assert {e['policy_step'] for e in episodes.read(finished, step)} == {step - 1}
  assert episodes.steps(workdir) == episodes.steps(finished) == [4, 5, 6]


def test_training_changes_every_parameter_and_writes_every_file(finished):
  names = {path.name for path in finished.iterdir()}
  assert names >= {
    'manifest.json',
    'metrics.jsonl',
    'evaluation.jsonl',
    'episodes',
    'checkpoints',
    'report.html',
    'export',
  }
  first, last = checkpoint_arrays(finished, 2), checkpoint_arrays(finished, 6)
  assert not [
    name for name in first if name.startswith('policy/') and np.array_equal(first[name], last[name])
  ]
  rows = metrics.read(finished / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert rows[5]['num_tokens'] == sum(row['step_tokens'] for row in rows)
  assert abs(rows[3]['sampling/sampling_logp_difference/mean']) < 1e-5
  held_out = episodes.read(finished / 'evaluations', 6)
  assert {episode['policy_step'] for episode in held_out} == {6}
  manifest = json.loads((finished / 'manifest.json').read_text())
  assert manifest['config']['stages'][1]['algorithm'] == 'grpo'
  assert manifest['isolation'] == graders.isolation_level()
  assert all(entry['sha256'] for entry in manifest['sha256']['data']['train'])


def test_eight_devices_train_like_one(run_directory, config, finished):
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
  rft_jax.train(config, run_directory / 'eight', stop_at_step=1, quiet=True)
  row, expected = (
    metrics.read(workdir / 'metrics.jsonl')[0] for workdir in (run_directory / 'eight', finished)
  )
  for name in ('loss', 'grad_norm', 'entropy'):
    np.testing.assert_allclose(row[name], expected[name], rtol=1e-5)


def test_a_workdir_of_another_run_is_refused_and_unchanged(config, finished):
  before = (finished / 'manifest.json').read_bytes()
  config.seed = 5
  with pytest.raises(InputError, match='seed') as caught:
    rft_jax.train(config, finished, quiet=True)
  assert 'workdir' in str(caught.value)
  assert (finished / 'manifest.json').read_bytes() == before


def test_the_last_stage_of_a_finished_run_may_be_extended(run_directory, config, finished):
  workdir = run_directory / 'extended'
  shutil.copytree(finished, workdir)
  config.stages[1].steps = 4
  rft_jax.train(config, workdir, quiet=True)
  assert metrics.read(workdir / 'metrics.jsonl')[-1]['step'] == 7


CRASHING = {
  'type': 'python',
  'name': 'crashes',
  'source': 'import os\ndef grade(sample, item):\n  os._exit(3)\n',
}


def test_a_step_whose_groups_are_all_dropped_has_no_update(tmp_path):
  config = tiny.config(
    tmp_path,
    grader=CRASHING,
    stages=(Stage(algorithm='grpo', steps=1, optim=OptimConfig(learning_rate=1e-2)),),
  )
  config.rollout.max_grader_faults = 1.0
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  (row,) = metrics.read(tmp_path / 'run' / 'metrics.jsonl')
  assert row['groups_dropped'] == 8 and 'loss' not in row


def test_too_many_grader_faults_stop_the_run_with_the_reason(tmp_path):
  config = tiny.config(tmp_path, grader=CRASHING)
  with pytest.raises(GraderFaults) as caught:
    rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert 'worker_killed' in str(caught.value) and 'max_grader_faults' in str(caught.value)
