"""Rejection sampling keeps what it says, distillation follows its teacher; both as whole runs."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
import tiny_tokenizers

import rft_jax
from rft_jax import hf
from rft_jax.algorithms import distillation, rejection
from rft_jax.algorithms.distillation import DistillationConfig
from rft_jax.algorithms.rejection import RejectionConfig
from rft_jax.config import Stage
from rft_jax.data import tokenizers
from rft_jax.errors import InputError
from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics
from rft_jax.run import build
from rft_jax.training.optim import OptimConfig
from rft_jax.types import Episode, Grade, Item, Sample, TrainState

# ------------------------------------------------------------------ what is kept


def _group(*answers):
  """Episodes of one prompt from (text, reward) pairs, numbered in the order they were drawn."""
  return [
    Episode(
      Item({}, 'x:1'),
      0,
      index,
      [1],
      Sample([index + 1], [0.0], None, 'stop'),
      text,
      text,
      0,
      Grade(reward, {}, {}),
      0,
    )
    for index, (text, reward) in enumerate(answers)
  ]


GROUP = (('a', 0.5), ('b', 1.0), ('b', 1.0), ('c', 0.0), ('d', 1.0), ('e', 0.5))


@pytest.mark.parametrize(
  'settings, kept',
  [
    ({}, [1]),
    ({'per_prompt': 2}, [1, 4]),
    ({'per_prompt': 2, 'distinct': False}, [1, 2]),
    ({'per_prompt': 0, 'threshold': 1.0}, [1, 4]),
    ({'per_prompt': 0, 'threshold': 0.5}, [1, 4, 0, 5]),
    ({'per_prompt': 3, 'threshold': 0.5, 'distinct': False}, [1, 2, 4]),
    ({'threshold': 1.5}, []),
  ],
)
def test_the_best_are_kept_in_the_order_of_their_grades(settings, kept):
  found = rejection.keep(_group(*GROUP), RejectionConfig(**settings))
  assert [episode.index for episode in found] == kept


def test_a_prompt_without_a_best_is_learnt_from_only_if_asked_for():
  equal = _group(('a', 1.0), ('b', 1.0))
  assert rejection.keep(equal, RejectionConfig()) == []
  assert rejection.keep(equal, RejectionConfig(tied=True)) == equal[:1]
  assert rejection.keep(equal, RejectionConfig(per_prompt=0, threshold=1.0)) == equal


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'per_prompt': 0}, 'learns nothing from all of its own samples'),
    ({'per_prompt': -1}, '>= 0'),
    ({'tied': True, 'threshold': 0.5}, 'says already'),
    ({'samples_from': 'base'}, "'base'"),
  ],
)
def test_settings_of_rejection_are_refused_with_the_reason(changes, words):
  (problem,) = RejectionConfig(**changes).validate()
  assert words in problem


# ------------------------------------------------------------------ what the teacher gives


def _scored(logprobs):
  return SimpleNamespace(logprobs=np.float32(logprobs), entropy=np.float32(np.abs(logprobs)))


def test_each_token_gets_what_the_teacher_finds_it_more_likely():
  ours = _scored([[-1.0, -2.0, np.nan], [-3.0, np.nan, np.nan]])
  theirs = _scored([[-1.5, -0.5, np.nan], [-9.0, np.nan, np.nan]])
  weights = np.float32([[1, 1, 0], [1, 0, 0]])
  gain, found = distillation.from_teacher(ours, theirs, weights)
  np.testing.assert_array_equal(gain, [[-0.5, 1.5, 0], [-6, 0, 0]])
  np.testing.assert_allclose(found['distillation/reverse_kl'], (0.5 - 1.5 + 6) / 3)
  np.testing.assert_allclose(found['distillation/reverse_kl_std'], np.std([0.5, -1.5, 6]))
  np.testing.assert_allclose(found['distillation/teacher_entropy'], (1.5 + 0.5 + 9) / 3)
  gain, found = distillation.from_teacher(ours, theirs, weights, clip=1.0)
  np.testing.assert_array_equal(gain, [[-0.5, 1, 0], [-1, 0, 0]])
  np.testing.assert_allclose(found['distillation/clipped_share'], 2 / 3)
  np.testing.assert_allclose(found['distillation/reverse_kl'], 5 / 3)
  gain, _ = distillation.from_teacher(ours, theirs, weights, clip=1.0, centre=True)
  np.testing.assert_allclose(
    gain, [[-0.5 + 0.5 / 3, 1 + 0.5 / 3, 0], [-1 + 0.5 / 3, 0, 0]], rtol=1e-6
  )


def test_the_expected_gradient_is_that_of_the_reverse_kl():
  student, teacher = np.array([0.3, -0.5, 1.1]), np.array([-0.2, 0.8, 0.1])
  log_softmax = lambda z: z - np.log(np.exp(z).sum())
  p, q = log_softmax(student), log_softmax(teacher)
  gain, _ = distillation.from_teacher(_scored(p[None]), _scored(q[None]), np.ones((1, 3)))
  of_logprobs = np.eye(3) - np.exp(p)  # row y: d log p(y) / d logits
  expected = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - q)).sum())(student)
  np.testing.assert_allclose(-(np.exp(p) * gain[0]) @ of_logprobs, expected, atol=1e-6)


@pytest.mark.parametrize(
  'changes, words', [({'clip': -1.0}, 'clip=-1.0'), ({'grade_coef': -0.5}, 'grade_coef=-0.5')]
)
def test_settings_of_distillation_are_refused(changes, words):
  (problem,) = DistillationConfig(**changes).validate()
  assert words in problem


# ------------------------------------------------------------------ whole runs


# Seldom the same for two samples, and learnt in a few steps.
LETTERS = {
  'type': 'python',
  'name': 'letters',
  'source': 'def grade(sample, item):\n'
  '  text = sample["output_text"]\n'
  '  return sum(c.isascii() for c in text) / (len(text) + 1)\n',
}


def _config(directory, algorithm, steps, rate=1e-2):
  config = tiny.config(
    directory,
    grader=LETTERS,
    stages=(Stage(algorithm=algorithm, steps=steps, optim=OptimConfig(learning_rate=rate)),),
  )
  config.evaluate.every = 0
  return config


@pytest.fixture(scope='module')
def reinforced(tmp_path_factory):
  """The workdir of a run that learnt from the better half of its samples."""
  directory = tmp_path_factory.mktemp('reinforced')
  config = _config(directory, 'rejection', 8, rate=2e-2)
  config.rejection.per_prompt = 2
  rft_jax.train(config, directory / 'run', quiet=True)
  return directory / 'run'


def test_rejection_trains_on_what_it_keeps_and_records_everything(reinforced):
  rows = metrics.read(reinforced / 'metrics.jsonl')
  for row in rows:
    episodes = episode_files.read(reinforced, row['step'])
    assert len(episodes) == 32
    groups = {}
    for episode in episodes:
      groups.setdefault(episode['occurrence'], []).append(episode)
    rewards, without = [], 0
    for group in groups.values():
      grades = sorted({e['text']: e['reward'] for e in group}.values(), reverse=True)
      alike = len({e['reward'] for e in group}) == 1
      rewards += [] if alike else grades[:2]
      without += alike
    np.testing.assert_allclose(row['rejection/kept_share'], len(rewards) / 32)
    np.testing.assert_allclose(row['rejection/prompts_without'], without / len(groups))
    np.testing.assert_allclose(row['rejection/kept_reward'], np.mean(rewards), rtol=1e-6)
    assert row['rejection/kept_reward'] > row['reward'] and row['grad_norm'] > 0
    assert row['loss/nll'] > 0 and 'entropy' in row and row['skipped_nonfinite'] == 0
  rewards = [row['reward'] for row in rows]
  assert np.mean(rewards[-3:]) > 1.25 * np.mean(rewards[:3])


def test_samples_of_the_reference_do_not_depend_on_what_is_learnt(tmp_path):
  config, sampled = _config(tmp_path, 'rejection', 2), {}
  for source, rate in (('reference', 1e-2), ('reference', 1e-9), ('policy', 1e-2)):
    config.rejection.samples_from = source
    config.stages[0].optim.learning_rate = rate
    rft_jax.train(config, tmp_path / f'{source}{rate}', quiet=True)
    sampled[source, rate] = [e['text'] for e in episode_files.read(tmp_path / f'{source}{rate}', 2)]
  assert sampled['reference', 1e-2] == sampled['reference', 1e-9] != sampled['policy', 1e-2]


def test_a_step_that_keeps_nothing_learns_nothing(tmp_path):
  config = _config(tmp_path, 'rejection', 1)
  config.rejection.threshold = 5.0
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  (row,) = metrics.read(tmp_path / 'run' / 'metrics.jsonl')
  assert row['rejection/kept_share'] == 0 and row['rejection/prompts_without'] == 1
  assert 'loss' not in row and len(episode_files.read(tmp_path / 'run', 1)) == 32


@pytest.fixture(scope='module')
def distilled(tmp_path_factory, reinforced):
  """A student and the metrics of its lessons, with every measure of the sampler and exploration."""
  directory = tmp_path_factory.mktemp('distilled')
  config = _config(directory, 'distillation', 8)
  config.update.updates_per_batch = 2
  config.objective.entropy.target = 9.0
  config.distillation.teacher = str(reinforced / 'export')
  rft_jax.train(config, directory / 'run', quiet=True)
  return config, directory / 'run'


def test_the_student_moves_towards_its_teacher(distilled):
  _, workdir = distilled
  rows = metrics.read(workdir / 'metrics.jsonl')
  gaps = [row['distillation/reverse_kl'] for row in rows]
  assert np.mean(gaps[-2:]) < 0.4 * np.mean(gaps[:2])
  assert all(np.isfinite(row['distillation/reverse_kl_std']) for row in rows)
  digest = json.loads((workdir / 'manifest.json').read_text())['sha256']['teacher']
  assert 'model.safetensors' in json.dumps(digest)


def test_a_run_logs_how_far_its_sampler_is_and_how_old_its_samples(distilled):
  _, workdir = distilled
  for step, row in enumerate(metrics.read(workdir / 'metrics.jsonl')):
    assert 0 < row['sampling/sampling_logp_difference/mean'] < 1e-5
    assert (
      row['sampling/sampling_logp_difference/mean']
      < row['sampling/sampling_logp_difference/max']
      < 1e-4
    )
    np.testing.assert_allclose(
      [
        row[f'sampling/{name}']
        for name in (
          'token_mult_prob_error',
          'effective_sample_share',
          'importance_sampling_ratio/mean',
        )
      ],
      1,
      atol=1e-4,
    )
    assert row['sampling/probability_correlation'] > 0.999
    assert max(abs(row['sampling/chi2']), abs(row['sampling/k3'])) < 1e-4
    assert row['sampling/staleness'] == 0.5  # two updates: of fresh samples, and one update later
    assert not any('moments' in name for name in row)
    np.testing.assert_allclose(row['entropy_coef'], 0.005 * step)  # far below its target


def test_a_stopped_and_continued_run_remembers_its_coefficient(distilled, tmp_path):
  config, workdir = distilled
  rft_jax.train(config, tmp_path / 'run', stop_at_step=3, quiet=True)
  rft_jax.train(config, tmp_path / 'run', stop_at_step=5, quiet=True)
  same = lambda path: [
    {
      name: value
      for name, value in row.items()
      if not name.startswith(('seconds/', 'compilations'))
    }
    for row in metrics.read(path / 'metrics.jsonl')
  ][:5]
  assert same(tmp_path / 'run') == same(workdir)


def _collected(config, teacher):
  """The batch of the first step, of the algorithm as train.py furnishes it."""
  from rft_jax.run import train

  with build.components(config) as components:
    policy, _ = hf.load(config.model.source, mesh=components.mesh)
    config.distillation.teacher = teacher
    module = __import__('sys').modules[train.__module__]
    desk = SimpleNamespace(config=config, components=components, checkpoints=None, workdir=None)
    algorithm = module._algorithm(
      desk, config.spans()[0], TrainState(0, policy, None), lambda step, sampled: None
    )
    return algorithm.collect(TrainState(0, policy, None), 0)


def test_a_policy_has_nothing_to_learn_from_itself(tmp_path):
  config = _config(tmp_path, 'distillation', 1)
  config.distillation.teacher = config.model.source
  found = _collected(config, config.model.source)
  assert (found.batch.advantages == 0).all()
  assert found.metrics['distillation/reverse_kl'] == 0
  config.distillation.grade_coef = 0.5
  config.advantage.scale = 'none'
  found = _collected(config, config.model.source)
  first = found.batch.advantages[:, 0].reshape(8, 4)
  assert np.abs(first).max() > 0
  np.testing.assert_allclose(first.sum(1), 0, atol=1e-6)


# ------------------------------------------------------------------ what is refused


def test_another_tokenizer_is_refused_with_the_first_differences(tmp_path):
  config = _config(tmp_path, 'distillation', 1)
  config.distillation.teacher = tiny.write_base(tmp_path / 'teacher')
  path = tmp_path / 'teacher' / 'tokenizer.json'
  data = json.loads(path.read_text())
  vocabulary = data['model']['vocab']
  vocabulary['a'], vocabulary['b'] = vocabulary['b'], vocabulary['a']
  path.write_text(json.dumps(data))
  with pytest.raises(InputError, match='another tokenizer') as caught:
    with build.components(config):
      pass
  a, b = vocabulary['b'], vocabulary['a']
  assert f"'a' is {a} in the first, {b} in the second" in str(caught.value)
  assert '2 differences' in str(caught.value)


def test_special_ids_are_compared(tmp_path):
  first = tokenizers.load(tiny_tokenizers.save(tmp_path / 'a'))
  second = tokenizers.load(tiny_tokenizers.save(tmp_path / 'b', eos='<|im_end|>'))
  assert tokenizers.differences(first, first) == []
  found = tokenizers.differences(first, second)
  assert found[0].startswith('eos_token_id is ') and "'<eos>' is " in found[1]
  assert found[1].endswith('none in the second')


@pytest.mark.parametrize(
  'algorithm, changes, words',
  [
    ('distillation', {}, 'distillation.teacher is empty'),
    (
      'distillation',
      {'distillation': DistillationConfig(teacher='x', grade_coef=1.0), 'G': 1},
      'need >= 2: a grade is compared',
    ),
    ('rejection', {'G': 1}, 'keeps every sample'),
    ('rejection', {'rejection': RejectionConfig(per_prompt=0)}, 'rejection.per_prompt=0'),
  ],
)
def test_what_does_not_go_together_is_refused(tmp_path, algorithm, changes, words):
  config = _config(tmp_path, algorithm, 1)
  for name, value in changes.items():
    if name == 'G':
      config.rollout.samples_per_prompt = value
    else:
      setattr(config, name, value)
  (problem,) = config.problems()
  assert words in problem
  config.rollout.samples_per_prompt = 4


def test_one_sample_is_enough_where_nothing_is_compared(tmp_path):
  config = _config(tmp_path, 'rejection', 1)
  config.rollout.samples_per_prompt = 1
  config.rejection = RejectionConfig(per_prompt=0, threshold=1.0)
  assert config.problems() == []
  config.stages[0].algorithm, config.distillation.teacher = 'distillation', 'x'
  assert config.problems() == []


def test_a_missing_teacher_is_told_before_anything_is_computed(tmp_path):
  config = _config(tmp_path, 'distillation', 1)
  config.distillation.teacher = str(tmp_path / 'nowhere')
  with pytest.raises(InputError, match='nowhere.*is no directory here'):
    rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()


def test_kl_cov_needs_a_second_update(tmp_path):
  config = _config(tmp_path, 'grpo', 1)
  config.objective.entropy.covariance = 'kl_cov'
  (problem,) = config.problems()
  assert 'update.updates_per_batch=1' in problem
