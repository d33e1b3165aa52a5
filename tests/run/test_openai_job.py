"""Jobs of OpenAI's API: what each field becomes, notes on unused fields, and refusals."""

import json

import pytest
import tiny
from config_files import load

import rft_jax
from rft_jax.run import build, openai_job

GRADER = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}


def write_job(folder, *, reinforcement=None, **job):
  tiny.write_rows(folder / 'train.jsonl', tiny.rows(40))
  tiny.write_rows(folder / 'validation.jsonl', tiny.rows(4))
  method = {'grader': GRADER} | (reinforcement or {})
  fields = {
    'model': 'o4-mini-2025-04-16',
    'training_file': 'train.jsonl',
    'validation_file': 'validation.jsonl',
    'method': {'type': 'reinforcement', 'reinforcement': method},
  } | job
  (folder / 'job.json').write_text(json.dumps(fields))
  return folder / 'job.json'


def test_every_hyperparameter_has_a_field(tmp_path):
  schema = {'type': 'json_schema', 'name': 'n', 'schema': {'type': 'object'}}
  config = openai_job.read(
    write_job(
      tmp_path,
      seed=7,
      reinforcement={
        'response_format': schema,
        'hyperparameters': {
          'batch_size': 8,
          'n_epochs': 3,
          'learning_rate_multiplier': 2.0,
          'eval_samples': 2,
          'compute_multiplier': 0.5,
          'eval_interval': 5,
          'reasoning_effort': 'low',
        },
      },
    )
  )
  assert config.data.train == str(tmp_path / 'train.jsonl')
  assert config.stages[0].algorithm == 'grpo' and config.stages[0].steps == 3 * 40 // 8
  assert config.stages[0].optim.learning_rate == 2e-6
  assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (8, 4)
  assert config.rollout.max_new_tokens == 512
  assert (config.evaluate.every, config.evaluate.samples_per_prompt) == (5, 2)
  assert (config.seed, config.grader, config.response_format) == (7, GRADER, schema)
  assert not [note for note in config.notes if '"auto"' in note]
  assert config.problems() == ['model.' + config.model.validate()[0]]  # given on the command line


def test_every_auto_has_a_note(tmp_path):
  config = openai_job.read(
    write_job(
      tmp_path, reinforcement={'hyperparameters': {'batch_size': 'auto', 'n_epochs': 'auto'}}
    )
  )
  notes = ' '.join(config.notes)
  for name in openai_job.HYPERPARAMETERS:
    assert f'{name}="auto"' in notes
  assert 'batch_size="auto": 16' in notes and "reasoning_effort='default'" in notes
  assert "model='o4-mini-2025-04-16' is a hosted model" in notes


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'reinforcement': {'hyperparameters': {'batchsize': 4}}}, "'batchsize' (did you mean"),
    ({'reinforcement': {'hyperparameters': {'n_epochs': 99}}}, 'n_epochs=99 is outside 1..50'),
    ({'reinforcement': {'hyperparameters': {'batch_size': True}}}, 'batch_size=True'),
    ({'reinforcement': {'hyperparameters': {'reasoning_effort': 'huge'}}}, "'huge'"),
    ({'hyperparameters': {'n_epochs': 3}}, 'have no effect on reinforcement'),
    ({'integrations': [{'type': 'wandb'}]}, 'integrations is not used'),
    ({'suffix': 'x'}, 'suffix is not used'),
  ],
)
def test_unused_fields_have_a_note(tmp_path, changes, message):
  assert message in ' '.join(openai_job.read(write_job(tmp_path, **changes)).notes)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'etest_samples': 'x'}, "'etest_samples'"),
    ({'training_file': 'file-abc123'}, 'a file of the hosted service'),
    ({'training_file': None}, 'training_file=None'),
    ({'training_file': 'absent.jsonl'}, 'it has no rows'),
    ({'method': {'type': 'supervised', 'supervised': {}}}, "method.type='supervised'"),
    ({'method': 'reinforcement'}, 'need {"training_file"'),
    ({'reinforcement': {'grader': None}}, 'grader is missing'),
    ({'reinforcement': {'responseformat': {}}}, "'responseformat' (did you mean"),
  ],
)
def test_an_invalid_job_is_refused_with_the_reason(tmp_path, changes, message):
  with pytest.raises(ValueError) as caught:
    openai_job.read(write_job(tmp_path, **changes))
  assert message in str(caught.value) and 'job.json' in str(caught.value)


@pytest.mark.full
def test_a_job_runs_through_the_config_file(tmp_path):
  config = load('openai_job').get_config(
    str(
      write_job(
        tmp_path,
        reinforcement={
          'hyperparameters': {'batch_size': 4, 'n_epochs': 1, 'compute_multiplier': 0.25}
        },
      )
    )
  )
  config.model.source = tiny.write_base(tmp_path / 'base')
  config.rollout.max_new_tokens = 6
  config.stages[0].steps = 1
  with build.components(config) as components:
    auto_notes = [warning for warning in components.warnings if '="auto"' in warning]
    assert any('eval_interval' in note for note in auto_notes)
    assert not any('batch_size' in note for note in auto_notes)
  values = rft_jax.train(config, tmp_path / 'work', quiet=True)
  assert 0 <= values['grade']['mean'] <= 1


def test_the_config_file_needs_a_job():
  with pytest.raises(ValueError, match='openai_job.py:job.json'):
    load('openai_job').get_config()
