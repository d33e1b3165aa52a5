"""The arithmetic task: answers and the steps of the solutions are right."""

import pytest

from rft_jax import graders
from rft_jax.tasks import arithmetic

CONFIG = arithmetic.Config(train_rows=200, validation_rows=50)


@pytest.fixture(scope='module')
def task_files():
  return arithmetic.make(CONFIG)


def value_of(text):
  """Evaluates 'a + b * c' by the rules of precedence, one operation at a time."""
  left, *right = text.split(' ')
  if len(right) == 2:
    other, operator = int(right[1]), right[0]
    return {'+': int(left) + other, '-': int(left) - other, '*': int(left) * other}[operator]
  operator, factor, _, digit = right
  return value_of(f'{left} {operator} {value_of(f"{factor} * {digit}")}')


def test_answers_and_solution_steps_are_right(task_files):
  for row in task_files.train + task_files.validation:
    steps, answer = row['solution'].removeprefix('<think>').split('</think>')
    assert int(answer) == int(row['answer']) == value_of(row['messages'][0]['content'])
    for step in steps.split('; '):
      left, result = step.split(' = ')
      assert value_of(left) == int(result)


def test_each_problem_occurs_once(task_files):
  prompts = [row['messages'][0]['content'] for row in task_files.train + task_files.validation]
  assert len(prompts) == len(set(prompts)) == 250


def test_indices_and_problems_are_one_to_one():
  config = arithmetic.Config(
    largest_term=3, largest_factor=4, largest_digit=2, train_rows=1, validation_rows=1
  )
  problems = {arithmetic.problem(i, config) for i in range(config.problems())}
  assert problems == {
    (t, s, f, d) for t in range(1, 4) for s in '+-' for f in range(1, 5) for d in range(1, 3)
  }


def test_the_rows_depend_on_the_seed(task_files):
  assert arithmetic.make(CONFIG) == task_files
  assert (
    arithmetic.make(arithmetic.Config(seed=1, train_rows=200, validation_rows=50)) != task_files
  )


def test_grader_gives_one_to_the_answer_and_zero_to_another(task_files):
  grade = graders.make(task_files.grader)
  row = task_files.train[0]
  assert grade(row, {'output_text': row['answer']}).reward == 1.0
  assert grade(row, {'output_text': row['answer'] + '0'}).reward == 0.0
  grade.close()


def test_more_rows_than_problems_is_an_error():
  with pytest.raises(ValueError, match='the number of problems'):
    arithmetic.make(arithmetic.Config(largest_term=2, largest_factor=2, largest_digit=2))
