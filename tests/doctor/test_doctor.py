"""Go or no-go before training, and the right reason for each."""

import json

import pytest
import tiny

from rft_jax.data.rows import DataConfig
from rft_jax.doctor import reward_hacking
from rft_jax.doctor.doctor import diagnose

# Pays by chance: no answer is good for every case, and each sample gets another grade.
CHANCE = {
  'type': 'python',
  'name': 'chance',
  'source': """
import zlib
def grade(sample, item):
  return (zlib.crc32((sample["output_text"] + item["answer"]).encode()) % 100 / 100) ** 3
""",
}
EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}


def _config(directory, **changes):
  config = tiny.config(directory, **changes)
  tiny.write_rows(
    directory / 'validation.jsonl',
    [
      dict(row, messages=[{'role': 'user', 'content': f'{n} + 10'}])
      for n, row in enumerate(tiny.rows(4))
    ],
  )
  return config


def _examined(directory, workdir='', **changes):
  config = _config(directory, **changes)
  config.rollout.max_new_tokens, config.rollout.grade_truncated = 24, True
  config.doctor.rows, config.doctor.samples_per_prompt = 8, 4
  return diagnose(config, workdir)


def _reasons(found):
  return [one.text for one in found.findings if one.verdict == 'no-go']


def test_go_where_grades_differ_and_nothing_is_wrong(tmp_path):
  found = _examined(tmp_path, tmp_path / 'work', grader=CHANCE)
  assert found.go, found.text()
  saved = json.loads((tmp_path / 'work' / 'doctor.json').read_text())
  assert saved['verdict'] == 'go' and saved['reasons'] == []
  assert len(saved['rows']) == 8 and saved['rows'][0]['std'] > 0
  assert saved['frac_reward_zero_std'] == 0 and saved['cost']['hours'] > 0
  assert saved['policy']['reward'] == pytest.approx(saved['reward_mean'])
  assert found.text().endswith('verdict: go')


def test_an_untrained_base_never_succeeds(tmp_path):
  found = _examined(tmp_path, grader=EXACT)
  assert not found.go
  assert 'no reward variance' in _reasons(found)[0] and 'Too hard' in _reasons(found)[0]


def test_rows_that_all_succeed_teach_nothing(tmp_path):
  found = _examined(tmp_path, grader=dict(EXACT, operation='ne'))
  assert 'Too easy' in _reasons(found)[0]


def test_a_template_that_reads_a_missing_field_is_named(tmp_path):
  found = _examined(tmp_path, tmp_path / 'work', grader=dict(EXACT, reference='{{ item.gold }}'))
  assert not found.go and any('item.gold' in one for one in _reasons(found))
  saved = json.loads((tmp_path / 'work' / 'doctor.json').read_text())
  assert saved['verdict'] == 'no-go' and saved['reasons'] == _reasons(found)


def test_a_program_that_reads_a_missing_field_is_named(tmp_path):
  found = _examined(
    tmp_path,
    grader={
      'type': 'python',
      'name': 'x',
      'source': 'def grade(sample, item):\n  return float(item["gold"])\n',
    },
  )
  assert any("KeyError: 'gold'" in one and '100%' in one for one in _reasons(found))


def test_a_grader_that_pays_for_listing_everything_is_found_out(tmp_path):
  config = _config(tmp_path)
  config.rollout.max_new_tokens, config.rollout.grade_truncated = 200, True
  config.doctor.rows, config.doctor.samples_per_prompt = 8, 2
  config.grader = dict(EXACT, operation='like')
  found = diagnose(config)
  games = [one for one in _reasons(found) if 'can be gamed' in one]
  assert any(
    one.startswith('the grader can be gamed: every item.answer at once gets 1.000') for one in games
  ), found.text()
  config.rollout.max_new_tokens = 2  # too short for that answer
  assert not [one for one in _reasons(diagnose(config)) if 'every item.answer at once' in one]


def test_held_out_rows_that_are_trained_on_are_no_go(tmp_path):
  _config(tmp_path)
  data = DataConfig(train=str(tmp_path / 'train.jsonl'), validation=str(tmp_path / 'train.jsonl'))
  found = _examined(tmp_path, grader=CHANCE, data=data)
  assert any('held-out prompts are trained on' in one for one in _reasons(found))


def test_answers_that_know_nothing_take_the_form_of_an_answer():
  cases = [
    reward_hacking.Case(
      {'gene': gene, 'id': str(n), 'messages': []},
      f'case {n}',
      '{"why":"x","genes":["%s","Z"]}' % gene,
    )
    for n, gene in enumerate('AABC')
  ]
  made = reward_hacking.answers(cases, None)
  assert made['an empty answer'] == [''] * 4
  assert made['the prompt echoed'] == ['case 0', 'case 1', 'case 2', 'case 3']
  assert made['the most frequent item.gene'] == ['A'] * 4
  assert made["another row's item.gene"] == ['B', 'B', 'C', 'A']
  assert made['every item.gene at once'] == ['A, B, C'] * 4
  stuffed = json.loads(made['every item.gene in the form of an answer'][0])
  assert stuffed['why'] == 'x' and set(stuffed['genes']) == {'A', 'B', 'C', 'Z'}
  assert json.loads(made["another row's answer"][0])['genes'] == ['B', 'Z']
  assert len(made['a very long answer'][0]) == reward_hacking.LONG
  assert not any('item.id' in name for name in made)  # a name of the row, not its answer


def test_only_the_fields_that_the_grader_reads_are_tried():
  cases = [reward_hacking.Case({'gene': gene, 'sex': 'f'}, '', None) for gene in 'AAB']
  made = reward_hacking.answers(cases, frozenset({'gene'}))
  assert not any('sex' in name for name in made)
  assert 'every item.gene at once' in made and 'a very long answer' not in made
