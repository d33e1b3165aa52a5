"""events.jsonl: the events of OpenAI's fine-tuning jobs, one JSON object a line.

What watched a hosted job reads these: messages of the run's life, and after each step a metrics
event under the hosted names. Values of held-out rows stand in the events of steps that were
evaluated, and are null in the others.
"""

import hashlib
import json
import pathlib
import time
from typing import NamedTuple

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
  """What was sampled and graded in one step, in training or on held-out rows."""

  episodes: list[Episode]
  counts: dict[str, dict[str, float]]  # by grader: grading.Desk.counts


class Events:
  """Appends events to a workdir's events.jsonl; a line is on disk when its call returns."""

  def __init__(self, workdir, *, resume_step: int, clock=time.time):
    """Opens the file, dropping the metrics events of resume_step and later, which come again."""
    self._path, self._clock = pathlib.Path(workdir) / FILE, clock
    kept = []
    for line in _whole_lines(self._path):
      data = json.loads(line)['data']
      if data.get('step', -1) < resume_step:
        kept.append(line + '\n')
    atomic.write_text(self._path, ''.join(kept))
    self._file = open(self._path, 'a', encoding='utf-8', buffering=1)
    self._number = len(kept)

  def message(self, text: str, *, level: str = 'info', **data) -> None:
    """Appends a message of the run's life."""
    self._append('message', level, text, data)

  def metrics(
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
      graders: name, type and model of each, in order.
      train: what the step learnt from; None: nothing was sampled (supervised).
      valid: the held-out samples; None: not evaluated at this step.
      seconds: sampling, training, eval and full_iteration.
      loss: of a supervised step.
    """
    held_out = _values(valid)
    data = {
      'step': step,
      'total_steps': total_steps,
      'full_valid_mean_reward': held_out['reward_mean'],
      'full_valid_mean_parse_error': held_out['parse_error_mean'],
    }
    text = f'Step {step}/{total_steps} '
    if train is None:
      data |= {'train_loss': loss}
      text += f', training loss={loss:.2f}' if loss is not None else ''
    else:
      data |= _payload(graders, train, valid, held_out)
      text += f', train mean reward={_two(data["train_mean_reward"])}'
    if valid is not None:
      text += (
        f', full validation mean reward={_two(data["full_valid_mean_reward"])}, full '
        f'validation mean parse error={_two(data["full_valid_mean_parse_error"])}'
      )
    data.setdefault('timing', {})['step'] = seconds
    self._append('metrics', 'info', text, data)

  def _append(self, kind, level, text, data):
    self._number += 1
    made = {
      'object': 'fine_tuning.job.event',
      'id': '',
      'created_at': int(self._clock()),
      'level': level,
      'message': text,
      'type': kind,
      'data': data,
    }
    digest = hashlib.sha256(f'{self._number} {json.dumps(made)}'.encode()).hexdigest()
    self._file.write(json.dumps(made | {'id': f'ftevent-{digest[:24]}'}, ensure_ascii=False) + '\n')

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    if kind is not None:
      text = str(error).strip().split('\n')[0] if error else ''
      self.message(f'The run ended: {kind.__name__}: {text}'.rstrip(': '), level='error')
    self.close()


def _payload(graders, train: GradedSamples, valid: GradedSamples | None, held_out) -> dict:
  """Returns what the data of a metrics event has of graders and samples."""
  sides = {'train': train, 'valid': valid}
  ours = {'train': _values(train), 'valid': held_out}
  columns = {side: _by_grader(graders, given) for side, given in sides.items()}

  def listed(keys):
    """One object a grader, with train_KEY and valid_KEY of each key."""
    return [
      {
        'name': grader.name,
        'type': grader.type,
        **({'model': grader.model} if grader.model else {}),
        **{f'{side}_{key}': columns[side][grader.name].get(key) for key in keys for side in sides},
      }
      for grader in graders
    ]

  judges = [
    one
    for one in listed([f'{tokens}_{how}' for tokens in TOKENS for how in ('mean', 'count')])
    if 'model' in one
  ]
  errors = [f'{error}_{how}' for error in ERRORS for how in ('mean', 'count')]
  both = lambda *names: {f'{side}_{name}': ours[side][name] for name in names for side in sides}
  return {
    'usage': {
      'graders': judges,
      'samples': both('reasoning_tokens_mean', 'reasoning_tokens_count'),
    },
    'errors': {'graders': listed(errors), **both('policy_fault_count', 'grader_fault_count')},
    'scores': {'graders': listed(['reward_mean']), **both('reward_mean')},
    'timing': {'graders': listed(['execution_latency_mean'])},
    'train_mean_reward': ours['train']['reward_mean'],
    'reasoning_tokens_mean': ours['train']['reasoning_tokens_mean'],
    'valid_reasoning_tokens_mean': ours['valid']['reasoning_tokens_mean'],
    'completion_tokens_mean': ours['train']['completion_tokens_mean'],
    'mean_unresponsive_rewards': ours['train']['unresponsive_mean'],
    'model_graders_token_usage': _usage_by_model(graders, sides),
  }


def _values(side: GradedSamples | None) -> dict[str, float | None]:
  """Returns what is told of all graders together; None for each where there is no side."""
  episodes = side.episodes if side else []
  share = lambda key: _mean([key in e.grade.errors for e in episodes])
  reasoning = [e.reasoning_tokens for e in episodes]
  ungraded = [e.grade for e in episodes if e.grade.errors]
  count = lambda some: float(len(some)) if side else None
  return {
    'reward_mean': _mean([e.grade.reward for e in episodes if e.grade.reward is not None]),
    'parse_error_mean': share('sample_parse_error'),
    'unresponsive_mean': share('unresponsive_reward_error'),
    'reasoning_tokens_mean': _mean(reasoning),
    'reasoning_tokens_count': float(sum(reasoning)) if side else None,
    'completion_tokens_mean': _mean([len(e.sample.tokens) for e in episodes]),
    'policy_fault_count': count([g for g in ungraded if g.reward is not None]),
    'grader_fault_count': count([g for g in ungraded if g.reward is None]),
  }


def _by_grader(graders, side: GradedSamples | None) -> dict[str, dict[str, float]]:
  """Returns the values of each grader; no values where there is no side."""
  if side is None:
    return {grader.name: {} for grader in graders}
  n = max(len(side.episodes), 1)
  # An answer that breaks the response_format reaches no grader, and is a parse error of each.
  unread = sum(
    'sample_parse_error' in e.grade.errors and not e.grade.components for e in side.episodes
  )
  made = {}
  for grader in graders:
    counts = side.counts.get(grader.name, {})
    scores = [e.grade.components.get(grader.name) for e in side.episodes]
    row = {'reward_mean': _mean([score for score in scores if score is not None])}
    for error in ERRORS:
      number = counts.get(f'errors/{error}', 0) + unread * (error == 'sample_parse_error')
      row |= {f'{error}_count': float(number), f'{error}_mean': number / n}
    for tokens in TOKENS:
      number = counts.get(f'usage/{tokens}', 0)
      row |= {f'{tokens}_count': float(number), f'{tokens}_mean': number / n}
    grades = counts.get('grades', 0)
    row['execution_latency_mean'] = counts['seconds'] / grades if grades else None
    made[grader.name] = row
  return made


def _usage_by_model(graders, sides) -> dict[str, dict[str, float]]:
  usage = {}
  for grader in graders:
    if grader.model:
      row = usage.setdefault(grader.model, {})
      for name, side in zip(('train', 'eval'), sides.values()):
        for tokens in ('cached_tokens', *TOKENS):
          given = side.counts.get(grader.name, {}) if side else {}
          row[f'{name}_{tokens}'] = row.get(f'{name}_{tokens}', 0) + given.get(f'usage/{tokens}', 0)
  return usage


def _mean(values) -> float | None:
  return float(np.mean(values)) if len(values) else None


def _two(value) -> str:
  return 'none' if value is None else f'{value:.2f}'


def _whole_lines(path) -> list[str]:
  """Returns the lines of a file that end; a last one cut short is left out."""
  return path.read_text(encoding='utf-8').split('\n')[:-1] if path.is_file() else []
