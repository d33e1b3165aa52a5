"""Fake workdirs of finished and unfinished runs, written with the writers that runs use."""

import json
import math
import random

from rft_jax.records import episodes as episode_files
from rft_jax.records import manifest, metrics
from rft_jax.report.compared_policies import ComparedPolicy
from rft_jax.types import Episode, Grade, Item, Sample

STEPS = (40, 160)  # of the stages
TOTAL_STEPS = sum(STEPS)
GENES = ('FBN1', 'GLA', 'PAH', 'MECP2', 'DMD', 'SMN1', 'HTT', 'CFTR')


def interval(mean, half):
  return {'mean': mean, 'low': max(mean - half, 0.0), 'high': min(mean + half, 1.0)}


def policy(step, mean, half, answers=None, **values):
  """A policy of the run whose held-out grade is mean +- half; None: it was not graded."""
  row = {'step': step, 'split': 'validation', 'rows': 50}
  if mean is not None:
    row['grade'] = interval(mean, half)
  row |= values
  return ComparedPolicy('before', f'step {step}', row, None, answers or {})


def evaluation(random_, progress, noise=0.01):
  """Held-out metrics of a policy; progress is 0 before training and 1 when all is learned."""
  grade = 0.24 + 0.5 * progress + random_.gauss(0, noise)
  return {
    'grade': interval(grade, 0.045),
    'pass@1': interval(grade - 0.06, 0.05),
    'pass@4': interval(min(grade + 0.17, 0.95), 0.05),
    'greedy/grade': interval(grade + 0.05, 0.06),
    'truncated': interval(0.16 * (1 - progress) + 0.004, 0.01),
    'unparsable': interval(0.22 * (1 - progress) ** 2 + 0.002, 0.01),
    'mean_tokens': {
      'mean': 410 - 120 * progress,
      'low': 395 - 120 * progress,
      'high': 424 - 120 * progress,
    },
  }


def run_manifest():
  digest = manifest.sha256_text
  return {
    'started': '2026-03-02T09:14:05+00:00',
    'command': ['main.py', '--config=configs/demo.py'],
    'overrides': ['--config.seed=3'],
    'seed': 3,
    'config': {
      'seed': 3,
      'model': {'source': 'org/small-instruct-0.6b', 'dtype': 'bfloat16'},
      'chat': {'reasoning': ['<think>', '</think>'], 'template_kwargs': {}},
      'stages': [{'algorithm': 'sft', 'steps': STEPS[0]}, {'algorithm': 'grpo', 'steps': STEPS[1]}],
      'rollout': {'prompts_per_step': 16, 'samples_per_prompt': 8},
    },
    'versions': {'python': '3.11.9', 'jax': '0.10.2', 'rft_jax': '0.1.0'},
    'git': {'commit': digest('commit')[:40], 'dirty': False},
    'devices': {'kind': 'TPU v5 lite', 'platform': 'tpu', 'count': 8, 'processes': 1},
    'mesh': {'data': 2, 'fsdp': 4, 'tensor': 1},
    'prng': {'implementation': 'threefry2x32', 'partitionable': True},
    'sha256': {
      'data': {
        'train': [{'file': 'cases.jsonl', 'sha256': digest('train')}],
        'validation': [{'file': 'held_out.jsonl', 'sha256': digest('valid')}],
      },
      'base': [{'file': 'model.safetensors', 'sha256': digest('base')}],
      'template': digest('template'),
      'grader': digest('grader'),
    },
  }


def training(random_, step):
  if step < STEPS[0]:
    return {
      'loss': 1.9 * math.exp(-step / 15) + 0.6 + random_.gauss(0, 0.03),
      'mean_token_accuracy': 0.8 - 0.3 * math.exp(-step / 12),
      'learning_rate': 1e-5,
    }
  progress = 1 - math.exp(-(step - STEPS[0]) / 60)
  return {
    'reward': 0.30 + 0.38 * progress + random_.gauss(0, 0.05),
    'reward_std': 0.31 - 0.1 * progress,
    'loss': random_.gauss(0, 0.01),
    'completions/mean_length': 400 - 115 * progress + random_.gauss(0, 12),
    'completions/clipped_ratio': max(0.12 * (1 - progress) + random_.gauss(0, 0.01), 0),
    'entropy': 0.95 - 0.5 * progress + random_.gauss(0, 0.02),
    'kl': 0.06 * progress + abs(random_.gauss(0, 0.003)),
    'frac_reward_zero_std': 0.1 + 0.2 * progress + abs(random_.gauss(0, 0.03)),
    'sampling/sampling_logp_difference/mean': 0.002 + abs(random_.gauss(0, 2e-4)),
    'grad_norm': 0.4 + abs(random_.gauss(0, 0.1)),
    'learning_rate': 1e-6 * (1 - progress / 2),
    'rewards/gene/mean': 0.2 + 0.4 * progress + random_.gauss(0, 0.05),
    'rewards/format/mean': 0.9 + 0.1 * progress,
  } | ({'errors/sample_parse_error': 0.08 * (1 - progress)} if step % 3 else {})


