"""configs/arithmetic_grpo.py on rows that the task itself has made."""

import pathlib

import config_files
import pytest

from rft_jax.tasks import __main__ as tasks


@pytest.fixture(scope='module')
def file():
  return config_files.load('arithmetic_grpo')


def make(file, to, *changes):
  """Runs the command that the config's error names, and returns its exit code."""
  return tasks.main([*file.MAKE.split()[3:], '--dim=32', '--layers=1', f'--to={to}', *changes])


def test_the_command_in_the_error_makes_what_the_config_needs(file, tmp_path):
  with pytest.raises(ValueError, match='python -m rft_jax.tasks arithmetic .* --to='):
    file.get_config(str(tmp_path))
  assert make(file, tmp_path) == 0
  assert file.get_config(str(tmp_path)).problems() == []


def test_reinforcement_gets_other_problems_than_the_warm_up(file, tmp_path):
  make(file, tmp_path)
  config = file.get_config(str(tmp_path))
  rows = [
    set(pathlib.Path(path).read_text().splitlines())
    for path in (config.stages[0].data, config.data.train, config.data.validation)
  ]
  assert [len(one) for one in rows] == [1600, 1100, 300]
  assert len(set.union(*rows)) == 3000


def test_too_few_rows_are_refused(file, tmp_path):
  make(file, tmp_path, '--train_rows=1000')
  with pytest.raises(ValueError, match='1000 rows, need more than the 1600'):
    file.get_config(str(tmp_path))
