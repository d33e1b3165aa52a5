"""A job as OpenAI's fine-tuning API takes it, read as a Config of ours.

Every "auto" becomes a value that is told at the start, and nothing that the job asks for is left
aside in silence. What the hosted service did inside (group size, learning rate) was never told:
those values are ours.
"""

import json
import math
import pathlib
from typing import Any

from rft_jax.config import Config, EvaluateConfig, ModelConfig, Stage
from rft_jax.data import rows
from rft_jax.data.rows import DataConfig
from rft_jax.graders.template import did_you_mean
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

LEARNING_RATE = 1e-6  # times learning_rate_multiplier
SAMPLES = 8  # a prompt, times compute_multiplier
MAX_NEW_TOKENS = {'low': 512, 'medium': 1024, 'high': 2048}  # by reasoning_effort
STEPS = 100  # about so many, where n_epochs is "auto"

JOB_FIELDS = (
  'model',
  'training_file',
  'validation_file',
  'method',
  'seed',
  'suffix',
  'metadata',
  'integrations',
  'hyperparameters',
)
METHOD_FIELDS = ('grader', 'response_format', 'hyperparameters')
# {name: (the least, the most)} of numbers; reasoning_effort is a word
HYPERPARAMETERS = {
  'batch_size': (1, 256),
  'learning_rate_multiplier': (0, math.inf),
  'n_epochs': (1, 50),
  'compute_multiplier': (1e-5, 10),
  'eval_interval': (1, math.inf),
  'eval_samples': (1, math.inf),
}
EFFORTS = ('default', 'low', 'medium', 'high')


def read(path) -> Config:
  """Returns the Config of a job in a file; model.source is left empty, for the command line.

  Raises:
    ValueError: the job cannot be read or understood; everything that is wrong with it.
  """
  path = pathlib.Path(path)
  try:
    job = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: cannot be read as a job: {error}') from None
  problems, method = _problems(job)
  if problems:
    raise ValueError(f'{path}: ' + '; '.join(problems))
  files = {
    name: _file(job.get(name), path.parent, name) for name in ('training_file', 'validation_file')
  }
  count = len(rows.read(files['training_file'])[0])
  if not count:
    raise ValueError(
      f'{path}: training_file={job["training_file"]!r}: no rows there; need a '
      'path, from here or from the folder of the job'
    )
  return _config(job, method, files, count)


def _problems(job) -> tuple[list[str], dict[str, Any]]:
  """Returns (what is wrong with a job, its method.reinforcement)."""
  if not isinstance(job, dict) or not isinstance(job.get('method'), dict):
    return [
      'need {"training_file": ..., "validation_file": ..., "method": {"type": '
      '"reinforcement", "reinforcement": {"grader": ...}}}'
    ], {}
  found = [
    f'unknown field {key!r}{did_you_mean(key, JOB_FIELDS)}' for key in job if key not in JOB_FIELDS
  ]
  for name in ('training_file', 'validation_file'):
    if not isinstance(job.get(name), str):
      found.append(f'{name}={job.get(name)!r}, need the path of a JSONL file')
    elif job[name].startswith('file-') and not pathlib.Path(job[name]).exists():
      found.append(
        f'{name}={job[name]!r} is a file of the hosted service: download it and give its path'
      )
  kind = job['method'].get('type')
  if kind != 'reinforcement':
    found.append(f'method.type={kind!r}, need reinforcement')
  method = job['method'].get('reinforcement')
  if not isinstance(method, dict):
    return found + ['method.reinforcement is missing'], {}
  found += [
    f'method.reinforcement: unknown field {key!r}{did_you_mean(key, METHOD_FIELDS)}'
    for key in method
    if key not in METHOD_FIELDS
  ]
  if not isinstance(method.get('grader'), dict):
    found.append("method.reinforcement.grader is missing, need a grader's JSON")
  return found, method


def _file(value, folder, name) -> str:
  given = pathlib.Path(value)
  beside = folder / given
  return str(beside if not given.exists() and beside.exists() else given)


def _config(job, method, files, count) -> Config:
  given, notes = _hyperparameters(method.get('hyperparameters') or {})
  notes += _unused(job)
  say = lambda name, value, why='': (
    notes.append(f'{name}="auto": {value:g}{why}') if name not in given else None
  )
  batch = int(given.get('batch_size', min(16, count)))
  say('batch_size', batch, ' prompts a step')
  epochs = given.get('n_epochs', min(50, max(1, round(STEPS * batch / count))))
  steps = max(1, math.ceil(epochs * count / batch))
  say('n_epochs', epochs, f' ({steps} steps)')
  multiplier = given.get('learning_rate_multiplier', 1.0)
  say('learning_rate_multiplier', multiplier, f' (a learning rate of {LEARNING_RATE:g})')
  compute = given.get('compute_multiplier', 1.0)
  samples = max(2, round(SAMPLES * compute))
  say('compute_multiplier', compute, f' ({samples} samples a prompt)')
  interval = int(given.get('eval_interval', max(1, steps // 10)))
  say('eval_interval', interval)
  eval_samples = int(given.get('eval_samples', 4))
  say('eval_samples', eval_samples)
  effort = given.get('reasoning_effort', 'default')
  tokens = MAX_NEW_TOKENS['medium' if effort == 'default' else effort]
  notes.append(f'reasoning_effort={effort!r}: rollout.max_new_tokens={tokens}')
  return Config(
    seed=job.get('seed') or 0,
    model=ModelConfig(),
    data=DataConfig(train=files['training_file'], validation=files['validation_file']),
    grader=method['grader'],
    response_format=method.get('response_format') or '',
    stages=(
      Stage(
        algorithm='grpo', steps=steps, optim=OptimConfig(learning_rate=LEARNING_RATE * multiplier)
      ),
    ),
    rollout=RolloutConfig(
      prompts_per_step=batch, samples_per_prompt=samples, max_new_tokens=tokens
    ),
    evaluate=EvaluateConfig(every=interval, samples_per_prompt=eval_samples),
    notes=tuple(f'openai_job: {note}' for note in notes),
  )


def _hyperparameters(given) -> tuple[dict[str, Any], list[str]]:
  """Returns (those that say something we can do, what is to be said of the others)."""
  taken, notes = {}, []
  for name, value in given.items():
    if name == 'reasoning_effort':
      if value in EFFORTS:
        taken[name] = value
      elif value is not None:
        notes.append(f'reasoning_effort={value!r} is not one of {", ".join(EFFORTS)}: left aside')
    elif name not in HYPERPARAMETERS:
      near = did_you_mean(name, (*HYPERPARAMETERS, 'reasoning_effort'))
      notes.append(f'unknown hyperparameter {name!r}{near}: left aside')
    elif value not in ('auto', None):
      low, high = HYPERPARAMETERS[name]
      if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and value > 0
      ):
        taken[name] = value
      else:
        notes.append(f'{name}={value!r} is outside {low:g}..{high:g}: taken as "auto"')
  return taken, notes


def _unused(job) -> list[str]:
  notes = []
  if job.get('model'):
    notes.append(f'model={job["model"]!r} cannot be had: the base model is model.source')
  if job.get('hyperparameters'):
    notes.append(
      'hyperparameters beside method mean nothing for reinforcement; those in '
      'method.reinforcement count'
    )
  for name in ('suffix', 'metadata', 'integrations'):
    if job.get(name):
      notes.append(f'{name} is not used here')
  return notes
