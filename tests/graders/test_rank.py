"""rank: its three decays, which entries take a rank, and its faults."""

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


def grade(genes, gene='C', **fields):
  sample, _ = graders.make_sample(json.dumps({'genes': genes}))
  return graders.make({**GENE, **fields}, ungradable_reward=-1.0)({'gene': gene}, sample)


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
  for index, score in enumerate(scores):
    genes = ['a', 'b', 'd', 'e']
    genes[index] = 'C'
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
    ([['C'], {'C': 'C'}, 'C'], 1 / 3),  # an entry that is not a string takes one
    (['', 'C'], 1 / 2),
    ([str(n) for n in range(9)] + ['C'], 1 / 10),
    ([str(n) for n in range(10)] + ['C'], 0),
    (['a'] * 50 + ['C'], 1 / 2),
  ],
)
def test_golden_scores(genes, score):
  assert grade(genes) == (pytest.approx(score), {'gene': pytest.approx(score)}, {})


def test_case_is_ignored_unless_case_sensitive():
  assert grade(['c', 'C']).reward == 1.0
  assert grade(['c', 'C'], case_sensitive=True).reward == 0.5


def test_each_name_of_a_list_is_correct():
  assert grade(['x', 'p53', 'TP53'], gene=['TP53', 'P53']).reward == 0.5
  assert grade(['x', 'y'], gene=['TP53', 'P53']).reward == 0.0


@pytest.mark.parametrize('gene', ['', '  ', [], [''], ['A', 1], [['A']]])
def test_a_reference_without_a_name_is_a_grader_fault(gene):
  result = grade(['A'], gene=gene)
  assert result.reward is None and result.errors['other_error'] is True
  assert 'reference is' in result.errors['other_error_details']


@pytest.mark.parametrize('genes', ['C', 'C, A', {'C': 1}, 3, True, None])
def test_an_answer_that_is_not_a_list_is_a_policy_fault(genes):
  result = grade(genes)
  assert result.reward == -1.0 and result.errors['sample_parse_error'] is True


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
def test_entries_after_never_change_a_score_and_entries_before_never_raise_it(genes, decay):
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
def test_an_invalid_grader_is_refused(fields, words):
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
