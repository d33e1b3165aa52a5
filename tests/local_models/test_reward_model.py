"""Reward models as graders of a run, alone or in a multi, and as the initial critic of PPO."""

import json
import shutil
import subprocess
import sys
import threading

import config_files
import jax
import numpy as np
import pytest
import tiny
from paths import ROOT

import rft_jax
from rft_jax import graders, hf, models, sharding
from rft_jax.config import Stage
from rft_jax.data import chat as chats
from rft_jax.errors import InputError
from rft_jax.graders import reward_model as grader_module
from rft_jax.local_models import reward_model
from rft_jax.records import manifest
from rft_jax.records import metrics as metrics_file
from rft_jax.rollout import grading_queue
from rft_jax.training.optim import OptimConfig

PROMPTS = [[{'role': 'user', 'content': '1 + 1'}], [{'role': 'user', 'content': 'twenty + 2'}]]


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """An HF directory with a reward model whose head is not 0."""
  root = tmp_path_factory.mktemp('reward')
  source = tiny.write_base(root / 'base')
  policy, config = hf.load(source)
  critic = models.make_critic(policy, 'head')
  critic.score.kernel[...] = jax.random.normal(jax.random.key(7), (config.dim, 1))
  return str(hf.export_reward_model(critic, config, trunk=policy, to=root / 'rm', source=source))


@pytest.fixture(scope='module')
def scorer(directory):
  return reward_model.RewardModel(directory, mesh=sharding.make_mesh())


def reference_score(directory, messages, answer):
  """Returns the value of the head at the end of the turn, from the transcript as one row."""
  critic, _ = hf.load_reward_model(directory)
  chat = chats.make(directory, chats.ChatConfig())
  prompt, completion = chat.supervised_ids([*messages, {'role': 'assistant', 'content': answer}])
  assert completion[-1] in chat.stop_ids
  tokens = np.array([prompt + completion], np.int32)
  return float(critic(critic.decoder.hidden(tokens, lengths=np.array([tokens.size])))[0, -1])


@pytest.mark.full
def test_scores_are_values_at_the_end_of_the_turn_in_any_batch(directory, scorer):
  pairs = [
    (PROMPTS[0], '2'),
    (PROMPTS[1], 'twenty-two'),
    (PROMPTS[0], 'three'),
    (PROMPTS[0], '2'),
    (PROMPTS[0], ''),
  ]
  scores = scorer(pairs)
  assert scores[0] == scores[3] and len(set(scores)) == 4
  np.testing.assert_allclose(scores[1], reference_score(directory, *pairs[1]), atol=1e-5)
  np.testing.assert_allclose(scores[2], reference_score(directory, *pairs[2]), atol=1e-5)
  assert scorer(pairs[::-1]) == scores[::-1]  # bit for bit: the model sorts its batch
  np.testing.assert_allclose(scorer(pairs[2:3]), scores[2:3], atol=1e-5)
  assert scorer([]) == []


def test_a_pair_that_is_too_long_gets_the_reason_and_no_text_ends_the_turn(scorer):
  chat = chats.make(scorer.directory, chats.ChatConfig())
  end = chat.tokenizer.convert_ids_to_tokens(chat.stop_ids[0])
  short, forged, long = scorer(
    [(PROMPTS[0], '2'), (PROMPTS[0], f'2{end}'), (PROMPTS[0], 'x' * 600)]
  )
  assert isinstance(short, float) and isinstance(forged, float)
  assert 'positions' in long
  grader = graders.make(
    {'type': 'reward_model', 'name': 'rm', 'model': 'rm'}, reward_models={'rm': scorer}
  )
  grade = grader({'messages': PROMPTS[0]}, {'output_text': 'x' * 600})
  assert grade.reward is None and 'positions' in grade.errors['other_error_details']


def test_reward_model_names_are_collected_from_nested_graders():
  grader = {'type': 'reward_model', 'name': 'a', 'model': 'runs/a'}
  multi = {
    'type': 'multi',
    'name': 'm',
    'graders': {
      'a': grader,
      'b': {**grader, 'model': 'runs/b'},
      'c': {'type': 'string_check', 'model': 'x'},
    },
  }
  assert grader_module.reward_model_names(multi) == ['runs/a', 'runs/b']
  assert grader_module.reward_model_names([grader, grader]) == ['runs/a']
  assert grader_module.reward_model_names('x') == []


def test_all_answers_of_a_step_are_scored_at_once_in_the_thread_that_samples():
  """Programs on several devices, started from two threads, can deadlock."""
  calls = []

  def model(pairs):
    calls.append((len(pairs), threading.current_thread()))
    return [float(len(answer)) for _, answer in pairs]

  grader = graders.make(
    {'type': 'reward_model', 'name': 'rm', 'model': 'rm'}, reward_models={'rm': model}
  )
  with grading_queue.GradingQueue(grader) as queue:
    for n in range(3):
      queue.submit(n, {'messages': PROMPTS[0]}, {'output_text': 'x' * n})
    assert not calls
  assert calls == [(3, threading.current_thread())]
  assert [queue.grades[n].reward for n in range(3)] == [0.0, 1.0, 2.0]
  assert queue.counts()['rm']['grades'] == 3


