"""length and repetition: their formulas at worked points, and what they refuse."""

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
FRESH = {'type': 'repetition', 'name': 'fresh', 'input': '{{ sample.output_text }}'}


def score(grader, text):
  grade = graders.make(grader)({}, {'output_text': text})
  assert list(grade.components.values()) == [grade.reward] and grade.errors == {}
  return grade.reward


@pytest.mark.parametrize(
  'words, value',
  [(0, 1.0), (4, 1.0), (5, 0.75), (6, 0.5), (7, 0.25), (8, 0.0), (9, 0.0), (500, 0.0)],
)
def test_length_is_full_up_to_the_soft_limit_and_falls_to_0_at_the_hard_one(words, value):
  assert score(LENGTH, 'w ' * words) == value
  assert score({**LENGTH, 'unit': 'characters'}, 'é' * words) == value


def test_a_text_under_the_minimum_is_worth_nothing():
  assert [score({**LENGTH, 'minimum': 2}, 'w ' * n) for n in (0, 1, 2, 6)] == [0.0, 0.0, 1.0, 0.5]


@given(st.integers(0, 40), st.integers(1, 40))
def test_length_minus_1_is_the_soft_overlong_punishment_of_dapo(length, cache):
  longest = 40
  grade = graders.make(
    {**LENGTH, 'unit': 'characters', 'soft_limit': longest - cache, 'hard_limit': longest}
  )({}, {'output_text': 'x' * length})
  punishment = 0 if length <= longest - cache else ((longest - cache) - length) / cache
  assert grade.reward - 1 == pytest.approx(punishment)


@pytest.mark.parametrize(
  'text, fields, value',
  [
    ('', {}, 1.0),
    ('one two three', {}, 1.0),
    ('one two three four five', {}, 1.0),
    ('a b a b a b', {'n': 2}, 2 / 5),  # ab ba ab ba ab
    ('a b c d ' * 4, {}, 4 / 13),
    ('the same the same', {'n': 1}, 2 / 4),
    ('The the', {'n': 1}, 1.0),
    ('abababab', {'unit': 'characters', 'n': 2}, 2 / 7),
    ('哈哈哈哈哈哈哈哈', {}, 1 / 5),
    ('aaaaaaaa', {}, 1 / 5),
    ('BRCA2', {}, 1.0),
    (' ha ha', {'unit': 'characters', 'n': 3}, 3 / 4),  # ' ha' 'ha ' 'a h' ' ha'
  ],
)
def test_repetition_is_the_share_of_different_n_grams(text, fields, value):
  assert score({**FRESH, **fields}, text) == pytest.approx(value)


@given(st.text(st.sampled_from('ab \n'), max_size=40), st.integers(1, 5))
def test_saying_a_text_again_never_makes_it_fresher(text, n):
  once, twice = (score({**FRESH, 'n': n, 'unit': 'characters'}, text * k) for k in (2, 3))
  assert 0.0 < twice <= once <= 1.0


@pytest.mark.parametrize('grader', [LENGTH, FRESH])
def test_faults_are_the_rows_or_the_answers(grader):
  made = graders.make(
    {**grader, 'input': '{{ sample.output_text }}{{ item.more }}'}, ungradable_reward=-1.0
  )
  assert made.item_fields() == {'more'}
  assert made({}, {'output_text': 'x'}).reward is None
  assert made({'more': ''}, {}).reward == -1.0


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
    ({**FRESH, 'n': 0}, 'n=0'),
    ({**FRESH, 'n': True}, 'n=True'),
    ({**FRESH, 'unit': 'tokens'}, "unit='tokens'"),
    ({**FRESH, 'input': '{{ x }}'}, 'input:'),
  ],
)
def test_a_grader_that_is_wrong_is_refused(grader, words):
  with pytest.raises(ValueError) as caught:
    graders.make(grader)
  assert words in str(caught.value)


def test_describe_spells_the_defaults_out():
  assert graders.describe(graders.make(LENGTH)) == {**LENGTH, 'minimum': 0}
  assert graders.describe(graders.make(FRESH)) == {**FRESH, 'n': 4, 'unit': 'words'}
