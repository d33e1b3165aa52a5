"""Rows, grader and config of the rare-disease task."""

import dataclasses
import json

import numpy as np
import pytest

from rft_jax import graders
from rft_jax.tasks import rare_disease


def test_the_files_depend_on_the_seed(task_files, config):
  assert rare_disease.make(config) == task_files
  other = rare_disease.make(dataclasses.replace(config, seed=1))
  assert other.metadata['world'] != task_files.metadata['world'] and other.train != task_files.train


def test_more_training_rows_do_not_change_the_other_rows(task_files, config):
  more = rare_disease.make(dataclasses.replace(config, train_rows=90))
  assert more.validation == task_files.validation and more.train[:60] == task_files.train


def test_no_case_occurs_twice(task_files):
  def key(row):
    first, *lists = row['messages'][0]['content'].split('\n')
    return first, *(frozenset(line.split(': ')[1].rstrip('.').split(', ')) for line in lists[:2])

  keys = [key(row) for row in task_files.train + task_files.validation]
  assert len(set(keys)) == len(keys) == 90


def test_no_prompt_contains_a_gene(task_files):
  genes = task_files.metadata['world']['genes']
  for row in task_files.train + task_files.validation:
    assert row['gene'] in genes
    assert not any(gene in row['messages'][0]['content'] for gene in genes)


def test_files_can_be_written_as_json(task_files):
  assert json.loads(json.dumps([task_files.train, task_files.validation, task_files.grader])) == [
    *task_files[:3]
  ]
  assert np.array(json.loads(json.dumps(task_files.metadata))['world']['frequency']).shape == (
    12,
    30,
  )


def test_grader_scores_every_solution_as_computed_directly(task_files):
  grade = graders.make(task_files.grader)
  try:
    for row in task_files.train[:20]:
      answer = row['solution'].split('</think>')[1]
      genes = json.loads(answer)['genes']
      expected = 0.7 ** genes.index(row['gene']) if row['gene'] in genes else 0.0
      result = grade(row, {'output_text': answer, 'output_json': json.loads(answer)})
      assert result.reward == pytest.approx(expected) and not result.errors
  finally:
    grade.close()


@pytest.mark.parametrize(
  'text, reward',
  [
    ('{"explanation": "", "genes": ["X", "X", "ABRX"]}', 0.7),
    ('{"explanation": "", "genes": [" abrx "]}', 1.0),
    ('{"explanation": "", "genes": ["A", "B", "C", "D", "E", "ABRX"]}', 0.0),
    ('{"explanation": "", "genes": []}', 0.0),
  ],
)
def test_grader_drops_duplicates_and_grades_five_genes(text, reward):
  assert run_source(text) == pytest.approx(reward)


@pytest.mark.parametrize(
  'text',
  [
    'ABRX',
    '["ABRX"]',
    '{"genes": ["ABRX"]}',
    '{"explanation": 1, "genes": ["ABRX"]}',
    '{"explanation": "", "genes": "ABRX"}',
    '{"explanation": "", "genes": [["ABRX"]]}',
    '',
  ],
)
def test_grader_raises_on_a_wrong_answer_format(text):
  with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
    run_source(text)


def run_source(text):
  """Runs the source of the grader on a sample with output_text only."""
  names = {}
  exec(rare_disease.GRADER['source'], names)  # pylint: disable=exec-used
  return names['grade']({'output_text': text}, {'gene': 'ABRX'})
