"""Wrong grades: corrections, groups and rows, by hand-worked numbers and by simulation."""

import copy
import json

import numpy as np
import pytest

from rft_jax.objectives import noisy_grades
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.noisy_grades import Evidence


def test_the_correction_by_hand():
  found = noisy_grades.symmetric_correction(
    [0.0, 1.0, 0.5], flip_rate_right=0.3, flip_rate_wrong=0.2
  )
  np.testing.assert_allclose(found, [-0.4, 1.6, 0.6], rtol=1e-15)  # (r - 0.2) / 0.5
  found = noisy_grades.symmetric_correction(
    [2.0, 6.0], flip_rate_right=0.1, flip_rate_wrong=0.1, low=2.0, high=6.0
  )
  np.testing.assert_allclose(found, [1.5, 6.5], rtol=1e-15)  # 2 + (r - 2.4) / 0.8


@pytest.mark.parametrize('right, wrong', [(0.3, 0.3), (0.4, 0.05), (0.0, 0.45)])
def test_the_corrected_mean_is_the_true_one_under_flips(right, wrong):
  rng = np.random.default_rng(0)
  truth = (rng.random((200_000,)) < 0.35) * 4.0 - 1.0  # grades of -1 and 3
  flipped = rng.random(truth.shape) < np.where(truth > 0, right, wrong)
  seen = np.where(flipped, 2.0 - truth, truth)
  made = noisy_grades.symmetric_correction(
    seen, flip_rate_right=right, flip_rate_wrong=wrong, low=-1.0, high=3.0
  )
  error = made.std() / np.sqrt(len(made))
  for value in (-1.0, 3.0):
    part = made[truth == value]
    assert abs(part.mean() - value) <= 4 * part.std() / np.sqrt(len(part))
  assert abs(made.mean() - truth.mean()) < 4 * error
  assert abs(seen.mean() - truth.mean()) > 10 * error  # which the seen grades are not
  np.testing.assert_allclose(made.std(), seen.std() / (1 - right - wrong), rtol=1e-12)


def test_a_group_normalised_advantage_cancels_the_correction_and_a_plain_one_does_not():
  rewards = (np.random.default_rng(1).random((20, 8)) < 0.4).astype(float)
  made = noisy_grades.symmetric_correction(rewards, flip_rate_right=0.3, flip_rate_wrong=0.1)
  group = AdvantageConfig(epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages(made, group), group_advantages(rewards, group), rtol=1e-6
  )
  for plain in (AdvantageConfig(scale='none'), AdvantageConfig(estimator='rloo')):
    np.testing.assert_allclose(
      group_advantages(made, plain), group_advantages(rewards, plain) / 0.6, rtol=1e-6
    )


def test_a_broken_grade_is_clipped_to_the_range():
  np.testing.assert_array_equal(
    noisy_grades.clip_grades([-5, 0.25, 100, np.inf], 0.0, 1.0), [0, 0.25, 1, 1]
  )


