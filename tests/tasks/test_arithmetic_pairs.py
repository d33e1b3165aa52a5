"""Preference pairs for arithmetic: a right solution and one with an error in one step."""

import json

import config_files
import numpy as np
import pytest
import task_command

from rft_jax.run import build
from rft_jax.tasks import arithmetic_pairs
from rft_jax.tasks.arithmetic_pairs import STEP


def wrong_steps(solution):
  """Returns the number of steps whose result is wrong for their operands."""
  return sum(eval(f'{a} {sign} {b}') != int(c) for a, sign, b, c in STEP.findall(solution))


def test_the_command_writes_pairs(tmp_path):
  assert task_command.run('arithmetic', tmp_path, '--pairs=30') == 0
  read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
  pairs, train = read('pairs.jsonl'), read('train.jsonl')
  assert [row['messages'] for row in pairs] == [row['messages'] for row in train[-30:]]
  assert [row['messages'] for row in read('pairs_validation.jsonl')] == [
    row['messages'] for row in read('validation.jsonl')
  ]
  for pair, row in zip(pairs, train[-30:]):
    assert pair['chosen'] == row['solution'] and pair['answer'] == row['answer']
    assert pair['rejected'].rpartition('</think>')[2] != pair['answer']
    assert STEP.sub('', pair['rejected']).startswith('<think>; </think>')
    assert wrong_steps(pair['chosen']) == 0 and wrong_steps(pair['rejected']) == 1


def test_an_error_is_carried_through_the_later_steps():
  solution = '<think>4 * 5 = 20; 3 + 20 = 23; 23 - 6 = 17</think>17'
  wrong = {arithmetic_pairs.introduce_error(solution, np.random.default_rng(n)) for n in range(200)}
  assert '<think>4 * 5 = 21; 3 + 21 = 24; 24 - 6 = 18</think>18' in wrong
  assert '<think>4 * 5 = 20; 3 + 20 = 23; 23 - 6 = 7</think>7' in wrong
  assert all(wrong_steps(text) == 1 and not text.endswith('>17') for text in wrong)


def test_invalid_pairs_are_errors(tmp_path, capsys):
  assert task_command.run('arithmetic', tmp_path, '--pairs=41') == 2
  assert 'pairs=41, need 0 to train_rows=40' in capsys.readouterr().err
  with pytest.raises(ValueError, match='need <think>steps'):
    arithmetic_pairs.introduce_error('about 17', np.random.default_rng(0))


def test_the_dpo_config_accepts_the_files_of_the_task_or_a_file_of_pairs(tmp_path):
  file = config_files.load('preferences_dpo')
  with pytest.raises(ValueError, match='python -m rft_jax.tasks arithmetic .* --pairs=1100 --to='):
    file.get_config(str(tmp_path))
  assert task_command.run('arithmetic', tmp_path, '--pairs=30') == 0
  config = file.get_config(str(tmp_path))
  config.model.source = str(tmp_path / 'base')
  with build.components(config) as components:
    assert len(components.train[0]) == 30 and len(components.validation) == 20
    assert components.validation[0].rejected_ids and components.grader.name == 'exact'
  (tmp_path / 'pairs.jsonl').rename(tmp_path / 'own_pairs.jsonl')
  config = file.get_config(str(tmp_path / 'own_pairs.jsonl'))
  config.model.source = str(tmp_path / 'base')
  config.data.validation = str(tmp_path / 'pairs_validation.jsonl')
  with build.components(config) as components:
    assert components.grader is None and len(components.train[0]) == 30
