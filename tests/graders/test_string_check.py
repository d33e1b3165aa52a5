"""string_check: its four operations and its faults."""

import pytest

from rft_jax import graders

EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
  'operation': 'eq',
}


@pytest.mark.parametrize(
  'operation, text, reference, score',
  [
    ('eq', 'BRCA2', 'BRCA2', 1.0),
    ('eq', 'brca2', 'BRCA2', 0.0),
    ('eq', 'BRCA2\n', 'BRCA2', 0.0),
    ('ne', 'a', 'b', 1.0),
    ('ne', 'a', 'a', 0.0),
    ('neq', 'a', 'b', 1.0),
    ('like', 'it is BRCA2.', 'BRCA2', 1.0),
    ('like', 'BRCA2', 'it is BRCA2.', 0.0),
    ('like', 'it is brca2.', 'BRCA2', 0.0),
    ('ilike', 'it is brca2.', 'BRCA2', 1.0),
    ('ilike', 'BRCA2', 'brca1', 0.0),
  ],
)
def test_golden_scores(operation, text, reference, score):
  grader = graders.make({**EXACT, 'operation': operation})
  assert grader({'answer': reference}, {'output_text': text}) == (score, {'exact': score}, {})


def test_a_row_without_the_field_is_a_grader_fault():
  grade = graders.make(EXACT, ungradable_reward=-1.0)({'anser': 'x'}, {'output_text': 'x'})
  assert grade.reward is None and grade.components == {'exact': None}
  assert grade.errors['invalid_variable_error'] is True
  assert 'item.answer' in grade.errors['invalid_variable_error_details']


def test_an_answer_without_the_field_gets_the_ungradable_reward():
  grader = graders.make(EXACT, ungradable_reward=-1.0)
  grade = grader({'answer': 'x'}, {})
  assert grade.reward == -1.0 and grade.components == {'exact': None}
  assert grade.errors['invalid_variable_error'] is True


def test_an_answer_that_is_not_json_gets_the_ungradable_reward():
  grader = graders.make({**EXACT, 'input': '{{ sample.output_json.gene }}'}, ungradable_reward=-0.5)
  sample, _ = graders.make_sample('the gene is X')
  assert grader({'answer': 'X'}, sample).reward == -0.5
  assert grader({'answer': 'X'}, sample).errors['sample_parse_error'] is True
  sample, _ = graders.make_sample('{"gene": "X"}')
  assert grader({'answer': 'X'}, sample) == (1.0, {'exact': 1.0}, {})


def test_a_fault_of_the_row_has_priority_over_a_fault_of_the_answer():
  grader = graders.make({**EXACT, 'input': '{{ sample.output_json.gene }}'})
  assert grader({}, {'output_text': 'no json'}).reward is None


def test_item_fields_are_those_of_both_templates():
  grader = graders.make({**EXACT, 'input': '{{ sample.output_text }} {{ item.unit }}'})
  assert grader.item_fields() == {'answer', 'unit'}
