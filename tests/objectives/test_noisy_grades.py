"""Noisy grades: corrections, groups and rows, against numbers by hand and by simulation."""

import copy
import json

import numpy as np
import pytest

from rft_jax.objectives import noisy_grades
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.noisy_grades import Evidence


def test_the_correction_by_hand():
  corrected = noisy_grades.symmetric_correction(
    [0.0, 1.0, 0.5], flip_rate_right=0.3, flip_rate_wrong=0.2
  )
  np.testing.assert_allclose(corrected, [-0.4, 1.6, 0.6], rtol=1e-15)  # (r - 0.2) / 0.5
  corrected = noisy_grades.symmetric_correction(
    [2.0, 6.0], flip_rate_right=0.1, flip_rate_wrong=0.1, low=2.0, high=6.0
  )
  np.testing.assert_allclose(corrected, [1.5, 6.5], rtol=1e-15)  # 2 + (r - 2.4) / 0.8


@pytest.mark.parametrize('right, wrong', [(0.3, 0.3), (0.4, 0.05), (0.0, 0.45)])
def test_the_corrected_mean_is_the_true_one_under_flips(right, wrong):
  rng = np.random.default_rng(0)
  truth = (rng.random((200_000,)) < 0.35) * 4.0 - 1.0  # grades of -1 and 3
  flipped = rng.random(truth.shape) < np.where(truth > 0, right, wrong)
  noisy = np.where(flipped, 2.0 - truth, truth)
  corrected = noisy_grades.symmetric_correction(
    noisy, flip_rate_right=right, flip_rate_wrong=wrong, low=-1.0, high=3.0
  )
  error = corrected.std() / np.sqrt(len(corrected))
  for value in (-1.0, 3.0):
    part = corrected[truth == value]
    assert abs(part.mean() - value) <= 4 * part.std() / np.sqrt(len(part))
  assert abs(corrected.mean() - truth.mean()) < 4 * error
  assert abs(noisy.mean() - truth.mean()) > 10 * error  # the uncorrected grades are biased
  np.testing.assert_allclose(corrected.std(), noisy.std() / (1 - right - wrong), rtol=1e-12)


def test_a_group_normalised_advantage_cancels_the_correction_and_others_do_not():
  rewards = (np.random.default_rng(1).random((20, 8)) < 0.4).astype(float)
  corrected = noisy_grades.symmetric_correction(rewards, flip_rate_right=0.3, flip_rate_wrong=0.1)
  group = AdvantageConfig(epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages(corrected, group), group_advantages(rewards, group), rtol=1e-6
  )
  for unscaled in (AdvantageConfig(scale='none'), AdvantageConfig(estimator='rloo')):
    np.testing.assert_allclose(
      group_advantages(corrected, unscaled), group_advantages(rewards, unscaled) / 0.6, rtol=1e-6
    )


def test_extreme_grades_are_clipped_to_the_range():
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
  ]  # a tie never contradicts the grader


def test_grades_count_as_right_from_the_configured_grade_on():
  (visit,) = noisy_grades.evidence([['A', 'A', 'B', 'B']], [[0.7, 0.49, 1.0, 1.0]], 1.0)
  assert (visit.answer, visit.right, visit.votes_right, visit.votes_rival) == ('B', True, 2, 2)
  (visit,) = noisy_grades.evidence([['A', 'A', 'A', 'B']], [[0.7, 0.49, 0.7, 1.0]], 0.6)
  assert (visit.answer, visit.right, visit.votes_right, visit.votes_rival) == ('A', True, 3, 0)


def test_a_reference_that_the_others_contradict_is_implausible_and_that_of_a_hard_case_is_not():
  # One graded right while seven agree on a rival; one while the others disagree; none at all.
  answers = [['r'] + ['x'] * 7, ['r', *'abcdefg'], list('abcdefgh')]
  rewards = np.zeros((3, 8))
  rewards[:2, 0] = 1
  evidence = noisy_grades.evidence(answers, rewards, 1.0)
  np.testing.assert_allclose(noisy_grades.plausibility(evidence), [2 / 10, 2 / 4, 1 / 3])
  np.testing.assert_array_equal(noisy_grades.plausible_groups(evidence, 0.3), [False, True, True])


