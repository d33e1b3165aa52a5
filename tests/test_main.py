"""The command line as a user meets it: help, mistakes in one line each, exit codes."""

import json
import subprocess
import sys
import textwrap

import pytest
import tiny
from paths import ROOT


def run(*arguments, cwd=ROOT):
  return subprocess.run(
    [sys.executable, '-m', 'rft_jax.main', *map(str, arguments)],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A config file over a tiny run, and the directory of its files."""
  directory = tmp_path_factory.mktemp('made')
  tiny.config(directory)
  file = directory / 'run.py'
  file.write_text(
    textwrap.dedent(f"""
      import pathlib, sys
      sys.path.insert(0, {str(ROOT / 'tests')!r})
      import tiny
      def get_config(rows='train.jsonl'):
        directory = pathlib.Path({str(directory)!r})
        tiny.write_base = lambda to: str(to)
        config = tiny.config(directory)
        config.data.train = str(directory / rows)
        return config
      """)
  )
  return file


def test_help_needs_no_jax_and_exits_with_0():
  result = run('--help')
  assert result.returncode == 0 and '--workdir' in result.stdout and '--mode' in result.stdout


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], ['--config=FILE.py is missing']),
    (['--config=nowhere.py'], ['there is no file nowhere.py']),
    (['--config={made}'], ['--workdir=DIR is missing']),
    (['--config={made}', '--workdir=x', '--mode=trian'], ['mode', 'train']),
    (['--config={made}', '--workdir=x', '--wrokdir=y'], ['wrokdir']),
    (['--config={made}', '--workdir=x', 'train'], ["'train'", '--name=value']),
    (
      ['--config={made}', '--workdir=x', '--config.rollout.temprature=1', '--config.seeed=3'],
      ["no field 'temprature'", "'temperature'", "no field 'seeed'", "'seed'"],
    ),
    (
      ['--config={made}', '--workdir=x', '--config.rollout.temperature=warm'],
      ['temperature', 'warm'],
    ),
    (['--config={made}', '--workdir=x', '--config.stages[7].steps=3'], ['stages has 2 elements']),
    (
      ['--config={made}', '--workdir=x', '--config.stages.1.steps=3'],
      ['config.stages is a list: write config.stages[1]'],
    ),
    (['--config={made}', '--workdir=x', '--config.seed.x=3'], ['single value']),
    (
      [
        '--config={made}',
        '--workdir=x',
        '--config.rollout.samples_per_prompt=1',
        '--config.rollout.top_p=7',
      ],
      ['samples_per_prompt=1', 'top_p=7'],
    ),
    (
      ['--config={made}', '--workdir=x', '--config.model.source=nowhere/at/all'],
      ['nowhere/at/all'],
    ),
    (['--config={made}', '--workdir=x', '--config.data.train=absent.jsonl'], ['absent.jsonl']),
    (['--config={made}', '--workdir=x', '--config.grader=absent.json'], ['absent.json']),
    (['--config={made}', '--workdir=x', '--mode=export'], ['holds no checkpoint']),
    (['--config', '{made}', '--workdir=x', '--mode=report'], ['holds no run']),
  ],
)
def test_a_mistake_is_said_in_words_with_exit_code_2(made, tmp_path, arguments, words):
  result = run(
    *[a.format(made=made).replace('--workdir=x', f'--workdir={tmp_path}/x') for a in arguments]
  )
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  for word in words:
    assert word in result.stderr
  assert not (tmp_path / 'x').exists() or not list((tmp_path / 'x').iterdir())


def test_a_config_file_that_raises_is_named_with_its_line(tmp_path):
  file = tmp_path / 'broken.py'
  file.write_text('def get_config():\n  return 1 / 0\n')
  result = run(f'--config={file}', f'--workdir={tmp_path}/x')
  assert result.returncode == 2 and 'line 2: ZeroDivisionError' in result.stderr
  file.write_text('def get_config(:\n')
  result = run(f'--config={file}', f'--workdir={tmp_path}/x')
  assert result.returncode == 2 and 'line 1' in result.stderr


def test_all_broken_rows_are_told_at_once(made):
  rows = made.parent / 'broken.jsonl'
  good = json.dumps(
    {'messages': [{'role': 'user', 'content': 'a'}], 'answer': '1', 'solution': 'b'}
  )
  rows.write_text(
    f'{good}\nnot json\n{{"messages": []}}\n{good}\n'
    '{"messages": [{"role": "user", "content": "a"}], "solution": "b"}\n'
  )
  result = run(f'--config={made}:broken.jsonl', f'--workdir={made.parent}/x')
  assert result.returncode == 2, result.stderr
  assert '2' in result.stderr and 'E_JSON' in result.stderr
  assert '3' in result.stderr and 'E_MESSAGES_EMPTY' in result.stderr


def test_train_stop_continue_evaluate_export_by_command_line(made):
  workdir = made.parent / 'run'
  common = (f'--config={made}', f'--workdir={workdir}', '--config.evaluate.rows=2')
  first = run(*common, '--stop_at_step=2')
  assert first.returncode == 0, first.stderr
  assert not (workdir / 'report.html').exists()
  second = run(*common)
  assert second.returncode == 0, second.stderr
  assert 'continues from step 2' in second.stderr
  assert (workdir / 'report.html').exists() and (workdir / 'export' / 'config.json').exists()
  third = run(*common, '--mode=evaluate', '--checkpoint=last')
  assert set(json.loads(third.stdout)['grade']) == {'mean', 'low', 'high'}
  fourth = run(*common, '--mode=export', '--checkpoint=3', f'--to={made.parent}/out')
  assert fourth.returncode == 0 and (made.parent / 'out' / 'model.safetensors').exists()
