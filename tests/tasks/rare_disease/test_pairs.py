"""Preference pairs for rare-disease cases: the higher graded answer is chosen."""

import json

import task_command

from rft_jax import graders


def test_the_chosen_answer_has_the_higher_grade(tmp_path):
  assert task_command.run('rare_disease', tmp_path, '--pairs=30') == 0
  read = lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
  grader = graders.make(json.loads((tmp_path / 'grader.json').read_text()))
  grade = lambda row, text: grader(row, graders.make_sample(text)[0]).reward
  for name, rows in (
    ('pairs.jsonl', read('train.jsonl')[-30:]),
    ('pairs_validation.jsonl', read('validation.jsonl')),
  ):
    rows_by_id = {row['case_id']: row for row in rows}
    pairs = read(name)
    assert 0.8 * len(rows_by_id) < len(pairs) <= len(rows_by_id)
    for pair in pairs:
      assert pair['messages'] == rows_by_id[pair['case_id']]['messages']
      assert grade(pair, pair['chosen']) > grade(pair, pair['rejected'])
  grader.close()
