"""Pairs of worked sums: the right one is right, the wrong one wrong, and both look alike."""

import json

import config_files
import numpy as np
import pytest

from rft_jax import graders
from rft_jax.run import build
from rft_jax.tasks import __main__ as command
from rft_jax.tasks import arithmetic_pairs
from rft_jax.tasks.arithmetic_pairs import STEP

SMALL = [
  '--train_rows=40',
  '--validation_rows=20',
  '--dim=32',
  '--heads=2',
  '--kv_heads=1',
  '--mlp_dim=32',
  '--layers=1',
]


def _slips(solution):
  """How many steps of a solution are wrong by themselves."""
  return sum(eval(f'{a} {sign} {b}') != int(c) for a, sign, b, c in STEP.findall(solution))


def test_the_command_writes_pairs_beside_the_other_files(tmp_path):
  assert command.main(['arithmetic', f'--to={tmp_path}', '--pairs=30', *SMALL]) == 0
  read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
  pairs, train = read('pairs.jsonl'), read('train.jsonl')
  assert [row['messages'] for row in pairs] == [row['messages'] for row in train[-30:]]
  assert [row['messages'] for row in read('pairs_validation.jsonl')] == [
    row['messages'] for row in read('validation.jsonl')
  ]
  for row, source in zip(pairs, train[-30:]):
    assert row['chosen'] == source['solution'] and row['answer'] == source['answer']
    assert row['rejected'].rpartition('</think>')[2] != row['answer']
    assert STEP.sub('', row['rejected']).startswith('<think>; </think>')
    assert _slips(row['chosen']) == 0 and _slips(row['rejected']) == 1


def test_a_slip_is_carried_on_through_all_later_steps():
  solution = '<think>4 * 5 = 20; 3 + 20 = 23; 23 - 6 = 17</think>17'
  seen = {arithmetic_pairs.slipped(solution, np.random.default_rng(n)) for n in range(200)}
  assert '<think>4 * 5 = 21; 3 + 21 = 24; 24 - 6 = 18</think>18' in seen
  assert '<think>4 * 5 = 20; 3 + 20 = 23; 23 - 6 = 7</think>7' in seen
  assert all(_slips(text) == 1 and not text.endswith('>17') for text in seen)


def test_what_cannot_be_paired_is_refused(tmp_path, capsys):
  assert command.main(['arithmetic', f'--to={tmp_path}', '--pairs=41', *SMALL]) == 2
  assert 'pairs=41, need 0 to train_rows=40' in capsys.readouterr().err
  with pytest.raises(ValueError, match='need <think>steps'):
    arithmetic_pairs.slipped('about 17', np.random.default_rng(0))


def test_the_config_takes_what_the_command_has_made_or_a_file_of_ones_own(tmp_path):
  file = config_files.load('preferences_dpo')
  with pytest.raises(ValueError, match='python -m rft_jax.tasks arithmetic .* --pairs=1100 --to='):
    file.get_config(str(tmp_path))
  assert command.main(['arithmetic', f'--to={tmp_path}', '--pairs=30', *SMALL]) == 0
  config = file.get_config(str(tmp_path))
  config.model.source = str(tmp_path / 'base')
  with build.components(config) as components:
    assert len(components.train[0]) == 30 and len(components.validation) == 20
    assert components.validation[0].rejected_ids and components.grader.name == 'exact'
  (tmp_path / 'pairs.jsonl').rename(tmp_path / 'mine.jsonl')
  config = file.get_config(str(tmp_path / 'mine.jsonl'))
  config.model.source = str(tmp_path / 'base')
  config.data.validation = str(tmp_path / 'pairs_validation.jsonl')
  with build.components(config) as components:
    assert components.grader is None and len(components.train[0]) == 30


def test_of_two_readings_of_a_case_the_one_that_is_graded_higher_is_chosen(tmp_path):
  assert command.main(['rare_disease', f'--to={tmp_path}', '--pairs=30', *SMALL]) == 0
  read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
  grader = graders.make(json.loads((tmp_path / 'grader.json').read_text()))
  grade = lambda row, text: grader(row, graders.make_sample(text)[0]).reward
  for name, source in (
    ('pairs.jsonl', read('train.jsonl')[-30:]),
    ('pairs_validation.jsonl', read('validation.jsonl')),
  ):
    cases = {row['case_id']: row for row in source}
    pairs = read(name)
    assert 0.8 * len(cases) < len(pairs) <= len(cases)
    for row in pairs:
      assert row['messages'] == cases[row['case_id']]['messages']
      assert grade(row, row['chosen']) > grade(row, row['rejected'])
  grader.close()
