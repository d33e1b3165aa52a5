"""length: its formula at worked points, and invalid graders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax import graders

LENGTH = {
  'type': 'length',
  'name': 'length',
  'input': '{{ sample.output_text }}',
  'unit': 'words',
  'soft_limit': 4,
  'hard_limit': 8,
}


def score(grader, text):
  grade = graders.make(grader)({}, {'output_text': text})
  assert list(grade.components.values()) == [grade.reward] and grade.errors == {}
  return grade.reward


@pytest.mark.parametrize(
  'words, value',
  [(0, 1.0), (4, 1.0), (5, 0.75), (6, 0.5), (7, 0.25), (8, 0.0), (9, 0.0), (500, 0.0)],
)
def test_the_score_is_1_up_to_the_soft_limit_and_falls_to_0_at_the_hard_limit(words, value):
  assert score(LENGTH, 'w ' * words) == value
  assert score({**LENGTH, 'unit': 'characters'}, 'é' * words) == value


def test_a_text_below_the_minimum_scores_0():
  assert [score({**LENGTH, 'minimum': 2}, 'w ' * n) for n in (0, 1, 2, 6)] == [0.0, 0.0, 1.0, 0.5]


@given(st.integers(0, 40), st.integers(1, 40))
def test_length_minus_1_is_the_soft_overlong_punishment_of_dapo(length, cache):
  longest = 40
  grade = graders.make(
    {**LENGTH, 'unit': 'characters', 'soft_limit': longest - cache, 'hard_limit': longest}
  )({}, {'output_text': 'x' * length})
  punishment = 0 if length <= longest - cache else ((longest - cache) - length) / cache
  assert grade.reward - 1 == pytest.approx(punishment)


def test_a_missing_field_is_a_fault_of_the_row_or_of_the_answer():
  grader = graders.make(
    {**LENGTH, 'input': '{{ sample.output_text }}{{ item.more }}'}, ungradable_reward=-1.0
  )
  assert grader.item_fields() == {'more'}
  assert grader({}, {'output_text': 'x'}).reward is None
  assert grader({'more': ''}, {}).reward == -1.0


@pytest.mark.parametrize(
  'grader, words',
  [
    ({**LENGTH, 'unit': 'word'}, "did you mean 'words'"),
    ({**LENGTH, 'unit': ['words']}, 'unit='),
    ({**LENGTH, 'soft_limit': 8}, 'need minimum <= soft_limit < hard_limit'),
    ({**LENGTH, 'minimum': 5}, 'need minimum <= soft_limit < hard_limit'),
    ({**LENGTH, 'hard_limit': 8.0}, 'hard_limit=8.0'),
    ({**LENGTH, 'minimum': -1}, 'minimum=-1'),
    ({key: LENGTH[key] for key in ('type', 'name', 'input')}, "field 'soft_limit' is missing"),
    ({**LENGTH, 'input': '{{ x }}'}, 'input:'),
    ({**LENGTH, 'pass_threshold': 'x'}, 'pass_thr'),
  ],
)
def test_an_invalid_grader_is_refused(grader, words):
  with pytest.raises(ValueError) as caught:
    graders.make(grader)
  assert words in str(caught.value)


def test_describe_includes_the_defaults():
  assert graders.describe(graders.make(LENGTH)) == {**LENGTH, 'minimum': 0}
