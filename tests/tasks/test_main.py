"""The command python -m rft_jax.tasks NAME --to=DIR."""

import json

import pytest
import task_command

from rft_jax.tasks import __main__ as command


@pytest.mark.parametrize('task', ['rare_disease', 'arithmetic', 'chains'])
def test_it_writes_rows_grader_metadata_and_a_checkpoint(task, tmp_path):
  assert task_command.run(task, tmp_path) == 0
  rows = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
  assert len(rows) == 40 and rows[0]['messages'][-1]['role'] == 'user'
  assert len((tmp_path / 'validation.jsonl').read_text().splitlines()) == 20
  assert json.loads((tmp_path / 'grader.json').read_text())['type'] in ('python', 'string_check')
  assert json.loads((tmp_path / 'task.json').read_text())['config']['train_rows'] == 40
  assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {
    path.name for path in (tmp_path / 'base').iterdir()
  }
  assert not [path for path in tmp_path.iterdir() if path.suffix == '.part']


def test_running_it_again_writes_the_same_rows(tmp_path):
  texts = []
  for _ in range(2):
    assert task_command.run('rare_disease', tmp_path) == 0
    texts.append((tmp_path / 'train.jsonl').read_text() + (tmp_path / 'task.json').read_text())
  assert texts[0] == texts[1]


def test_ranges_are_two_numbers_with_a_comma(tmp_path):
  assert task_command.run('rare_disease', tmp_path, '--present_range=2,5') == 0
  assert json.loads((tmp_path / 'task.json').read_text())['config']['present_range'] == [2, 5]


def test_all_invalid_values_are_printed_with_exit_code_2(tmp_path, capsys):
  assert command.main(['rare_disease', f'--to={tmp_path}/x', '--genes=99', '--heads=5']) == 2
  error = capsys.readouterr().err
  assert 'genes=99, need 2 to 26' in error and 'dim=128, need a multiple' in error
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
  'arguments',
  [
    ['no_such_task'],
    ['rare_disease', '--gens=3'],
    ['rare_disease', '--present_range=3'],
    ['rare_disease'],
  ],
)
def test_wrong_arguments_exit_with_2(arguments, tmp_path):
  with pytest.raises(SystemExit) as stop:
    command.main([*arguments, *([f'--to={tmp_path}'] if len(arguments) > 1 else [])])
  assert stop.value.code == 2
