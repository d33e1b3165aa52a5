"""The examination before training: go or no-go with the reason, and doctor.json."""

import json

import pytest
import tiny

from rft_jax.data.rows import DataConfig
from rft_jax.doctor.doctor import diagnose

# A grade by hash: no answer is good for every case, and the samples of a row differ.
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


def config_without_leakage(directory, **changes):
  config = tiny.config(directory, **changes)
  tiny.write_rows(
    directory / 'validation.jsonl',
    [
      dict(row, messages=[{'role': 'user', 'content': f'{n} + 10'}])
      for n, row in enumerate(tiny.rows(4))
    ],
  )
  return config


def examine(directory, workdir='', **changes):
  config = config_without_leakage(directory, **changes)
  config.rollout.max_new_tokens, config.rollout.grade_truncated = 24, True
  config.doctor.rows, config.doctor.samples_per_prompt = 8, 4
  return diagnose(config, workdir)


def reasons(examination):
  return [finding.text for finding in examination.findings if finding.verdict == 'no-go']


def test_go_where_grades_differ_and_nothing_is_wrong(tmp_path):
  examination = examine(tmp_path, tmp_path / 'work', grader=CHANCE)
  assert examination.go, examination.text()
  saved = json.loads((tmp_path / 'work' / 'doctor.json').read_text())
  assert saved['verdict'] == 'go' and saved['reasons'] == []
  assert len(saved['rows']) == 8 and saved['rows'][0]['std'] > 0
  assert saved['frac_reward_zero_std'] == 0 and saved['cost']['hours'] > 0
  assert saved['policy']['reward'] == pytest.approx(saved['reward_mean'])
  assert examination.text().endswith('verdict: go')


def test_a_base_that_never_succeeds_is_no_go(tmp_path):
  examination = examine(tmp_path, grader=EXACT)
  assert not examination.go
  assert 'no reward variance' in reasons(examination)[0] and 'Too hard' in reasons(examination)[0]


def test_a_base_that_always_succeeds_is_no_go(tmp_path):
  examination = examine(tmp_path, grader=dict(EXACT, operation='ne'))
  assert 'Too easy' in reasons(examination)[0]


def test_a_missing_field_that_a_template_reads_is_named(tmp_path):
  examination = examine(
    tmp_path, tmp_path / 'work', grader=dict(EXACT, reference='{{ item.gold }}')
  )
  assert not examination.go and any('item.gold' in reason for reason in reasons(examination))
  saved = json.loads((tmp_path / 'work' / 'doctor.json').read_text())
  assert saved['verdict'] == 'no-go' and saved['reasons'] == reasons(examination)


def test_a_missing_field_that_a_python_grader_reads_is_named(tmp_path):
  examination = examine(
    tmp_path,
    grader={
      'type': 'python',
      'name': 'x',
      'source': 'def grade(sample, item):\n  return float(item["gold"])\n',
    },
  )
  assert any("KeyError: 'gold'" in reason and '100%' in reason for reason in reasons(examination))


def test_training_on_held_out_prompts_is_no_go(tmp_path):
  config_without_leakage(tmp_path)
  data = DataConfig(train=str(tmp_path / 'train.jsonl'), validation=str(tmp_path / 'train.jsonl'))
  examination = examine(tmp_path, grader=CHANCE, data=data)
  assert any('held-out prompts are trained on' in reason for reason in reasons(examination))


def test_every_problem_of_a_run_that_cannot_be_built_is_a_reason(tmp_path):
  config = tiny.config(tmp_path)
  config.rollout.top_p, config.rollout.samples_per_prompt = 7, 1
  examination = diagnose(config)
  assert not examination.go and len(reasons(examination)) == 2
  for message in ('rollout.top_p=7', 'rollout.samples_per_prompt=1'):
    assert any(message in reason for reason in reasons(examination))
