"""An algorithm added from outside the package with one line: ALGORITHMS['mine'] = module."""

import ast
import types

import pytest
import tiny
from paths import ROOT
from workdirs import assert_same_runs

import rft_jax
from rft_jax.algorithms import ALGORITHMS, rl_batch, sft
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.config import Stage
from rft_jax.data import batching
from rft_jax.objectives.masked import Term, over_tokens
from rft_jax.records import metrics
from rft_jax.training.optim import OptimConfig


def make_supervised(context: StageContext) -> Algorithm:
  """Returns supervised fine-tuning with a metric of its own."""
  algorithm = sft.make(context)

  def loss(statistics, batch):
    terms, _ = algorithm.loss(statistics, batch)
    return terms, {'mine/logprob': over_tokens(statistics.logprobs, batch.loss_mask)}

  return algorithm._replace(loss=loss)


def make_reinforce(context: StageContext) -> Algorithm:
  """Returns REINFORCE with the mean reward of the step as baseline."""
  rollout, advantage = context.groups['rollout'], context.groups['advantage']

  def collect(state, step):
    groups, values, next_state = rl_batch.sample_groups(context, state, step)
    if not groups:
      return StepBatch(None, values, next_state)
    rewards = rl_batch.rewards_of(groups, advantage, rollout.max_new_tokens)
    batch = batching.from_groups(groups, rewards - rewards.mean())
    return StepBatch(batch, values | {'mine/baseline': float(rewards.mean())}, next_state)

  def loss(statistics, batch):
    losses = -batch.advantages * statistics.logprobs
    return {'policy': Term(1.0, over_tokens(losses, batch.loss_mask))}, {}

  return Algorithm(collect, loss, temperature=rollout.temperature)


SUPERVISED = types.SimpleNamespace(
  REQUIREMENTS=sft.REQUIREMENTS._replace(label='my fine-tuning'), make=make_supervised
)
REINFORCE = types.SimpleNamespace(
  REQUIREMENTS=Requirements('prompts', label='plain REINFORCE', initial_state=rl_batch.RLState),
  make=make_reinforce,
)


def config_of(directory, algorithm):
  stage = Stage(algorithm=algorithm, steps=2, optim=OptimConfig(learning_rate=1e-2))
  return tiny.config(directory, stages=(stage,))


def test_a_supervised_algorithm_is_trained(tmp_path, monkeypatch):
  monkeypatch.setitem(ALGORITHMS, 'mine', SUPERVISED)
  rft_jax.train(config_of(tmp_path, 'mine'), tmp_path / 'run', quiet=True)
  rows = metrics.read(tmp_path / 'run' / metrics.TRAINING)
  assert [row['step'] for row in rows] == [1, 2]
  assert rows[1]['loss'] < rows[0]['loss'] and rows[1]['mine/logprob'] > rows[0]['mine/logprob']


def test_an_algorithm_with_rollouts_is_trained_reported_exported_and_continued(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(ALGORITHMS, 'mine', REINFORCE)
  config = config_of(tmp_path, 'mine')
  values = rft_jax.train(config, tmp_path / 'whole', quiet=True)
  assert 0 <= values['grade']['mean'] <= 1
  rows = metrics.read(tmp_path / 'whole' / metrics.TRAINING)
  assert [row['mine/baseline'] == pytest.approx(row['reward']) for row in rows] == [True, True]
  assert all(row['grad_norm'] > 0 for row in rows)
  assert 'After plain REINFORCE: mine, step 2' in (tmp_path / 'whole' / 'report.html').read_text()
  assert (tmp_path / 'whole' / 'export' / 'model.safetensors').exists()
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=1)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert_same_runs(tmp_path / 'whole', tmp_path / 'parts', 2)


def test_a_misspelt_name_lists_it(tmp_path, monkeypatch):
  monkeypatch.setitem(ALGORITHMS, 'mine', SUPERVISED)
  assert any("'mine'" in problem for problem in config_of(tmp_path, 'mien').problems())


# 'sft' and 'reward_model' are config groups and grader types as well.
NAMES = set(ALGORITHMS) - {'sft', 'reward_model'}
EXCEPTIONS = {
  'rft_jax/run/openai_job.py': {'grpo'},  # a job of the hosted service is a run of it
  'rft_jax/objectives/preference_losses.py': {'dpo'},  # the loss of this name,
  'rft_jax/objectives/preference_objective.py': {'dpo'},  # and the default of its config field
}


def test_no_file_outside_the_folder_names_an_algorithm():
  assert {'grpo', 'ppo', 'dpo', 'kto', 'rejection', 'distillation'} <= NAMES
  offenders = []
  for path in sorted((ROOT / 'rft_jax').rglob('*.py')):
    file = path.relative_to(ROOT).as_posix()
    if file.startswith('rft_jax/algorithms/'):
      continue
    literals = {
      node.value: node.lineno
      for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
      if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    named = NAMES & literals.keys()
    offenders += [
      f'{file}:{literals[name]}: {name!r}' for name in named - EXCEPTIONS.get(file, set())
    ]
    if EXCEPTIONS.get(file, set()) - named:
      offenders.append(f'{file}: its exception is no longer needed')
  assert not offenders