def answers(progress, rows=60):
  """A greedy and four sampled answers to each held-out row, the greedy ones first."""
  thought = (
    'The tall habitus and the lens point to a disorder of the extracellular matrix. '
    'Homocystinuria would lower the lens the other way and often impairs cognition. '
  )
  episodes = []
  for number in range(rows):
    draw = random.Random(number)  # the same case before and after
    gene, wrong = draw.sample(GENES, 2)
    case = (
      f'A {draw.randint(2, 61)}-year-old with long fingers, a dilated aortic root and '
      'lens dislocation; no intellectual disability. Father died suddenly at 41. Which gene '
      'is most likely at fault? Answer with JSON {"genes": [...]}, most likely first.'
    )
    row = {
      'messages': [
        {'role': 'developer', 'content': 'You are a clinical geneticist.'},
        {'role': 'user', 'content': case},
      ],
      'gene': gene,
    }
    for index in (0, 0, 1, 2, 3):  # greedy, then sampled
      right = draw.random() < 0.24 + 0.5 * progress
      answer = json.dumps({'genes': [gene, wrong] if right else [wrong]})
      never_ends = number == 1 and not progress
      text = f'<think>{thought * (1 if progress else 3)}' + (
        '' if never_ends else f'So {gene}.</think>{answer}'
      )
      length = max(int(draw.gauss(400 - 115 * progress, 70)), 20)
      sample = Sample([7] * length, [-0.5] * length, None, 'stop')
      episodes.append(
        Episode(
          Item(row, f'held_out.jsonl:{number + 1}'),
          number,
          index,
          [1, 2, 3],
          sample,
          text,
          answer,
          length // 2,
          Grade(float(right), {'gene': float(right)}, {}),
          0,
        )
      )
  return episodes[::5] + [episode for n, episode in enumerate(episodes) if n % 5]


def training_episode(step, number, reward):
  sample = Sample([7] * (50 + number), [-0.5] * (50 + number), None, 'stop')
  return Episode(
    Item({'messages': []}, f'cases.jsonl:{number}'),
    number,
    0,
    [1],
    sample,
    'text',
    'answer',
    4,
    Grade(reward, {}, {}),
    step,
  )


def write(workdir, *, steps=TOTAL_STEPS, seed=5, pace=70, **changes):
  """Writes the files of a run of `steps` steps, with the writers that runs use.

  Args:
    pace: number of steps after which progress is 63 %.
    changes: to the config in the manifest.
  """
  random_ = random.Random(seed)
  fields = run_manifest()
  manifest.write(workdir, fields | {'config': fields['config'] | changes})
  tokens = 0
  with metrics.Metrics(workdir) as log:
    for step in range(steps):
      if step % 20 == 0:
        log.write_evaluation(
          step, 'validation', 60, evaluation(random_, 1 - math.exp(-step / pace))
        )
      values = training(random_, step)
      tokens += 128 * values.get('completions/mean_length', 300)
      log.write(
        step + 1,
        values
        | {
          'num_tokens': int(tokens),
          'stage': int(step >= STEPS[0]),
          'seconds/collect': random_.gauss(15, 1),
          'seconds/update': random_.gauss(6, 0.5),
        },
      )
    log.write_evaluation(steps, 'validation', 60, evaluation(random_, 1 - math.exp(-steps / pace)))
  for step in {0, min(STEPS[0], steps), steps}:
    episode_files.write(workdir / 'evaluations', step, answers(1 - math.exp(-step / pace)))


def write_all(folder):
  """Writes run/, continued/ (warm-up for both stages), older/ (one evaluation) and task.json."""
  write(folder / 'run')
  write(
    folder / 'continued',
    pace=250,
    seed=6,
    stages=[{'algorithm': 'sft', 'steps': STEPS[0]}, {'algorithm': 'sft', 'steps': STEPS[1]}],
  )
  with metrics.Metrics(folder / 'older') as log:
    log.write_evaluation(40, 'validation', 120, evaluation(random.Random(1), 0.45))
  (folder / 'task.json').write_text(
    json.dumps(
      {
        'task': 'rare_disease',
        'reference': {
          'bayes_optimal': {'mean': 0.81, 'low': 0.79, 'high': 0.83},
          'reader': {'mean': 0.41, 'low': 0.38, 'high': 0.44},
          'every_vote': {'mean': 0.6},
        },
      }
    )
  )
