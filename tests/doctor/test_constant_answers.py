"""Grades of case-independent answers: reward hacking is no-go where the answer fits."""

import tiny

from rft_jax.doctor.doctor import diagnose


def test_a_grader_that_accepts_every_option_at_once_is_no_go(tmp_path):
  config = tiny.config(tmp_path)
  config.rollout.max_new_tokens, config.rollout.grade_truncated = 200, True
  config.doctor.rows, config.doctor.samples_per_prompt = 8, 2
  config.grader = {
    'type': 'string_check',
    'name': 'contains',
    'operation': 'like',
    'input': '{{ sample.output_text }}',
    'reference': '{{ item.answer }}',
  }
  expected = 'reward hacking is possible: every item.answer at once gets 1.000'
  verdicts = lambda examination: {
    finding.verdict for finding in examination.findings if finding.text.startswith(expected)
  }
  examination = diagnose(config)
  assert verdicts(examination) == {'no-go'}, examination.text()
  attack = examination.values['constant_answers']['every item.answer at once']
  assert attack['reward_mean'] == 1.0 and attack['within_max_new_tokens']
  config.rollout.max_new_tokens = 2  # too short for that answer
  assert verdicts(diagnose(config)) == {'warning'}
