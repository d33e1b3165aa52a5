"""Reads a job of OpenAI's fine-tuning API as a Config.

Every "auto" becomes a value that is printed at the start, as is every field of the job that is
ignored. The internals of the hosted service (group size, learning rate) were never published: those
values are ours.
"""

import math
import pathlib
from typing import Any

from rft_jax.config import Config, EvaluateConfig, ModelConfig, Stage
from rft_jax.data import rows
from rft_jax.data.rows import DataConfig
from rft_jax.graders.template import did_you_mean
from rft_jax.json_files import read_json
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.training.optim import OptimConfig

LEARNING_RATE = 1e-6  # times learning_rate_multiplier
SAMPLES = 8  # of each prompt, times compute_multiplier
MAX_NEW_TOKENS = {'low': 512, 'medium': 1024, 'high': 2048}  # by reasoning_effort
STEPS = 100  # approximately, where n_epochs is "auto"

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
# {name: (minimum, maximum)} of the numbers; reasoning_effort is a word
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
    ValueError: the job cannot be read or understood; lists every problem.
  """
  path = pathlib.Path(path)
  job = read_json(path)
  problems, method = _problems(job)
  if problems:
    raise ValueError(f'{path}: ' + '; '.join(problems))
  files = {
    name: _file(job.get(name), path.parent, name) for name in ('training_file', 'validation_file')
  }
  count = len(rows.read(files['training_file'])[0])
  if not count:
    raise ValueError(
      f'{path}: training_file={job["training_file"]!r}: it has no rows; need a path, '
      'relative to the current folder or to that of the job'
    )
  return _config(job, method, files, count)


def _problems(job) -> tuple[list[str], dict[str, Any]]:
  """Returns (the problems of a job, its method.reinforcement)."""
  if not isinstance(job, dict) or not isinstance(job.get('method'), dict):
    return [
      'need {"training_file": ..., "validation_file": ..., "method": {"type": '
      '"reinforcement", "reinforcement": {"grader": ...}}}'
    ], {}
  problems = [
    f'unknown field {key!r}{did_you_mean(key, JOB_FIELDS)}' for key in job if key not in JOB_FIELDS
  ]
  for name in ('training_file', 'validation_file'):
    if not isinstance(job.get(name), str):
      problems.append(f'{name}={job.get(name)!r}, need the path of a JSONL file')
    elif job[name].startswith('file-') and not pathlib.Path(job[name]).exists():
      problems.append(
        f'{name}={job[name]!r} is a file of the hosted service: download it and give its path'
      )
  kind = job['method'].get('type')
  if kind != 'reinforcement':
    problems.append(f'method.type={kind!r}, need reinforcement')
  method = job['method'].get('reinforcement')
  if not isinstance(method, dict):
    return problems + ['method.reinforcement is missing'], {}
  problems += [
    f'method.reinforcement: unknown field {key!r}{did_you_mean(key, METHOD_FIELDS)}'
    for key in method
    if key not in METHOD_FIELDS
  ]
  if not isinstance(method.get('grader'), dict):
    problems.append("method.reinforcement.grader is missing, need a grader's JSON")
  return problems, method


def _file(value, folder, name) -> str:
  path = pathlib.Path(value)
  in_folder = folder / path  # of the job
  return str(in_folder if not path.exists() and in_folder.exists() else path)


def _config(job, method, files, count) -> Config:
  hyperparameters, notes = _hyperparameters(method.get('hyperparameters') or {})
  notes += _unused(job)

  def note_auto(name, value, reason=''):
    if name not in hyperparameters:
      notes.append(f'{name}="auto": {value:g}{reason}')

  batch = int(hyperparameters.get('batch_size', min(16, count)))
  note_auto('batch_size', batch, ' prompts a step')
  epochs = hyperparameters.get('n_epochs', min(50, max(1, round(STEPS * batch / count))))
  steps = max(1, math.ceil(epochs * count / batch))
  note_auto('n_epochs', epochs, f' ({steps} steps)')
  multiplier = hyperparameters.get('learning_rate_multiplier', 1.0)
  note_auto('learning_rate_multiplier', multiplier, f' (a learning rate of {LEARNING_RATE:g})')
  compute = hyperparameters.get('compute_multiplier', 1.0)
  samples = max(2, round(SAMPLES * compute))
  note_auto('compute_multiplier', compute, f' ({samples} samples a prompt)')
  interval = int(hyperparameters.get('eval_interval', max(1, steps // 10)))
  note_auto('eval_interval', interval)
  eval_samples = int(hyperparameters.get('eval_samples', 4))
  note_auto('eval_samples', eval_samples)
  effort = hyperparameters.get('reasoning_effort', 'default')
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


def _hyperparameters(hyperparameters) -> tuple[dict[str, Any], list[str]]:
  """Returns (the hyperparameters that are used, notes on the others)."""
  used, notes = {}, []
  for name, value in hyperparameters.items():
    if name == 'reasoning_effort':
      if value in EFFORTS:
        used[name] = value
      elif value is not None:
        notes.append(f'reasoning_effort={value!r} is not one of {", ".join(EFFORTS)}: ignored')
    elif name not in HYPERPARAMETERS:
      near = did_you_mean(name, (*HYPERPARAMETERS, 'reasoning_effort'))
      notes.append(f'unknown hyperparameter {name!r}{near}: ignored')
    elif value not in ('auto', None):
      low, high = HYPERPARAMETERS[name]
      if (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and value > 0
      ):
        used[name] = value
      else:
        notes.append(f'{name}={value!r} is outside {low:g}..{high:g}: "auto" is used')
  return used, notes


def _unused(job) -> list[str]:
  notes = []
  if job.get('model'):
    notes.append(f'model={job["model"]!r} is a hosted model: the base model is model.source')
  if job.get('hyperparameters'):
    notes.append(
      'hyperparameters outside method have no effect on reinforcement; those in '
      'method.reinforcement are used'
    )
  for name in ('suffix', 'metadata', 'integrations'):
    if job.get(name):
      notes.append(f'{name} is not used here')
  return notes
