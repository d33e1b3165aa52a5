"""A task added from outside the package with one line: tasks.TASKS['mine'] = module."""

import dataclasses
import json
import types

import task_command

from rft_jax import tasks
from rft_jax.tasks import arithmetic, files


@dataclasses.dataclass(slots=True, kw_only=True)
class Doubles:
  """Rows of a number and its double."""

  seed: int = 0
  train_rows: int = 100
  validation_rows: int = 10

  def validate(self):
    return [] if self.train_rows >= 1 else [f'train_rows={self.train_rows}, need >= 1']


def make(config):
  row = lambda n: {
    'messages': [{'role': 'user', 'content': f'2 * {n}'}],
    'answer': str(2 * n),
    'solution': str(2 * n),
  }
  rows = [row(n) for n in range(config.train_rows + config.validation_rows)]
  metadata = {'task': 'doubles', 'config': dataclasses.asdict(config), 'reference': {}}
  train = rows[config.validation_rows :]
  return files.Files(train, rows[: config.validation_rows], arithmetic.GRADER, metadata)


def test_the_command_writes_it(tmp_path, monkeypatch):
  module = types.SimpleNamespace(Config=Doubles, make=make, __doc__='Doubles of numbers.')
  monkeypatch.setitem(tasks.TASKS, 'doubles', module)
  assert task_command.run('doubles', tmp_path) == 0
  rows = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
  assert len(rows) == 40 and rows[0]['answer'] == '40'
  assert json.loads((tmp_path / 'task.json').read_text())['config']['validation_rows'] == 20
  assert (tmp_path / 'base' / 'model.safetensors').is_file()