def test_evidence_by_hand():
  answers = [['7', '7', '7', '8'], ['a', 'b', None, None], [None] * 4, ['5', '5', '6', '6']]
  rewards = [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
  assert noisy_grades.evidence(answers, rewards, 1.0) == [
    Evidence('7', 0.75, 0.0, False, 1, 3),
    Evidence('a', 0.25, 0.0, False, 0, 1),
    Evidence(None, 0.0, 0.0, False, 0, 0),
    Evidence('6', 0.5, 1.0, True, 2, 2),
  ]  # a tie never speaks against the grader


def test_rank_grades_count_as_right_from_where_the_user_says():
  (found,) = noisy_grades.evidence([['A', 'A', 'B', 'B']], [[0.7, 0.49, 1.0, 1.0]], 1.0)
  assert (found.answer, found.right, found.votes_right, found.votes_rival) == ('B', True, 2, 2)
  (found,) = noisy_grades.evidence([['A', 'A', 'A', 'B']], [[0.7, 0.49, 0.7, 1.0]], 0.6)
  assert (found.answer, found.right, found.votes_right, found.votes_rival) == ('A', True, 3, 0)


def test_hits_against_agreement_are_implausible_and_hard_cases_are_not():
  # One hit while seven agree on a rival; one hit while the others disagree; no hits at all.
  answers = [['r'] + ['x'] * 7, ['r', *'abcdefg'], list('abcdefgh')]
  rewards = np.zeros((3, 8))
  rewards[:2, 0] = 1
  found = noisy_grades.evidence(answers, rewards, 1.0)
  np.testing.assert_allclose(noisy_grades.plausibility(found), [2 / 10, 2 / 4, 1 / 3])
  np.testing.assert_array_equal(noisy_grades.plausible_groups(found, 0.3), [False, True, True])


def _visit(answer, share=0.75, right=False):
  return Evidence(answer, share, float(right), right, 0, 0)


def _seen(visits, history=None, step=0):
  """The history of one row, 'a', after visits one step apart."""
  history = history or {}
  for number, visit in enumerate(visits):
    history = noisy_grades.update_history(
      history, ['a'], [visit], step=step + number, min_share=0.5
    )
  return history


@pytest.mark.parametrize(
  'visits, streak, began',
  [
    ([_visit('x')] * 3, 3, 0),
    ([_visit('x'), _visit('y'), _visit('y')], 2, 1),  # not the same answer again
    ([_visit('x'), _visit('z', share=0.25), _visit('x')], 2, 0),  # no agreement says nothing
    ([_visit('x'), _visit('x', right=True), _visit('x')], 1, 2),
    ([_visit('x'), _visit('x', right=True)], 0, None),
    ([_visit(None, share=0.0)] * 3, 0, None),
  ],
)
def test_streaks(visits, streak, began):
  history = _seen(visits)
  assert (history['a']['streak'], history['a']['began'], history['a']['visits']) == (
    streak,
    began,
    len(visits),
  )
  assert noisy_grades.contradicted(history, contradictions=max(streak, 1)) == ['a'] * (streak > 0)
  assert noisy_grades.contradicted(history, contradictions=streak + 1) == []


def test_a_history_goes_on_where_it_stopped_and_is_never_changed_in_place():
  visits = [_visit('x'), _visit('x'), _visit('y'), _visit('x', right=True), _visit('y')]
  first = _seen(visits[:2])
  before = copy.deepcopy(first)
  stopped = json.loads(json.dumps(first))
  assert _seen(visits[2:], stopped, step=2) == _seen(visits)
  assert first == before


def test_a_policy_that_knows_little_has_no_say():
  history = {}
  for row, visit in [
    ('a', _visit('x')),
    ('b', _visit('x')),
    ('c', _visit('x', right=True)),
    ('d', _visit('x', share=0.1)),
  ]:
    history = noisy_grades.update_history(history, [row], [visit], step=1, min_share=0.5)
  assert noisy_grades.trust(history) == pytest.approx(1 / 3) and noisy_grades.trust({}) == 0
  assert noisy_grades.contradicted(history, contradictions=1, min_trust=0.3) == ['a', 'b']
  assert noisy_grades.contradicted(history, contradictions=1, min_trust=0.4) == []


def test_wrong_references_are_left_out_and_hard_right_ones_are_not():
  """200 rows, 40 of them wrong, 40 hard (each sample one of ten answers, the right one as often as
  any other), 120 easy (right in 80 %); 8 samples a visit, 6 visits."""
  rng, history = np.random.default_rng(0), {}
  rows = [f'row:{n:03d}' for n in range(200)]
  wrong, hard = set(rows[:40]), set(rows[40:80])
  for step in range(6):
    said = [
      [str(rng.integers(10)) if row in hard or rng.random() > 0.8 else '0' for _ in range(8)]
      for row in rows
    ]
    rewards = [
      [float(one == ('1' if row in wrong else '0')) for one in given]
      for row, given in zip(rows, said)
    ]
    found = noisy_grades.evidence(said, rewards, 1.0)
    history = noisy_grades.update_history(history, rows, found, step=step, min_share=0.5)
  assert set(noisy_grades.contradicted(history, contradictions=3, min_trust=0.5)) == wrong


def test_rates_that_leave_nothing_raise():
  with pytest.raises(ValueError, match='flip_rate_right=0.5'):
    noisy_grades.symmetric_correction([1.0], flip_rate_right=0.5, flip_rate_wrong=0.5)
