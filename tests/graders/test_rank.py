"""rank: its three decays, what takes a rank and what does not, and its faults."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax import graders

GENE = {
  'type': 'rank',
  'name': 'gene',
  'input': '{{ sample.output_json.genes }}',
  'reference': '{{ item.gene }}',
}


def grade(genes, wanted='C', **fields):
  sample, _ = graders.make_sample(json.dumps({'genes': genes}))
  return graders.make({**GENE, **fields}, ungradable_reward=-1.0)({'gene': wanted}, sample)


@pytest.mark.parametrize(
  'fields, scores',
  [
    ({}, [1, 1 / 2, 1 / 3, 1 / 4]),
    ({'decay': 'reciprocal'}, [1, 1 / 2, 1 / 3, 1 / 4]),
    ({'decay': 'geometric'}, [1, 0.7, 0.49, 0.343]),
    ({'decay': 'geometric', 'base': 0.5}, [1, 0.5, 0.25, 0.125]),
    ({'decay': 'linear'}, [1, 0.9, 0.8, 0.7]),
    ({'decay': 'linear', 'max_length': 4}, [1, 0.75, 0.5, 0.25]),
    ({'max_length': 3}, [1, 1 / 2, 1 / 3, 0]),
  ],
)
def test_the_score_falls_with_the_rank(fields, scores):
  for place, score in enumerate(scores):
    genes = ['a', 'b', 'd', 'e']
    genes[place] = 'C'
    assert grade(genes, **fields).reward == pytest.approx(score)


@pytest.mark.parametrize(
  'genes, score',
  [
    ([], 0),
    (['a', 'b'], 0),
    ([' c\n'], 1),
    (['a', 'A', ' a ', 'C'], 1 / 2),  # a repeated entry takes no second rank
    (['C', 'a', 'C'], 1),
    ([1, 1, None, 'C'], 1 / 4),
    ([['C'], {'C': 'C'}, 'C'], 1 / 3),  # what is no string takes one
    (['', 'C'], 1 / 2),
    ([str(n) for n in range(9)] + ['C'], 1 / 10),
    ([str(n) for n in range(10)] + ['C'], 0),
    (['a'] * 50 + ['C'], 1 / 2),
  ],
)
def test_golden_scores(genes, score):
  assert grade(genes) == (pytest.approx(score), {'gene': pytest.approx(score)}, {})


def test_case_counts_only_where_it_is_asked_for():
  assert grade(['c', 'C']).reward == 1.0
  assert grade(['c', 'C'], case_sensitive=True).reward == 0.5


def test_each_alias_is_right():
  assert grade(['x', 'p53', 'TP53'], wanted=['TP53', 'P53']).reward == 0.5
  assert grade(['x', 'y'], wanted=['TP53', 'P53']).reward == 0.0


@pytest.mark.parametrize('wanted', ['', '  ', [], [''], ['A', 1], [['A']]])
def test_a_reference_that_names_nothing_is_the_rows_fault(wanted):
  found = grade(['A'], wanted=wanted)
  assert found.reward is None and found.errors['other_error'] is True
  assert 'reference is' in found.errors['other_error_details']


@pytest.mark.parametrize('genes', ['C', 'C, A', {'C': 1}, 3, True, None])
def test_an_answer_that_is_no_list_is_a_policy_fault(genes):
  found = grade(genes)
  assert found.reward == -1.0 and found.errors['sample_parse_error'] is True


def test_an_answer_without_the_list_is_a_policy_fault_and_a_row_without_the_gene_is_not():
  grader = graders.make(GENE, ungradable_reward=-1.0)
  assert grader({'gene': 'C'}, graders.make_sample('{}')[0]).reward == -1.0
  assert grader({'gene': 'C'}, graders.make_sample('no')[0]).errors['sample_parse_error'] is True
  assert grader({}, graders.make_sample('no')[0]).reward is None


def test_an_answer_that_is_a_list_by_itself_can_be_ranked():
  grader = graders.make({**GENE, 'input': '{{ sample.output_text }}'})
  assert grader({'gene': 'C'}, {'output_text': '["A", "C"]'}).reward == 0.5
  assert grader({'gene': 'C'}, {'output_text': '[NaN, "C"]'}).errors['sample_parse_error'] is True


@given(
  st.lists(st.sampled_from(['A', 'b', 'B', 'C', 'c', 'd', '', 7]), max_size=12),
  st.sampled_from(['reciprocal', 'geometric', 'linear']),
)
def test_more_entries_behind_never_change_a_score_and_more_in_front_never_raise_it(genes, decay):
  score = grade(genes, decay=decay).reward
  assert 0.0 <= score <= 1.0
  if score:
    assert grade(genes + ['x', 'C'], decay=decay).reward == score
  assert grade(['x', *genes], decay=decay).reward <= score


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'decay': 'reciprok'}, "did you mean 'reciprocal'"),
    ({'decay': None}, 'decay=None'),
    ({'base': 0}, 'base=0'),
    ({'base': 1.5}, 'base=1.5'),
    ({'base': True}, 'base=True'),
    ({'max_length': 0}, 'max_length=0'),
    ({'max_length': 2.0}, 'max_length=2.0'),
    ({'case_sensitive': 'no'}, "case_sensitive='no'"),
    ({'input': '{{ x }}'}, 'input:'),
    ({'top_k': 3}, "unknown field 'top_k'"),
  ],
)
def test_a_grader_that_is_wrong_is_refused(fields, words):
  with pytest.raises(ValueError) as caught:
    graders.make({**GENE, **fields})
  assert words in str(caught.value)


def test_item_fields_and_describe():
  grader = graders.make({**GENE, 'decay': 'linear'})
  assert grader.item_fields() == {'gene'}
  assert graders.describe(grader) == {
    **GENE,
    'decay': 'linear',
    'base': 0.7,
    'max_length': 10,
    'case_sensitive': False,
  }