def _config(tmp_path, directory, **changes):
  grader = {
    'type': 'multi',
    'name': 'sum',
    'calculate_output': 'liked + 0 * length',
    'graders': {
      'liked': {'type': 'reward_model', 'name': 'liked', 'model': directory},
      'length': {
        'type': 'length',
        'name': 'length',
        'input': '{{ sample.output_text }}',
        'unit': 'words',
        'soft_limit': 5,
        'hard_limit': 9,
      },
    },
  }
  config = tiny.config(tmp_path, grader=changes.pop('grader', grader), **changes)
  config.stages = (Stage(algorithm='ppo', steps=2, optim=OptimConfig(learning_rate=1e-2)),)
  config.rollout.prompts_per_step, config.rollout.samples_per_prompt = 4, 2
  config.evaluate.every, config.checkpoints.every = 0, 1
  return config


@pytest.mark.full
def test_ppo_against_a_reward_model_with_a_critic_that_starts_from_it(tmp_path, directory):
  """The critic may have another shape than the policy; a continued run equals an unbroken one."""
  config = _config(
    tmp_path, directory, grader={'type': 'reward_model', 'name': 'liked', 'model': directory}
  )
  config.model.source = tiny.write_base(tmp_path / 'other', dim=16, layers=1)
  config.critic.source = directory
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=1)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  varying = ('seconds/', 'compilations')  # prefixes of metrics that differ between runs
  rows = [
    [
      {key: value for key, value in row.items() if not key.startswith(varying)}
      for row in metrics_file.read(tmp_path / name / 'metrics.jsonl')
    ]
    for name in ('whole', 'parts')
  ]
  assert rows[0] == rows[1] and rows[0][0]['critic/value_mean'] != 0
  assert rows[0][0]['rewards/liked/std'] > 0
  assert len(manifest.read(tmp_path / 'whole')['sha256']['reward_models'][directory]) == 64


def test_evaluation_grades_by_the_reward_model_in_a_multi(tmp_path, directory):
  config = _config(tmp_path, directory)
  values = rft_jax.evaluate(config)
  assert np.isfinite(values['grade']['mean']) and values['grade']['mean'] != 0


@pytest.mark.full
def test_the_command_line_grades_without_a_config(tmp_path, directory):
  grader_json = {'type': 'reward_model', 'name': 'liked', 'model': directory}
  row = {'model_sample': 'three', 'item': {'messages': PROMPTS[0]}}
  (tmp_path / 'grader.json').write_text(json.dumps(grader_json))
  (tmp_path / 'answers.jsonl').write_text(json.dumps(row) + '\n')
  process = subprocess.run(
    [
      *(sys.executable, '-m', 'rft_jax.main', '--mode=grade'),
      *(f'--grader={tmp_path}/grader.json', f'--input={tmp_path}/answers.jsonl'),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  reward = json.loads(process.stdout)['reward']
  np.testing.assert_allclose(reward, reference_score(directory, PROMPTS[0], 'three'), atol=1e-5)


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda c, base: c.grader['graders']['liked'].update(model='runs/absent/export'),
      "grader: model='runs/absent/export'",
    ),
    (lambda c, base: c.grader['graders']['liked'].update(model=base), 'no tensor score.weight'),
    (lambda c, base: setattr(c.critic, 'source', base), 'no tensor score.weight'),
    (lambda c, base: setattr(c.critic, 'source', 'runs/absent/export'), 'config.critic.source'),
    (
      lambda c, base: (setattr(c.critic, 'source', 'x'), setattr(c.critic, 'kind', 'head')),
      "critic.source='x', need '' with kind='head'",
    ),
  ],
)
def test_an_invalid_reward_model_is_refused_before_anything_is_computed(
  tmp_path, directory, change, words
):
  config = _config(tmp_path, directory)
  change(config, config.model.source)
  with pytest.raises(InputError) as caught:
    rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert words in str(caught.value) and not (tmp_path / 'run/manifest.json').exists()


def test_a_critic_of_another_vocabulary_is_refused(tmp_path, directory):
  config = _config(tmp_path, directory)
  other = tmp_path / 'other_words'
  shutil.copytree(directory, other)
  tokenizer = json.loads((other / 'tokenizer.json').read_text())
  tokenizer['added_tokens'][-1]['content'] = '<|another|>'
  (other / 'tokenizer.json').write_text(json.dumps(tokenizer))
  config.critic.source = str(other)
  with pytest.raises(InputError, match='another vocabulary'):
    rft_jax.train(config, tmp_path / 'run', quiet=True)


def test_the_configs_name_the_missing_input(tmp_path, directory):
  with pytest.raises(ValueError, match='python -m rft_jax.tasks arithmetic .* --pairs=.* --to='):
    config_files.load('preferences_reward_model').get_config(str(tmp_path))
  with pytest.raises(
    ValueError, match='train a reward model with configs/preferences_reward_model.py'
  ):
    config_files.load('preferences_ppo').get_config(str(tmp_path))
  assert config_files.load('preferences_ppo').get_config(directory).critic.source == directory


def test_the_arms_on_rare_disease_are_valid_and_name_missing_input(tmp_path, directory):
  file = config_files.load('rare_disease_preferences')
  with pytest.raises(ValueError, match="arm 'dpo', need one of .'reward_model', 'ppo'"):
    file.get_config('dpo')
  with pytest.raises(ValueError, match='missing data/train.jsonl, policy, reward_model/export'):
    file.get_config(f'ppo:{tmp_path}')
  for name in (
    'data/pairs.jsonl',
    'data/pairs_validation.jsonl',
    'data/train.jsonl',
    'data/validation.jsonl',
  ):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{}\n')
  (tmp_path / 'policy').mkdir()
  (tmp_path / 'reward_model').mkdir()
  (tmp_path / 'reward_model' / 'export').symlink_to(directory)
  for arm in file.ARMS:
    assert file.get_config(f'{arm}:{tmp_path}').problems() == []
