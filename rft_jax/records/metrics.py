"""metrics.jsonl: one JSON object per training step; evaluation.jsonl: one per evaluation.

Names are TRL's where TRL has one. A number that is not finite is written as null, so that every
line is JSON that every reader accepts.
"""

import json
import math
import pathlib

from rft_jax.records import atomic

TRAINING, EVALUATION = 'metrics.jsonl', 'evaluation.jsonl'


class Metrics:
  """Appends rows to the two files of a workdir; a line is on disk when its call returns.

  A run that starts, or continues, at step k first drops the rows from step k on, which it writes
  again: its files equal those of a run that was never stopped.
  """

  def __init__(
    self, workdir, *, resume_step: int | None = None, resume_evaluation: int | None = None
  ):
    """Opens the files, dropping the rows whose step is >= resume_step.

    Args:
      resume_step: the first step of metrics.jsonl that will be written (again). None: every
        row stays.
      resume_evaluation: the same for evaluation.jsonl; None: resume_step.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._paths = {TRAINING: workdir / TRAINING, EVALUATION: workdir / EVALUATION}
    if resume_evaluation is None:
      resume_evaluation = resume_step
    _truncate(self._paths[TRAINING], resume_step)
    _truncate(self._paths[EVALUATION], resume_evaluation)
    self._files = {
      name: open(path, 'a', encoding='utf-8', buffering=1) for name, path in self._paths.items()
    }

  def write(self, step: int, values: dict) -> None:
    """Appends one training step: {'step': step, **values}.

    Raises:
      TypeError: a value is not a number, bool, str or None; names it.
    """
    row = {'step': int(step)} | {name: _scalar(name, value) for name, value in values.items()}
    self._append(TRAINING, row)

  def write_evaluation(self, step: int, split: str, rows: int, values: dict[str, dict]) -> None:
    """Appends one held-out evaluation.

    Args:
      step: number of steps that the evaluated policy has been trained for.
      split: of the rows: 'validation', 'test', ...
      rows: number of rows.
      values: {metric: {'mean', 'low', 'high'}}, low and high the bounds of a 95 % interval.
    """
    row = {'step': int(step), 'split': split, 'rows': int(rows)}
    for name, interval in values.items():
      row[name] = {key: _scalar(f'{name}.{key}', interval[key]) for key in ('mean', 'low', 'high')}
    self._append(EVALUATION, row)

  def close(self) -> None:
    """Closes both files."""
    for file in self._files.values():
      file.close()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _append(self, name, row):
    self._files[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n')


def read(path) -> list[dict]:
  """Returns the rows of a .jsonl file, [] if there is none. An incomplete last line is left out.

  Raises:
    ValueError: a line before the last is not JSON; names file and line.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    return []
  lines = path.read_text(encoding='utf-8').split('\n')
  rows = []
  for number, line in enumerate(lines[:-1], start=1):  # text after the last newline is incomplete
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      raise ValueError(f'{path}:{number}: not JSON ({error}); remove the line') from error
  return rows


def _truncate(path, step):
  """Rewrites a file without the rows of `step` and later, and without an incomplete line."""
  if path.is_file():
    rows = [row for row in read(path) if step is None or row['step'] < step]
    atomic.write_text(path, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))


def _scalar(name, value):
  """Returns a JSON scalar: a Python number for one of numpy or jax, None for NaN and infinity."""
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if getattr(value, 'shape', None) == ():
    value = value.item()
  if not isinstance(value, (bool, int, float)):
    raise TypeError(f'metric {name} is a {type(value).__name__}, need a number')
  return value if math.isfinite(value) else None
