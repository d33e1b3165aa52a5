"""Mistakes on the command line: one line for each problem, and exit code 2."""

import pytest
from main_command import run, write_config_file

from rft_jax import command_line


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  return write_config_file(tmp_path_factory.mktemp('config'))


def refusal(capsys, *arguments):
  """Returns the lines that the parser prints before it exits with code 2."""
  with pytest.raises(SystemExit) as caught:
    command_line.parser('usage')(['main.py', *map(str, arguments)])
  assert caught.value.code == 2
  return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
  'arguments, message',
  [
    ([], '--config=FILE.py is missing'),
    (['--config=nowhere.py'], 'there is no file nowhere.py'),
    (['--config={file}', '--config.stages[7].steps=3'], 'stages has 2 elements'),
    (
      ['--config={file}', '--config.stages.1.steps=3'],
      'config.stages is a list: write config.stages[1]',
    ),
    (['--config={file}', '--config.seed.x=3'], 'it is a single value'),
  ],
)
def test_a_wrong_file_or_field_is_refused_before_anything_is_read(
  config_file, capsys, arguments, message
):
  (line,) = refusal(capsys, *[argument.format(file=config_file) for argument in arguments])
  assert line.startswith('rft_jax: ') and message in line


def test_every_misspelt_field_has_a_line_with_the_nearest_name(config_file, capsys):
  overrides = ['--config.rollout.temprature=1', '--config.seeed=3']
  lines = refusal(capsys, f'--config={config_file}', *overrides)
  assert len(lines) == 2
  assert "no field 'temprature', did you mean 'temperature'?" in lines[0]
  assert "no field 'seeed', did you mean 'seed'?" in lines[1]


def test_the_old_name_of_a_renamed_field_has_a_line_with_the_new_name(config_file, capsys):
  old_names = list(command_line.RENAMED_FIELDS)
  lines = refusal(capsys, f'--config={config_file}', *[f'--{name}=1' for name in old_names])
  assert len(lines) == len(old_names) > 0
  for line, (old, new) in zip(lines, command_line.RENAMED_FIELDS.items()):
    assert line.startswith(f'rft_jax: --{old}=1: ') and line.endswith(f'it is {new}')
  new_names = command_line.RENAMED_FIELDS.values()
  (line,) = refusal(
    capsys, f'--config={config_file}', *[f'--{name}=1' for name in new_names], '--config.seeed=3'
  )
  assert "'seeed'" in line  # every new name exists


def test_a_field_of_a_renamed_group_has_a_line_with_the_new_name(config_file, capsys):
  (line,) = refusal(capsys, f'--config={config_file}', '--config.robust.clip=True')
  assert 'config.noisy_grades' in line


@pytest.mark.parametrize(
  'text, message',
  [
    ('def get_config():\n  return 1 / 0\n', 'line 2: ZeroDivisionError'),
    ('def get_config(:\n', 'line 1'),
    ('def get_config():\n  return {}\n', 'get_config() returned '),
  ],
)
def test_a_broken_config_file_is_named_with_the_line(tmp_path, capsys, text, message):
  file = tmp_path / 'broken.py'
  file.write_text(text)
  (line,) = refusal(capsys, f'--config={file}')
  assert f'--config={file}: ' in line and message in line


@pytest.mark.full
@pytest.mark.parametrize(
  'argument, messages',
  [
    ('--mode=trian', ['mode', 'train']),
    ('--wrokdir=y', ['wrokdir']),
    ('train', ["'train'", '--name=value']),
    ('--config.rollout.temperature=warm', ['temperature', 'warm']),
  ],
)
def test_a_wrong_flag_or_value_exits_with_code_2(config_file, tmp_path, argument, messages):
  result = run(f'--config={config_file}', f'--workdir={tmp_path}/x', argument)
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert [message for message in messages if message not in result.stderr] == []
  assert not (tmp_path / 'x').exists()


def test_help_needs_no_config_and_exits_with_code_0():
  result = run('--help')
  assert result.returncode == 0 and '--workdir' in result.stdout and '--mode' in result.stdout


def test_overrides_are_the_arguments_that_set_config_fields():
  argv = ['main.py', '--config=a.py', '--config.seed=3', '--workdir=x', '--noconfig.rollout.tied']
  assert command_line.overrides(argv) == ['--config.seed=3', '--noconfig.rollout.tied']
