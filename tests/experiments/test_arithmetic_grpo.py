"""configs/arithmetic_grpo.py on the files of the arithmetic task."""

import pathlib

import config_files
import pytest

from rft_jax.tasks import __main__ as tasks


@pytest.fixture(scope='module')
def file():
  return config_files.load('arithmetic_grpo')


def write_task(file, to, *changes):
  """Runs the command in the error of the config; returns its exit code."""
  return tasks.main([*file.MAKE.split()[3:], '--dim=32', '--layers=1', f'--to={to}', *changes])


def test_the_command_in_the_error_writes_the_files_of_the_config(file, tmp_path):
  with pytest.raises(ValueError, match='python -m rft_jax.tasks arithmetic .* --to='):
    file.get_config(str(tmp_path))
  assert write_task(file, tmp_path) == 0
  assert file.get_config(str(tmp_path)).problems() == []


def test_grpo_and_warm_up_have_different_problems(file, tmp_path):
  write_task(file, tmp_path)
  config = file.get_config(str(tmp_path))
  rows = [
    set(pathlib.Path(path).read_text().splitlines())
    for path in (config.stages[0].data, config.data.train, config.data.validation)
  ]
  assert [len(split) for split in rows] == [1600, 1100, 300]
  assert len(set.union(*rows)) == 3000


def test_too_few_rows_is_an_error(file, tmp_path):
  write_task(file, tmp_path, '--train_rows=1000')
  with pytest.raises(ValueError, match='1000 rows, need more than the 1600'):
    file.get_config(str(tmp_path))
