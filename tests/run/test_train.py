"""The main job, end to end: continued = uninterrupted, what lies in a workdir, refusals."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

import rft_jax
from rft_jax import graders
from rft_jax.config import Stage
from rft_jax.errors import GraderFaults, InputError
from rft_jax.records import episodes
from rft_jax.records import metrics as metrics_file
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build, compilation
from rft_jax.run.results import export_checkpoint
from rft_jax.training.optim import OptimConfig

CLOCKS = ('seconds/', 'compilations')  # of the process, not the run


def _policy_and_optimizer(workdir, step):
  """Every saved array of a checkpoint, read back without a model."""
  import orbax.checkpoint as ocp

  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / f'step_{step:06d}'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return {
      f'{part}/{name}': np.asarray(value)
      for part in ('policy', 'optimizer')
      for name, value in checkpointer.restore(folder / part).items()
    }


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  return tmp_path_factory.mktemp('run')


@pytest.fixture(scope='module')
def config(directory):
  made = tiny.config(directory)
  made.objective.kl_coef = 0.05  # with a reference, so that its restore is under test too
  made.update.updates_per_batch = 2
  return made


@pytest.fixture(scope='module')
def whole(directory, config):
  """Six steps without a stop: a warm-up of three, then GRPO."""
  rft_jax.train(config, directory / 'whole', quiet=True)
  return directory / 'whole'


def test_nothing_is_compiled_after_the_first_step_of_a_stage(whole):
  before = compilation.count()
  jax.jit(lambda x: x + before)(1)
  assert compilation.count() > before  # it does count
  counts = {row['step']: row['compilations'] for row in metrics_file.read(whole / 'metrics.jsonl')}
  assert [counts[step] for step in (2, 3, 5, 6)] == [0, 0, 0, 0]


@pytest.mark.parametrize('stop', [2, 3, 4])
def test_stopped_and_continued_equals_uninterrupted(directory, config, whole, stop):
  workdir = directory / f'stopped_{stop}'
  rft_jax.train(config, workdir, stop_at_step=stop, quiet=True)
  assert Checkpoints(workdir / 'checkpoints').latest() == stop
  rft_jax.train(config, workdir, quiet=True)
  ours, theirs = (_policy_and_optimizer(path, 6) for path in (workdir, whole))
  assert ours.keys() == theirs.keys() and len(ours) > 30
  for name in ours:
    assert np.array_equal(ours[name], theirs[name]), name
  for step in (4, 5, 6):
    assert episodes.read(workdir, step) == episodes.read(whole, step)
    assert {e['policy_step'] for e in episodes.read(whole, step)} == {step - 1}
  assert episodes.steps(workdir) == episodes.steps(whole) == [4, 5, 6]
  for file in ('metrics.jsonl', 'evaluation.jsonl'):
    rows = [
      [
        {k: v for k, v in row.items() if not k.startswith(CLOCKS)}
        for row in metrics_file.read(path / file)
      ]
      for path in (workdir, whole)
    ]
    assert rows[0] == rows[1], file


def test_training_changes_the_policy_and_its_record_is_complete(whole, config):
  names = {path.name for path in whole.iterdir()}
  assert names >= {
    'manifest.json',
    'metrics.jsonl',
    'evaluation.jsonl',
    'episodes',
    'checkpoints',
    'report.html',
    'export',
  }
  first, last = _policy_and_optimizer(whole, 2), _policy_and_optimizer(whole, 6)
  assert all(not np.array_equal(first[n], last[n]) for n in first if n.startswith('policy/'))
  rows = metrics_file.read(whole / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5, 6]
  assert rows[5]['num_tokens'] == sum(row['step_tokens'] for row in rows)
  assert abs(rows[3]['sampling/sampling_logp_difference/mean']) < 1e-5
  held_out = episodes.read(whole / 'evaluations', 6)
  assert {episode['policy_step'] for episode in held_out} == {6}
  manifest = json.loads((whole / 'manifest.json').read_text())
  assert manifest['config']['stages'][1]['algorithm'] == 'grpo'
  assert manifest['isolation'] == graders.isolation_level()
  assert all(entry['sha256'] for entry in manifest['sha256']['data']['train'])


def test_every_step_has_its_event_under_the_hosted_names(whole, config):
  events = [json.loads(line) for line in (whole / 'events.jsonl').read_text().splitlines()]
  assert len({event['id'] for event in events}) == len(events)
  steps = [event['data'] for event in events if event['type'] == 'metrics']
  assert [data['step'] for data in steps] == [1, 2, 3, 4, 5, 6]
  assert steps[0]['train_loss'] > 0 and 'scores' not in steps[0]  # supervised
  metrics = metrics_file.read(whole / 'metrics.jsonl')
  held_out = {row['step']: row for row in metrics_file.read(whole / 'evaluation.jsonl')}
  for step in (4, 5, 6):
    data = steps[step - 1]
    assert data['train_mean_reward'] == pytest.approx(metrics[step - 1]['reward'])
    assert data['scores']['graders'][0]['train_reward_mean'] == pytest.approx(
      metrics[step - 1]['reward']
    )  # nothing is ungradable here: one grader, one reward
    assert data['full_valid_mean_reward'] == (
      pytest.approx(held_out[step]['grade']['mean']) if step in held_out else None
    )
    assert data['errors']['train_grader_fault_count'] == 0
    assert data['timing']['step']['full_iteration'] >= data['timing']['step']['sampling'] > 0
    assert data['timing']['graders'][0]['train_execution_latency_mean'] > 0
  assert f'Step 6/6 , train mean reward={metrics[5]["reward"]:.2f}, full validation' in next(
    event['message'] for event in events if event['data'].get('step') == 6
  )
  assert events[-1]['message'] == 'The run has completed all its steps'


def test_evaluate_of_the_export_repeats_the_runs_own_evaluation(whole, config):
  best = Checkpoints(whole / 'checkpoints').best()
  recorded = [row for row in metrics_file.read(whole / 'evaluation.jsonl') if row['step'] == best]
  values = rft_jax.evaluate(config, model=str(whole / 'export'))
  assert values['grade'] == recorded[0]['grade']
  assert values['mean_tokens'] == recorded[0]['mean_tokens']


def test_eight_devices_train_like_one(directory, config, whole):
  config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
  try:
    rft_jax.train(config, directory / 'eight', stop_at_step=1, quiet=True)
  finally:
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = -1, 1, 1
  rows = [metrics_file.read(path / 'metrics.jsonl')[0] for path in (directory / 'eight', whole)]
  for name in ('loss', 'grad_norm', 'entropy'):
    np.testing.assert_allclose(rows[0][name], rows[1][name], rtol=1e-5)


def test_a_workdir_of_another_run_is_refused_and_left_alone(directory, whole, config):
  before = (whole / 'manifest.json').read_bytes()
  config.seed = 5
  try:
    with pytest.raises(InputError, match='seed') as caught:
      rft_jax.train(config, whole, quiet=True)
  finally:
    config.seed = 0
  assert 'workdir' in str(caught.value)
  assert (whole / 'manifest.json').read_bytes() == before


def test_a_run_may_be_extended(directory, config, whole):
  workdir = directory / 'extended'
  shutil.copytree(whole, workdir)
  stages = config.stages
  config.stages = (stages[0], Stage(algorithm='grpo', steps=4, optim=stages[1].optim))
  try:
    rft_jax.train(config, workdir, quiet=True)
  finally:
    config.stages = stages
  assert metrics_file.read(workdir / 'metrics.jsonl')[-1]['step'] == 7


def test_a_missing_checkpoint_names_those_there_are(whole, config):
  with pytest.raises(InputError, match=r'no checkpoint of step 99; there are .*6'):
    export_checkpoint(config, whole, which='99')


def test_rows_that_end_in_an_assistant_turn_serve_warm_up_and_reinforcement(tmp_path):
  config = tiny.config(tmp_path)
  config.sft.target = ''
  taught = [
    dict(row, messages=row['messages'] + [{'role': 'assistant', 'content': '4'}])
    for row in tiny.rows()
  ]
  tiny.write_rows(tmp_path / 'train.jsonl', taught)
  tiny.write_rows(tmp_path / 'validation.jsonl', taught[:3])
  with build.components(config) as components:
    assert components.train[0][0].target_ids == list(components.chat.encode(['4'])[0]) + [
      components.chat.stop_ids[0]
    ]
    assert components.train[1][0].prompt_ids == components.chat.prompt_ids(tiny.rows()[0]['messages'])
  with build.components(config, training=False) as components:
    assert len(components.validation) == 3 and not components.train


DYING = {
  'type': 'python',
  'name': 'dies',
  'source': 'import os\ndef grade(sample, item):\n  os._exit(3)\n',
}


def test_all_groups_dropped_still_makes_a_step(tmp_path):
  config = tiny.config(
    tmp_path,
    grader=DYING,
    stages=(Stage(algorithm='grpo', steps=1, optim=OptimConfig(learning_rate=1e-2)),),
  )
  config.rollout.max_grader_faults = 1.0
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  (row,) = metrics_file.read(tmp_path / 'run' / 'metrics.jsonl')
  assert row['groups_dropped'] == 8 and 'loss' not in row


def test_too_many_grader_faults_stop_the_run_and_say_why(tmp_path):
  config = tiny.config(tmp_path, grader=DYING)
  with pytest.raises(GraderFaults) as caught:
    rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert 'worker_killed' in str(caught.value) and 'max_grader_faults' in str(caught.value)
