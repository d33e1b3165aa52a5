"""python -m rft_jax.tasks NAME --to=DIR, from the shell's side."""

import json

import pytest

from rft_jax.tasks import __main__ as command

SMALL = [
  '--train_rows=40',
  '--validation_rows=20',
  '--dim=32',
  '--heads=2',
  '--kv_heads=1',
  '--mlp_dim=32',
  '--layers=1',
]


@pytest.mark.parametrize('task', ['rare_disease', 'arithmetic', 'chains'])
def test_it_writes_rows_grader_facts_and_a_checkpoint(task, tmp_path):
  assert command.main([task, f'--to={tmp_path}', *SMALL]) == 0
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
    assert command.main(['rare_disease', f'--to={tmp_path}', *SMALL]) == 0
    texts.append((tmp_path / 'train.jsonl').read_text() + (tmp_path / 'task.json').read_text())
  assert texts[0] == texts[1]


def test_pairs_are_given_with_a_comma(tmp_path):
  assert command.main(['rare_disease', f'--to={tmp_path}', '--present_range=2,5', *SMALL]) == 0
  assert json.loads((tmp_path / 'task.json').read_text())['config']['present_range'] == [2, 5]


def test_bad_values_are_told_at_once_with_exit_code_2(tmp_path, capsys):
  assert command.main(['rare_disease', f'--to={tmp_path}/x', '--genes=99', '--heads=5']) == 2
  told = capsys.readouterr().err
  assert 'genes=99, need 2 to 26' in told and 'dim=128, need a multiple' in told
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize(
  'wrong',
  [
    ['no_such_task'],
    ['rare_disease', '--gens=3'],
    ['rare_disease', '--present_range=3'],
    ['rare_disease'],
  ],
)
def test_a_misspelt_argument_exits_with_2(wrong, tmp_path):
  with pytest.raises(SystemExit) as stop:
    command.main([*wrong, *([f'--to={tmp_path}'] if len(wrong) > 1 else [])])
  assert stop.value.code == 2
