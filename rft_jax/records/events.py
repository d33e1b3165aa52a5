"""events.jsonl: the events of OpenAI's fine-tuning jobs, one JSON object per line.

Tools that watch a hosted job can read them: messages (started, checkpoint, failed), and after each
step a metrics event with OpenAI's names. Values of held-out rows are in the events of steps that
were evaluated, and null in the others.
"""

import hashlib
import json
import pathlib
import time
from typing import Any, NamedTuple

import numpy as np

from rft_jax.records import atomic
from rft_jax.types import Episode

FILE = 'events.jsonl'
ERRORS = (
  'sample_parse_error',
  'invalid_variable_error',
  'other_error',
  'python_grader_server_error',
  'python_grader_runtime_error',
  'model_grader_server_error',
)
TOKENS = ('prompt_tokens', 'completion_tokens')


class GradedSamples(NamedTuple):
  """The samples of one step with their grades, in training or on held-out rows."""

  episodes: list[Episode]
  counts: dict[str, dict[str, float]]  # by grader, as GradingQueue.counts returns them


class Events:
  """Appends events to a workdir's events.jsonl; a line is on disk when its call returns."""

  def __init__(self, workdir, *, resume_step: int, clock=time.time):
    """Opens the file, dropping the metrics events of resume_step and later: written again."""
    self._path, self._clock = pathlib.Path(workdir) / FILE, clock
    lines = [
      line + '\n'
      for line in _complete_lines(self._path)
      if json.loads(line)['data'].get('step', -1) < resume_step
    ]
    atomic.write_text(self._path, ''.join(lines))
    self._file = open(self._path, 'a', encoding='utf-8', buffering=1)
    self._number = len(lines)

  def write_message(self, text: str, *, level: str = 'info', **data) -> None:
    """Appends a message, such as the start or the failure of the run."""
    self._append('message', level, text, data)

  def write_metrics(
    self,
    step: int,
    total_steps: int,
    graders,
    *,
    train: GradedSamples | None,
    valid: GradedSamples | None,
    seconds: dict[str, float],
    loss: float | None = None,
  ) -> None:
    """Appends the metrics event of one step.

    Args:
      step, total_steps: counting from 1, over all stages.
      graders: a GraderInfo each, in order.
      train: the samples that the step trained on; None: nothing was sampled (supervised).
      valid: the held-out samples; None: not evaluated at this step.
      seconds: sampling, training, eval and full_iteration.
      loss: of a supervised step.
    """
    valid_values = _sample_values(valid)
    data: dict[str, Any] = {
      'step': step,
      'total_steps': total_steps,
      'full_valid_mean_reward': valid_values['reward_mean'],
      'full_valid_mean_parse_error': valid_values['parse_error_mean'],
    }
    text = f'Step {step}/{total_steps} '
    if train is None:
      data |= {'train_loss': loss}
      text += f', training loss={loss:.2f}' if loss is not None else ''
    else:
      data |= _rollout_data(graders, train, valid)
      text += f', train mean reward={_two_decimals(data["train_mean_reward"])}'
    if valid is not None:
      text += (
        f', full validation mean reward={_two_decimals(data["full_valid_mean_reward"])}, full '
        f'validation mean parse error={_two_decimals(data["full_valid_mean_parse_error"])}'
      )
    data.setdefault('timing', {})['step'] = seconds
    self._append('metrics', 'info', text, data)

  def _append(self, kind, level, text, data):
    self._number += 1
    event = {
      'object': 'fine_tuning.job.event',
      'id': '',
      'created_at': int(self._clock()),
      'level': level,
      'message': text,
      'type': kind,
      'data': data,
    }
    digest = hashlib.sha256(f'{self._number} {json.dumps(event)}'.encode()).hexdigest()
    event |= {'id': f'ftevent-{digest[:24]}'}
    self._file.write(json.dumps(event, ensure_ascii=False) + '\n')

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if kind is not None:
      text = str(error).strip().split('\n')[0] if error else ''
      self.write_message(f'The run ended: {kind.__name__}: {text}'.rstrip(': '), level='error')
    self.close()


