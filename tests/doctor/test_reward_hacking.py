"""The case-independent answers that a grader is tried on."""

import json

from rft_jax.doctor import reward_hacking


def test_case_independent_answers_have_the_form_of_a_good_answer():
  cases = [
    reward_hacking.Case(
      {'gene': gene, 'id': str(n), 'messages': []},
      f'case {n}',
      '{"why":"x","genes":["%s","Z"]}' % gene,
    )
    for n, gene in enumerate('AABC')
  ]
  answers = reward_hacking.answers(cases, None)
  assert answers['an empty answer'] == [''] * 4
  assert answers['the prompt echoed'] == ['case 0', 'case 1', 'case 2', 'case 3']
  assert answers['the most frequent item.gene'] == ['A'] * 4
  assert answers["another row's item.gene"] == ['B', 'B', 'C', 'A']
  assert answers['every item.gene at once'] == ['A, B, C'] * 4
  stuffed = json.loads(answers['every item.gene in the form of an answer'][0])
  assert stuffed['why'] == 'x' and set(stuffed['genes']) == {'A', 'B', 'C', 'Z'}
  assert json.loads(answers["another row's answer"][0])['genes'] == ['B', 'Z']
  assert len(answers['a very long answer'][0]) == reward_hacking.LONG
  assert not any('item.id' in name for name in answers)  # identifies the row, is not its answer


def test_only_the_fields_that_the_grader_reads_are_tried():
  cases = [reward_hacking.Case({'gene': gene, 'sex': 'f'}, '', None) for gene in 'AAB']
  answers = reward_hacking.answers(cases, frozenset({'gene'}))
  assert not any('sex' in name for name in answers)
  assert 'every item.gene at once' in answers and 'a very long answer' not in answers
