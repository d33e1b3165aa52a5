"""Corrupted training answers: an exact, seeded share, and nothing else."""

import json

import numpy as np
import pytest

from rft_jax import graders
from rft_jax.tasks import TASKS, arithmetic, rare_disease, simulator
from rft_jax.tasks import __main__ as command

KEYS = {'arithmetic': 'answer', 'chains': 'answer', 'rare_disease': 'gene'}


def _make(task, share, seed=0):
  return TASKS[task].make(
    TASKS[task].Config(train_rows=200, validation_rows=40, corrupt=share, seed=seed)
  )


@pytest.fixture(scope='module', params=sorted(KEYS))
def made(request):
  """The task, and what it makes at three shares."""
  return request.param, {share: _make(request.param, share) for share in (0.0, 0.2, 0.4)}


def test_the_share_is_exact_and_marked_and_validation_is_clean(made):
  task, by_share = made
  for share, files in by_share.items():
    marked = [row for row in files.train if row.get('corrupted')]
    assert len(marked) == round(200 * share)
    assert all(row[KEYS[task]] != row['truth'] for row in marked)
    assert files.validation == by_share[0.0].validation
    assert not any('truth' in row for row in files.validation)


def test_all_but_the_answer_stays_and_a_larger_share_holds_the_smaller(made):
  task, by_share = made
  for clean, some, more in zip(*(by_share[share].train for share in (0.0, 0.2, 0.4))):
    assert 'corrupted' not in clean
    if some.get('corrupted'):
      assert more == some
    if more.get('corrupted'):
      assert more['truth'] == clean[KEYS[task]]
      assert {k: v for k, v in more.items() if k not in (KEYS[task], 'truth', 'corrupted')} == {
        k: v for k, v in clean.items() if k != KEYS[task]
      }
    else:
      assert more == clean


def test_another_seed_corrupts_other_rows():
  places = [
    [n for n, row in enumerate(_make('arithmetic', 0.2, seed).train) if row.get('corrupted')]
    for seed in (0, 0, 1)
  ]
  assert places[0] == places[1] != places[2]


def test_wrong_numbers_are_near_and_wrong_genes_are_listed_for_the_case(made):
  task, by_share = made
  rows = [row for row in by_share[0.4].train if row.get('corrupted')]
  if task != 'rare_disease':
    assert {int(row['answer']) - int(row['truth']) for row in rows} == set(arithmetic.SLIPS)
    return
  config = rare_disease.Config(train_rows=200, validation_rows=40)
  world = rare_disease.make_world(config)
  unlisted = 0
  for row in rows:
    present = row['messages'][0]['content'].split('Present: ')[1].split('.\n')[0].split(', ')
    votes = simulator.votes(world, [world.findings.index(name) for name in present])
    votes[world.genes.index(row['truth'])] = 0
    unlisted += bool(votes.any()) and votes[world.genes.index(row['gene'])] == 0
  assert unlisted == 0


def test_a_case_without_another_listed_gene_gets_any_other():
  config = rare_disease.Config()
  world = rare_disease.make_world(config)
  case = simulator.Case((), (), 0, True, 3)
  found = {rare_disease.wrong_gene(world, case, np.random.default_rng(n)) for n in range(200)}
  assert found == set(world.genes) - {world.genes[3]}


def test_the_grader_pays_the_wrong_answer_and_reads_no_mark(made):
  task, by_share = made
  row = next(row for row in by_share[0.2].train if row.get('corrupted'))
  spoken = lambda text: rare_disease.answer('x', [text]) if task == 'rare_disease' else text
  with_marks = graders.make(by_share[0.2].grader)
  assert not {'truth', 'corrupted'} & set(with_marks.item_fields() or ())
  assert with_marks(row, {'output_text': spoken(row[KEYS[task]])}).reward == 1.0
  assert with_marks(row, {'output_text': spoken(row['truth'])}).reward == 0.0
  with_marks.close()


def test_the_command_corrupts_the_rows_it_writes(tmp_path):
  small = [
    '--train_rows=40',
    '--validation_rows=20',
    '--dim=32',
    '--heads=2',
    '--kv_heads=1',
    '--mlp_dim=32',
    '--layers=1',
  ]
  assert command.main(['arithmetic', f'--to={tmp_path}', '--corrupt=0.25', *small]) == 0
  rows = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
  assert sum(row.get('corrupted', False) for row in rows) == 10
  assert json.loads((tmp_path / 'task.json').read_text())['config']['corrupt'] == 0.25


@pytest.mark.parametrize('task', sorted(KEYS))
def test_a_share_beyond_one_is_refused(task):
  assert 'corrupt=1.5, need 0 to 1' in TASKS[task].Config(corrupt=1.5).validate()
