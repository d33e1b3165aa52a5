"""repetition: its formula at worked points, and invalid graders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax import graders

REPETITION = {'type': 'repetition', 'name': 'fresh', 'input': '{{ sample.output_text }}'}


def score(grader, text):
  grade = graders.make(grader)({}, {'output_text': text})
  assert list(grade.components.values()) == [grade.reward] and grade.errors == {}
  return grade.reward


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
def test_the_score_is_the_share_of_distinct_n_grams(text, fields, value):
  assert score({**REPETITION, **fields}, text) == pytest.approx(value)


@given(st.text(st.sampled_from('ab \n'), max_size=40), st.integers(1, 5))
def test_repeating_a_text_never_raises_its_score(text, n):
  twice, thrice = (
    score({**REPETITION, 'n': n, 'unit': 'characters'}, text * count) for count in (2, 3)
  )
  assert 0.0 < thrice <= twice <= 1.0


def test_a_missing_field_is_a_fault_of_the_row_or_of_the_answer():
  grader = graders.make(
    {**REPETITION, 'input': '{{ sample.output_text }}{{ item.more }}'}, ungradable_reward=-1.0
  )
  assert grader.item_fields() == {'more'}
  assert grader({}, {'output_text': 'x'}).reward is None
  assert grader({'more': ''}, {}).reward == -1.0


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'n': 0}, 'n=0'),
    ({'n': True}, 'n=True'),
    ({'unit': 'tokens'}, "unit='tokens'"),
    ({'input': '{{ x }}'}, 'input:'),
  ],
)
def test_an_invalid_grader_is_refused(fields, words):
  with pytest.raises(ValueError) as caught:
    graders.make({**REPETITION, **fields})
  assert words in str(caught.value)


def test_describe_includes_the_defaults():
  assert graders.describe(graders.make(REPETITION)) == {**REPETITION, 'n': 4, 'unit': 'words'}