def make_visit(answer, share=0.75, right=False):
  return Evidence(answer, share, float(right), right, 0, 0)


def history_after(visits, history=None, step=0):
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
    ([make_visit('x')] * 3, 3, 0),
    ([make_visit('x'), make_visit('y'), make_visit('y')], 2, 1),  # not the same answer again
    (
      [make_visit('x'), make_visit('z', share=0.25), make_visit('x')],
      2,
      0,
    ),  # no agreement changes nothing
    ([make_visit('x'), make_visit('x', right=True), make_visit('x')], 1, 2),
    ([make_visit('x'), make_visit('x', right=True)], 0, None),
    ([make_visit(None, share=0.0)] * 3, 0, None),
  ],
)
def test_streaks(visits, streak, began):
  history = history_after(visits)
  assert (history['a']['streak'], history['a']['began'], history['a']['visits']) == (
    streak,
    began,
    len(visits),
  )
  assert noisy_grades.contradicted_rows(history, contradictions=max(streak, 1)) == ['a'] * (
    streak > 0
  )
  assert noisy_grades.contradicted_rows(history, contradictions=streak + 1) == []


def test_a_history_continues_after_json_and_is_never_changed_in_place():
  visits = [
    make_visit('x'),
    make_visit('x'),
    make_visit('y'),
    make_visit('x', right=True),
    make_visit('y'),
  ]
  first = history_after(visits[:2])
  before = copy.deepcopy(first)
  loaded = json.loads(json.dumps(first))
  assert history_after(visits[2:], loaded, step=2) == history_after(visits)
  assert first == before


def test_a_policy_below_min_trust_excludes_no_rows():
  history = {}
  for row, visit in [
    ('a', make_visit('x')),
    ('b', make_visit('x')),
    ('c', make_visit('x', right=True)),
    ('d', make_visit('x', share=0.1)),
  ]:
    history = noisy_grades.update_history(history, [row], [visit], step=1, min_share=0.5)
  assert noisy_grades.trust(history) == pytest.approx(1 / 3) and noisy_grades.trust({}) == 0
  assert noisy_grades.contradicted_rows(history, contradictions=1, min_trust=0.3) == ['a', 'b']
  assert noisy_grades.contradicted_rows(history, contradictions=1, min_trust=0.4) == []


def test_rows_with_wrong_references_are_excluded_and_hard_ones_are_not():
  """200 rows, 40 of them wrong, 40 hard (each sample one of ten answers, the right one as often as
  any other), 120 easy (right in 80 %); 8 samples a visit, 6 visits."""
  rng, history = np.random.default_rng(0), {}
  rows = [f'row:{n:03d}' for n in range(200)]
  wrong, hard = set(rows[:40]), set(rows[40:80])
  for step in range(6):
    answers = [
      [str(rng.integers(10)) if row in hard or rng.random() > 0.8 else '0' for _ in range(8)]
      for row in rows
    ]
    rewards = [
      [float(answer == ('1' if row in wrong else '0')) for answer in row_answers]
      for row, row_answers in zip(rows, answers)
    ]
    evidence = noisy_grades.evidence(answers, rewards, 1.0)
    history = noisy_grades.update_history(history, rows, evidence, step=step, min_share=0.5)
  assert set(noisy_grades.contradicted_rows(history, contradictions=3, min_trust=0.5)) == wrong


def test_flip_rates_with_a_sum_of_1_raise():
  with pytest.raises(ValueError, match='flip_rate_right=0.5'):
    noisy_grades.symmetric_correction([1.0], flip_rate_right=0.5, flip_rate_wrong=0.5)
