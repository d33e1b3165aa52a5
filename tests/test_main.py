"""The modes of the command line: train, continue, evaluate, export; bad input has exit code 2."""

import json

import pytest
from main_command import run, write_config_file


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  return write_config_file(tmp_path_factory.mktemp('main'))


@pytest.mark.full
@pytest.mark.parametrize(
  'arguments, messages',
  [
    (['--config={file}'], ['--workdir=DIR is missing']),
    (
      [
        '--config={file}',
        '--workdir={workdir}',
        '--config.rollout.samples_per_prompt=1',
        '--config.rollout.top_p=7',
      ],
      ['samples_per_prompt=1', 'top_p=7'],
    ),
    (
      ['--config={file}', '--workdir={workdir}', '--config.model.source=nowhere/at/all'],
      ['nowhere/at/all'],
    ),
    (
      ['--config={file}', '--workdir={workdir}', '--config.data.train=absent.jsonl'],
      ['absent.jsonl'],
    ),
    (['--config={file}', '--workdir={workdir}', '--config.grader=absent.json'], ['absent.json']),
    (['--config={file}', '--workdir={workdir}', '--mode=export'], ['holds no checkpoint']),
    (['--config', '{file}', '--workdir={workdir}', '--mode=report'], ['holds no run']),
  ],
)
def test_bad_input_is_refused_with_exit_code_2(config_file, tmp_path, arguments, messages):
  workdir = tmp_path / 'workdir'
  result = run(*[argument.format(file=config_file, workdir=workdir) for argument in arguments])
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  assert [message for message in messages if message not in result.stderr] == []
  assert not workdir.exists() or not list(workdir.iterdir())


def test_all_broken_rows_are_reported_at_once(config_file):
  rows = config_file.parent / 'broken.jsonl'
  good = json.dumps(
    {'messages': [{'role': 'user', 'content': 'a'}], 'answer': '1', 'solution': 'b'}
  )
  rows.write_text(
    f'{good}\nnot json\n{{"messages": []}}\n{good}\n'
    '{"messages": [{"role": "user", "content": "a"}], "solution": "b"}\n'
  )
  result = run(f'--config={config_file}:broken.jsonl', f'--workdir={config_file.parent}/x')
  assert result.returncode == 2, result.stderr
  assert '2' in result.stderr and 'E_JSON' in result.stderr
  assert '3' in result.stderr and 'E_MESSAGES_EMPTY' in result.stderr


@pytest.mark.full
def test_train_stop_continue_evaluate_and_export(config_file):
  workdir = config_file.parent / 'run'
  common = (f'--config={config_file}', f'--workdir={workdir}', '--config.evaluate.rows=2')
  stopped = run(*common, '--stop_at_step=2')
  assert stopped.returncode == 0, stopped.stderr
  assert not (workdir / 'report.html').exists()
  continued = run(*common)
  assert continued.returncode == 0, continued.stderr
  assert 'continues from step 2' in continued.stderr
  assert (workdir / 'report.html').exists() and (workdir / 'export' / 'config.json').exists()
  evaluated = run(*common, '--mode=evaluate', '--checkpoint=last')
  assert set(json.loads(evaluated.stdout)['grade']) == {'mean', 'low', 'high'}
  to = config_file.parent / 'out'
  exported = run(*common, '--mode=export', '--checkpoint=3', f'--to={to}')
  assert exported.returncode == 0 and (to / 'model.safetensors').exists()