def _rollout_data(graders, train: GradedSamples, valid: GradedSamples | None) -> dict:
  """Returns the part of a metrics event that depends on graders and samples."""
  splits = {'train': train, 'valid': valid}
  values = {split: _sample_values(samples) for split, samples in splits.items()}
  grader_values = {split: _values_by_grader(graders, samples) for split, samples in splits.items()}

  def per_grader(keys):
    """Returns one object per grader, with train_KEY and valid_KEY of each key."""
    return [
      {
        'name': grader.name,
        'type': grader.type,
        **({'model': grader.model} if grader.model else {}),
        **{
          f'{split}_{key}': grader_values[split][grader.name].get(key)
          for key in keys
          for split in splits
        },
      }
      for grader in graders
    ]

  def per_split(*keys):
    return {f'{split}_{key}': values[split][key] for key in keys for split in splits}

  tokens = [f'{kind}_{statistic}' for kind in TOKENS for statistic in ('mean', 'count')]
  errors = [f'{error}_{statistic}' for error in ERRORS for statistic in ('mean', 'count')]
  return {
    'usage': {
      'graders': [usage for usage in per_grader(tokens) if 'model' in usage],
      'samples': per_split('reasoning_tokens_mean', 'reasoning_tokens_count'),
    },
    'errors': {
      'graders': per_grader(errors),
      **per_split('policy_fault_count', 'grader_fault_count'),
    },
    'scores': {'graders': per_grader(['reward_mean']), **per_split('reward_mean')},
    'timing': {'graders': per_grader(['execution_latency_mean'])},
    'train_mean_reward': values['train']['reward_mean'],
    'reasoning_tokens_mean': values['train']['reasoning_tokens_mean'],
    'valid_reasoning_tokens_mean': values['valid']['reasoning_tokens_mean'],
    'completion_tokens_mean': values['train']['completion_tokens_mean'],
    'mean_unresponsive_rewards': values['train']['unresponsive_mean'],
    'model_graders_token_usage': _usage_by_model(graders, splits),
  }


def _sample_values(samples: GradedSamples | None) -> dict[str, float | None]:
  """Returns the values over all graders together; None for each without samples."""
  episodes = samples.episodes if samples else []
  count = lambda number: float(number) if samples else None
  share = lambda error: _mean([error in e.grade.errors for e in episodes])
  reasoning_tokens = [e.reasoning_tokens for e in episodes]
  faults = [e.grade for e in episodes if e.grade.errors]
  return {
    'reward_mean': _mean([e.grade.reward for e in episodes if e.grade.reward is not None]),
    'parse_error_mean': share('sample_parse_error'),
    'unresponsive_mean': share('unresponsive_reward_error'),
    'reasoning_tokens_mean': _mean(reasoning_tokens),
    'reasoning_tokens_count': count(sum(reasoning_tokens)),
    'completion_tokens_mean': _mean([len(e.sample.tokens) for e in episodes]),
    'policy_fault_count': count(sum(grade.reward is not None for grade in faults)),
    'grader_fault_count': count(sum(grade.reward is None for grade in faults)),
  }


def _values_by_grader(graders, samples: GradedSamples | None) -> dict[str, dict[str, float | None]]:
  """Returns the values of each grader; {} for each without samples."""
  if samples is None:
    return {grader.name: {} for grader in graders}
  episodes = samples.episodes
  n = max(len(episodes), 1)
  # An answer that violates the response_format reaches no grader: a parse error of each of them.
  ungraded = sum(
    'sample_parse_error' in e.grade.errors and not e.grade.components for e in episodes
  )
  values = {}
  for grader in graders:
    counts = samples.counts.get(grader.name, {})
    scores = [e.grade.components.get(grader.name) for e in episodes]
    row = {'reward_mean': _mean([score for score in scores if score is not None])}
    for error in ERRORS:
      number = counts.get(f'errors/{error}', 0) + ungraded * (error == 'sample_parse_error')
      row |= {f'{error}_count': float(number), f'{error}_mean': number / n}
    for tokens in TOKENS:
      number = counts.get(f'usage/{tokens}', 0)
      row |= {f'{tokens}_count': float(number), f'{tokens}_mean': number / n}
    grades = counts.get('grades', 0)
    row['execution_latency_mean'] = counts['seconds'] / grades if grades else None
    values[grader.name] = row
  return values


def _usage_by_model(graders, splits) -> dict[str, dict[str, float]]:
  """Returns {judge model: {train_KIND, eval_KIND}}, the tokens of its graders together."""
  usage: dict[str, dict[str, float]] = {}
  for grader in graders:
    if grader.model:
      row = usage.setdefault(grader.model, {})
      for prefix, samples in zip(('train', 'eval'), splits.values()):
        counts = samples.counts.get(grader.name, {}) if samples else {}
        for tokens in ('cached_tokens', *TOKENS):
          key = f'{prefix}_{tokens}'
          row[key] = row.get(key, 0) + counts.get(f'usage/{tokens}', 0)
  return usage


def _mean(values) -> float | None:
  return float(np.mean(values)) if len(values) else None


def _two_decimals(value) -> str:
  return 'none' if value is None else f'{value:.2f}'


def _complete_lines(path) -> list[str]:
  """Returns the lines of a file; a last one without its newline is left out."""
  return path.read_text(encoding='utf-8').split('\n')[:-1] if path.is_file() else []
