"""Label noise: an exact, seeded fraction of the training answers is wrong, and nothing else."""

import json

import pytest
import task_command

from rft_jax import graders
from rft_jax.tasks import TASKS, arithmetic, rare_disease
from rft_jax.tasks.rare_disease import prompts, simulator, world

KEYS = {'arithmetic': 'answer', 'chains': 'answer', 'rare_disease': 'gene'}


def make(task, share, seed=0):
  return TASKS[task].make(
    TASKS[task].Config(train_rows=200, validation_rows=40, corrupt=share, seed=seed)
  )


@pytest.fixture(scope='module', params=sorted(KEYS))
def task_and_files(request):
  """Returns (task, share of wrong answers -> its files)."""
  return request.param, {share: make(request.param, share) for share in (0.0, 0.2, 0.4)}


def test_the_share_is_exact_and_marked_and_validation_is_clean(task_and_files):
  task, by_share = task_and_files
  for share, files in by_share.items():
    marked = [row for row in files.train if row.get('corrupted')]
    assert len(marked) == round(200 * share)
    assert all(row[KEYS[task]] != row['truth'] for row in marked)
    assert files.validation == by_share[0.0].validation
    assert not any('truth' in row for row in files.validation)


def test_only_answers_change_and_a_larger_share_includes_the_smaller(task_and_files):
  task, by_share = task_and_files
  for clean, low, high in zip(*(by_share[share].train for share in (0.0, 0.2, 0.4))):
    assert 'corrupted' not in clean
    if low.get('corrupted'):
      assert high == low
    if high.get('corrupted'):
      assert high['truth'] == clean[KEYS[task]]
      assert {k: v for k, v in high.items() if k not in (KEYS[task], 'truth', 'corrupted')} == {
        k: v for k, v in clean.items() if k != KEYS[task]
      }
    else:
      assert high == clean


def test_another_seed_corrupts_other_rows():
  corrupted_rows = [
    [n for n, row in enumerate(make('arithmetic', 0.2, seed).train) if row.get('corrupted')]
    for seed in (0, 0, 1)
  ]
  assert corrupted_rows[0] == corrupted_rows[1] != corrupted_rows[2]


def test_wrong_numbers_are_near_and_wrong_genes_are_listed_for_the_case(task_and_files):
  task, by_share = task_and_files
  rows = [row for row in by_share[0.4].train if row.get('corrupted')]
  if task != 'rare_disease':
    assert {int(row['answer']) - int(row['truth']) for row in rows} == set(
      arithmetic.WRONG_ANSWER_OFFSETS
    )
    return
  config = rare_disease.Config(train_rows=200, validation_rows=40)
  true_world = world.make_world(config)
  unlisted = 0
  for row in rows:
    present = row['messages'][0]['content'].split('Present: ')[1].split('.\n')[0].split(', ')
    votes = simulator.votes(true_world, [true_world.findings.index(name) for name in present])
    votes[true_world.genes.index(row['truth'])] = 0
    unlisted += bool(votes.any()) and votes[true_world.genes.index(row['gene'])] == 0
  assert unlisted == 0


def test_the_grader_rewards_the_wrong_answer_and_ignores_the_marks(task_and_files):
  task, by_share = task_and_files
  row = next(row for row in by_share[0.2].train if row.get('corrupted'))
  output = lambda text: prompts.answer('x', [text]) if task == 'rare_disease' else text
  grader = graders.make(by_share[0.2].grader)
  assert not {'truth', 'corrupted'} & set(grader.item_fields() or ())
  assert grader(row, {'output_text': output(row[KEYS[task]])}).reward == 1.0
  assert grader(row, {'output_text': output(row['truth'])}).reward == 0.0
  grader.close()


def test_the_command_corrupts_the_rows_it_writes(tmp_path):
  assert task_command.run('arithmetic', tmp_path, '--corrupt=0.25') == 0
  rows = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
  assert sum(row.get('corrupted', False) for row in rows) == 10
  assert json.loads((tmp_path / 'task.json').read_text())['config']['corrupt'] == 0.25


@pytest.mark.parametrize('task', sorted(KEYS))
def test_a_share_above_one_is_an_error(task):
  assert 'corrupt=1.5, need 0 to 1' in TASKS[task].Config(corrupt=1.5).validate()
