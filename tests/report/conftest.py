"""Fake runs, and the report of a finished one."""

import fake_runs
import pytest

from rft_jax.report import report


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """run/, continued/, older/ and task.json, as fake_runs.write_all writes them."""
  folder = tmp_path_factory.mktemp('runs')
  fake_runs.write_all(folder)
  return folder


@pytest.fixture(scope='session')
def finished(folder):
  """The path of the report of the finished run, and its page as text."""
  config = report.ReportConfig(
    compare=(
      f'Warm-up continued for the same tokens={folder / "continued"}',
      f'This run itself={folder / "run"}',
    ),
    reference=f'{folder / "task.json"}:bayes_optimal,reader',
  )
  path = report.write(folder / 'run', title='Rare disease: gene from findings', config=config)
  return path, path.read_text(encoding='utf-8')
