"""Distillation: token advantages from the teacher, and runs that move towards it."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from workdirs import metric_rows

import rft_jax
from rft_jax import hf
from rft_jax.algorithms import distillation
from rft_jax.algorithms.distillation import DistillationConfig
from rft_jax.errors import InputError
from rft_jax.records import metrics
from rft_jax.run import build, stage
from rft_jax.training.scoring import TokenScores
from rft_jax.types import TrainState

# --- advantages -------------------------------------------------------------------------------


def token_scores(logprobs):
  return TokenScores(np.float32(logprobs), np.float32(np.abs(logprobs)))


def test_the_advantage_of_a_token_is_the_difference_of_the_log_probs():
  student = token_scores([[-1.0, -2.0, np.nan], [-3.0, np.nan, np.nan]])
  teacher = token_scores([[-1.5, -0.5, np.nan], [-9.0, np.nan, np.nan]])
  loss_mask = np.float32([[1, 1, 0], [1, 0, 0]])
  advantages, values = distillation.teacher_advantages(student, teacher, loss_mask)
  np.testing.assert_array_equal(advantages, [[-0.5, 1.5, 0], [-6, 0, 0]])
  np.testing.assert_allclose(values['distillation/reverse_kl'], (0.5 - 1.5 + 6) / 3)
  np.testing.assert_allclose(values['distillation/reverse_kl_std'], np.std([0.5, -1.5, 6]))
  np.testing.assert_allclose(values['distillation/teacher_entropy'], (1.5 + 0.5 + 9) / 3)
  advantages, values = distillation.teacher_advantages(student, teacher, loss_mask, clip=1.0)
  np.testing.assert_array_equal(advantages, [[-0.5, 1, 0], [-1, 0, 0]])
  np.testing.assert_allclose(values['distillation/clipped_share'], 2 / 3)
  np.testing.assert_allclose(values['distillation/reverse_kl'], 5 / 3)
  advantages, _ = distillation.teacher_advantages(
    student, teacher, loss_mask, clip=1.0, centre=True
  )
  np.testing.assert_allclose(
    advantages, [[-0.5 + 0.5 / 3, 1 + 0.5 / 3, 0], [-1 + 0.5 / 3, 0, 0]], rtol=1e-6
  )


def test_the_expected_gradient_is_that_of_the_reverse_kl():
  student, teacher = np.array([0.3, -0.5, 1.1]), np.array([-0.2, 0.8, 0.1])
  log_softmax = lambda z: z - np.log(np.exp(z).sum())
  p, q = log_softmax(student), log_softmax(teacher)
  advantages, _ = distillation.teacher_advantages(
    token_scores(p[None]), token_scores(q[None]), np.ones((1, 3))
  )
  of_logprobs = np.eye(3) - np.exp(p)  # row y: d log p(y) / d logits
  expected = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - q)).sum())(student)
  np.testing.assert_allclose(-(np.exp(p) * advantages[0]) @ of_logprobs, expected, atol=1e-6)


# --- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def distilled(tmp_path_factory, make_config, rejection_workdir):
  """Returns (config, workdir) of a run with two updates per batch and an entropy target."""
  directory = tmp_path_factory.mktemp('distilled')
  config = make_config(directory, 'distillation', 8)
  config.update.updates_per_batch = 2
  config.objective.entropy.target = 9.0
  config.distillation.teacher = str(rejection_workdir / 'export')
  rft_jax.train(config, directory / 'run', quiet=True)
  return config, directory / 'run'


@pytest.mark.full
def test_the_student_moves_towards_its_teacher(distilled):
  _, workdir = distilled
  rows = metrics.read(workdir / 'metrics.jsonl')
  divergences = [row['distillation/reverse_kl'] for row in rows]
  assert np.mean(divergences[-2:]) < 0.4 * np.mean(divergences[:2])
  assert all(np.isfinite(row['distillation/reverse_kl_std']) for row in rows)
  digest = json.loads((workdir / 'manifest.json').read_text())['sha256']['teacher']
  assert 'model.safetensors' in json.dumps(digest)


def test_a_run_logs_the_mismatch_of_its_sampler_and_the_staleness_of_its_samples(distilled):
  _, workdir = distilled
  for step, row in enumerate(metrics.read(workdir / 'metrics.jsonl')):
    mean = row['sampling/sampling_logp_difference/mean']
    assert 0 < mean < 1e-5 and mean < row['sampling/sampling_logp_difference/max'] < 1e-4
    for name in (
      'token_mult_prob_error',
      'effective_sample_share',
      'importance_sampling_ratio/mean',
    ):
      np.testing.assert_allclose(row[f'sampling/{name}'], 1, atol=1e-4)
    assert row['sampling/probability_correlation'] > 0.999
    assert max(abs(row['sampling/chi2']), abs(row['sampling/k3'])) < 1e-4
    assert row['sampling/staleness'] == 0.5  # the mean of two updates: 0 and 1
    assert not any('moments' in name for name in row)
    np.testing.assert_allclose(row['entropy_coef'], 0.005 * step)  # far below its target


@pytest.mark.full
def test_a_stopped_and_continued_run_has_the_same_entropy_coefficients(distilled, tmp_path):
  config, workdir = distilled
  rft_jax.train(config, tmp_path / 'run', stop_at_step=3, quiet=True)
  rft_jax.train(config, tmp_path / 'run', stop_at_step=5, quiet=True)
  assert metric_rows(tmp_path / 'run') == metric_rows(workdir)[:5]


def first_step(config):
  """Returns the StepBatch of the first step of a run."""
  with build.components(config) as components:
    policy, _ = hf.load(config.model.source, mesh=components.mesh)
    run = SimpleNamespace(
      config=config,
      components=components,
      checkpoints=None,
      workdir=None,
      record_samples=lambda step, rollout: None,
    )
    stage_run, state = stage.start(run, config.spans()[0], TrainState(0, policy, None), fresh=True)
    return stage_run.algorithm.collect(state, 0)


def test_with_itself_as_teacher_a_policy_has_no_advantages_but_those_of_the_grades(
  tmp_path, make_config
):
  config = make_config(tmp_path, 'distillation', 1)
  config.distillation.teacher = config.model.source
  step = first_step(config)
  assert (step.batch.advantages == 0).all()
  assert step.metrics['distillation/reverse_kl'] == 0
  config.distillation.grade_coef = 0.5
  config.advantage.scale = 'none'
  grade_advantages = first_step(config).batch.advantages[:, 0].reshape(8, 4)
  assert np.abs(grade_advantages).max() > 0
  np.testing.assert_allclose(grade_advantages.sum(1), 0, atol=1e-6)


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
  'changes, message', [({'clip': -1.0}, 'clip=-1.0'), ({'grade_coef': -0.5}, 'grade_coef=-0.5')]
)
def test_invalid_settings_are_refused_with_the_reason(changes, message):
  (problem,) = DistillationConfig(**changes).validate()
  assert message in problem


def test_a_teacher_is_required_and_grades_need_several_samples(tmp_path, make_config):
  config = make_config(tmp_path, 'distillation', 1)
  (problem,) = config.problems()
  assert 'distillation.teacher is empty' in problem
  config.distillation = DistillationConfig(teacher='x', grade_coef=1.0)
  config.rollout.samples_per_prompt = 1
  (problem,) = config.problems()
  assert 'need >= 2: a grade is compared' in problem
  config.distillation.grade_coef = 0.0
  assert config.problems() == []


def test_another_tokenizer_is_refused_with_the_first_differences(tmp_path, make_config):
  config = make_config(tmp_path, 'distillation', 1)
  config.distillation.teacher = tiny.write_base(tmp_path / 'teacher')
  path = tmp_path / 'teacher' / 'tokenizer.json'
  tokenizer = json.loads(path.read_text())
  vocabulary = tokenizer['model']['vocab']
  vocabulary['a'], vocabulary['b'] = vocabulary['b'], vocabulary['a']
  path.write_text(json.dumps(tokenizer))
  with pytest.raises(InputError, match='another tokenizer') as caught:
    with build.components(config):
      pass
  a, b = vocabulary['b'], vocabulary['a']
  assert f"'a' is {a} in the first, {b} in the second" in str(caught.value)
  assert '2 differences' in str(caught.value)


def test_a_missing_teacher_is_refused_before_anything_is_computed(tmp_path, make_config):
  config = make_config(tmp_path, 'distillation', 1)
  config.distillation.teacher = str(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='nowhere.*is no directory here'):
    rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()
