"""Jobs of OpenAI's API: what each field becomes, and what is told of the others."""

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


def _write(folder, *, reinforcement=None, **job):
  tiny.write_rows(folder / 'train.jsonl', tiny.rows(40))
  tiny.write_rows(folder / 'validation.jsonl', tiny.rows(4))
  method = {'grader': GRADER} | (reinforcement or {})
  made = {
    'model': 'o4-mini-2025-04-16',
    'training_file': 'train.jsonl',
    'validation_file': 'validation.jsonl',
    'method': {'type': 'reinforcement', 'reinforcement': method},
  } | job
  (folder / 'job.json').write_text(json.dumps(made))
  return folder / 'job.json'


def test_every_hyperparameter_finds_its_place(tmp_path):
  schema = {'type': 'json_schema', 'name': 'n', 'schema': {'type': 'object'}}
  config = openai_job.read(
    _write(
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
  assert config.problems() == ['model.' + config.model.validate()[0]]  # the base is yours to name


def test_every_auto_is_told(tmp_path):
  config = openai_job.read(
    _write(tmp_path, reinforcement={'hyperparameters': {'batch_size': 'auto', 'n_epochs': 'auto'}})
  )
  told = ' '.join(config.notes)
  for name in openai_job.HYPERPARAMETERS:
    assert f'{name}="auto"' in told
  assert 'batch_size="auto": 16' in told and "reasoning_effort='default'" in told
  assert "model='o4-mini-2025-04-16' cannot be had" in told


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'reinforcement': {'hyperparameters': {'batchsize': 4}}}, "'batchsize' (did you mean"),
    ({'reinforcement': {'hyperparameters': {'n_epochs': 99}}}, 'n_epochs=99 is outside 1..50'),
    ({'reinforcement': {'hyperparameters': {'batch_size': True}}}, 'batch_size=True'),
    ({'reinforcement': {'hyperparameters': {'reasoning_effort': 'huge'}}}, "'huge'"),
    ({'hyperparameters': {'n_epochs': 3}}, 'mean nothing for reinforcement'),
    ({'integrations': [{'type': 'wandb'}]}, 'integrations is not used'),
    ({'suffix': 'x'}, 'suffix is not used'),
  ],
)
def test_what_means_nothing_here_is_named(tmp_path, changes, words):
  assert words in ' '.join(openai_job.read(_write(tmp_path, **changes)).notes)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'etest_samples': 'x'}, "'etest_samples'"),
    ({'training_file': 'file-abc123'}, 'a file of the hosted service'),
    ({'training_file': None}, 'training_file=None'),
    ({'training_file': 'absent.jsonl'}, 'no rows there'),
    ({'method': {'type': 'supervised', 'supervised': {}}}, "method.type='supervised'"),
    ({'method': 'reinforcement'}, 'need {"training_file"'),
    ({'reinforcement': {'grader': None}}, 'grader is missing'),
    ({'reinforcement': {'responseformat': {}}}, "'responseformat' (did you mean"),
  ],
)
def test_a_job_that_is_none_is_refused(tmp_path, changes, words):
  with pytest.raises(ValueError) as caught:
    openai_job.read(_write(tmp_path, **changes))
  assert words in str(caught.value) and 'job.json' in str(caught.value)


def test_a_job_runs_through_the_config_file(tmp_path):
  config = load('openai_job').get_config(
    str(
      _write(
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
    assert any('batch_size' not in one and 'eval_interval="auto"' in one for one in components.warnings)
  values = rft_jax.train(config, tmp_path / 'work', quiet=True)
  assert 0 <= values['grade']['mean'] <= 1


def test_the_config_file_asks_for_its_job():
  with pytest.raises(ValueError, match='openai_job.py:job.json'):
    load('openai_job').get_config()
