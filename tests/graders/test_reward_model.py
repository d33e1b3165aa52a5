"""reward_model: the inputs of the model, and grades and faults from its scores."""

import pytest

from rft_jax import graders
from rft_jax.types import Grade

GRADER = {'type': 'reward_model', 'name': 'liked', 'model': 'runs/reward/export'}
ROW = {'messages': [{'role': 'user', 'content': 'Which gene?'}], 'hint': 'B'}
INPUT = [
  {'role': 'system', 'content': 'Hint: {{ item.hint }}'},
  {'role': 'user', 'content': 'Which?'},
  {'role': 'assistant', 'content': 'I say {{ sample.output_text }}'},
]


class Lengths:
  """Scores an answer by its length minus that of the last prompt message; records its calls."""

  def __init__(self):
    self.calls = []

  def __call__(self, pairs):
    self.calls.append(pairs)
    return [len(answer) - len(messages[-1]['content']) for messages, answer in pairs]


def make(scorer, **fields):
  return graders.make({**GRADER, **fields}, reward_models={GRADER['model']: scorer})


def test_all_answers_are_scored_in_one_call_by_the_rows_messages_and_the_answer():
  model = Lengths()
  grades = graders.grade_many(
    make(model), [(ROW, {'output_text': 'B'}), (ROW, {'output_text': 'It is BRCA2.'})]
  )
  assert grades == [Grade(-10.0, {'liked': -10.0}, {}), Grade(1.0, {'liked': 1.0}, {})]
  assert model.calls == [[(ROW['messages'], 'B'), (ROW['messages'], 'It is BRCA2.')]]


def test_with_templates_the_last_message_is_the_answer():
  model = Lengths()
  grader = make(model, input=INPUT)
  assert grader(ROW, {'output_text': 'B'}).reward == len('I say B') - len('Which?')
  assert model.calls == [
    [([{'role': 'system', 'content': 'Hint: B'}, {'role': 'user', 'content': 'Which?'}], 'I say B')]
  ]
  assert grader.item_fields() == {'hint'} and make(model).item_fields() == {'messages'}
  assert graders.describe(grader) == {**GRADER, 'input': INPUT}


def test_samples_with_faults_are_not_scored():
  model = Lengths()
  pairs = [({}, {'output_text': 'B'}), (ROW, {}), (ROW, {'output_text': 'B'})]
  grades = graders.grade_many(make(model), pairs, retries=0)
  assert [grade.reward for grade in grades] == [None, 0.0, -10.0] and len(model.calls[0]) == 1
  assert all(grade.errors['invalid_variable_error'] is True for grade in grades[:2])
  assert 'item.messages' in grades[0].errors['invalid_variable_error_details']


@pytest.mark.parametrize('score', [float('nan'), float('inf'), None, 'high', 10**400])
def test_a_score_that_is_not_finite_is_a_grader_fault_of_that_answer(score):
  grades = make(lambda pairs: [1.0, score]).many([(ROW, {'output_text': 'B'})] * 2)
  assert grades[0].reward == 1.0 and grades[1].reward is None
  assert grades[1].components == {'liked': None} and grades[1].errors['other_error'] is True
  assert 'need a finite number' in grades[1].errors['other_error_details']


@pytest.mark.parametrize(
  'model, words',
  [
    (lambda pairs: 1 / 0, 'ZeroDivisionError'),
    (lambda pairs: [1.0], '1 scores for 2 answers'),
    (lambda pairs: None, 'TypeError'),
  ],
)
def test_a_model_that_fails_is_a_grader_fault(model, words):
  grades = make(model).many([(ROW, {'output_text': 'B'})] * 2)
  assert [grade.reward for grade in grades] == [None, None]
  assert words in grades[0].errors['other_error_details']


def test_it_may_be_a_part_of_a_multi_grader():
  grader = graders.make(
    {
      'type': 'multi',
      'name': 'm',
      'graders': {'liked': GRADER},
      'calculate_output': 'max(-1, min(1, liked))',
    },
    reward_models={GRADER['model']: Lengths()},
  )
  assert grader(ROW, {'output_text': 'B'}) == Grade(-1.0, {'liked': -10.0}, {})


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'model': 'runs/reward/exprot'}, "did you mean 'runs/reward/export'"),
    ({'model': 3}, 'model=3'),
    ({'input': []}, 'input is an array'),
    ({'input': INPUT[:2]}, 'ends with the role user'),
    ({'input': INPUT[2:]}, 'need a prompt'),
    (
      {
        'input': [
          *INPUT[:1],
          {'role': 'user', 'content': {'type': 'input_image', 'image_url': 'u'}},
          INPUT[2],
        ]
      },
      'remove images',
    ),
    ({'pass_threshold': 'x'}, 'pass_threshold'),
  ],
)
def test_an_invalid_grader_is_refused(fields, words):
  with pytest.raises(ValueError) as caught:
    make(Lengths(), **fields)
  assert words in str(caught.value)


def test_without_reward_models_the_error_says_how_to_pass_one():
  with pytest.raises(ValueError, match='it has none; pass reward_models='):
    graders.make(GRADER)
