"""The verdict follows the 95 % interval of the change."""

import pytest
from fake_runs import interval, policy

from rft_jax.report import held_out, verdict, workdir


@pytest.mark.parametrize(
  'after, half, tone',
  [
    (0.60, 0.05, 'better'),
    (0.20, 0.05, 'worse'),
    (0.45, 0.05, 'same'),
    # Half widths 0.05 make a half width of 0.0707: intervals that overlap can still be apart.
    (0.47, 0.05, 'same'),
    (0.48, 0.05, 'better'),
  ],
)
def test_the_tone_follows_the_interval_of_the_change(after, half, tone):
  assert verdict.summarize([policy(0, 0.40, 0.05), policy(9, after, half)], [])['tone'] == tone


def test_a_paired_change_is_preferred():
  before, after = (
    {n: held_out.Answers({'reward': grade}, [{'reward': grade}]) for n, grade in enumerate(grades)}
    for grades in ([0.0, 0.5, 1.0], [0.1, 0.7, 1.3])
  )
  policies = [policy(0, 0.40, 0.05, before), policy(9, 0.45, 0.05, after)]
  summary = verdict.summarize(policies, [])
  assert summary['tone'] == 'better'
  assert summary['details'] == [
    'Change since “step 0”: +0.20 [0.09, 0.31] sampled, paired over 3 '
    'held-out rows; 95 % intervals in brackets.'
  ]


def test_without_grades_the_verdict_is_on_the_accuracy_on_pairs():
  outcomes = {0.7: ('better', 'helped'), 0.3: ('worse', 'hurt'), 0.55: ('same', 'made no clear')}
  stage = workdir.Stage('dpo', 'preference learning', 0, 9)
  for accuracy, (tone, words) in outcomes.items():
    policies = [
      policy(step, None, 0, **{'preference/accuracy': interval(mean, 0.1)})
      for step, mean in ((0, 0.5), (9, accuracy))
    ]
    summary = verdict.summarize(policies, [], stage)
    assert summary['tone'] == tone
    assert summary['headline'].startswith(f'Preference learning {words}')
    assert f'{accuracy:.2f} [' in summary['headline']


def test_other_runs_are_compared_with_the_newest_policy():
  policies = [policy(0, 0.4, 0.05), policy(9, 0.6, 0.05)]
  sentences = {
    0.4: 'Training beats “step 5” by +0.20 [0.13, 0.27] sampled.',
    0.8: 'Training is behind “step 5” by −0.20 [−0.27, −0.13] sampled.',
    0.6: 'Training and “step 5” do not differ clearly: +0.000 [−0.071, 0.071] sampled.',
  }
  for mean, sentence in sentences.items():
    assert verdict.summarize(policies, [policy(5, mean, 0.05)])['details'][1] == sentence
