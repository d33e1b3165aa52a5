"""Sums with a product: the rows are right, the steps are honest."""

import pytest

from rft_jax import graders
from rft_jax.tasks import arithmetic

CONFIG = arithmetic.Config(train_rows=200, validation_rows=50)


@pytest.fixture(scope='module')
def made():
  return arithmetic.make(CONFIG)


def value_of(text):
  """Reads 'a + b * c' by the rules of precedence, one operation at a time."""
  left, *right = text.split(' ')
  if len(right) == 2:
    other, operator = int(right[1]), right[0]
    return {'+': int(left) + other, '-': int(left) - other, '*': int(left) * other}[operator]
  operator, factor, _, digit = right
  return value_of(f'{left} {operator} {value_of(f"{factor} * {digit}")}')


def test_answers_are_right_and_every_step_of_the_solution_is_true(made):
  for row in made.train + made.validation:
    steps, answer = row['solution'].removeprefix('<think>').split('</think>')
    assert int(answer) == int(row['answer']) == value_of(row['messages'][0]['content'])
    for step in steps.split('; '):
      left, result = step.split(' = ')
      assert value_of(left) == int(result)


def test_each_problem_occurs_once(made):
  prompts = [row['messages'][0]['content'] for row in made.train + made.validation]
  assert len(prompts) == len(set(prompts)) == 250


def test_indices_and_problems_are_one_to_one():
  config = arithmetic.Config(
    largest_term=3, largest_factor=4, largest_digit=2, train_rows=1, validation_rows=1
  )
  found = {arithmetic.problem(i, config) for i in range(config.problems())}
  assert found == {
    (t, s, f, d) for t in range(1, 4) for s in '+-' for f in range(1, 5) for d in range(1, 3)
  }


def test_same_seed_same_rows(made):
  assert arithmetic.make(CONFIG) == made
  assert arithmetic.make(arithmetic.Config(seed=1, train_rows=200, validation_rows=50)) != made


def test_grader_gives_one_to_the_answer_and_nothing_to_another(made):
  grade = graders.make(made.grader)
  row = made.train[0]
  assert grade(row, {'output_text': row['answer']}).reward == 1.0
  assert grade(row, {'output_text': row['answer'] + '0'}).reward == 0.0
  grade.close()


def test_more_rows_than_problems_is_refused():
  with pytest.raises(ValueError, match='there are no more problems'):
    arithmetic.make(arithmetic.Config(largest_term=2, largest_factor=2, largest_digit=2))
