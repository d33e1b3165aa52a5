"""Answers to held-out rows: the change of the grade, paired over rows."""

import pytest

from rft_jax.report import held_out


def test_pairing_removes_the_difficulty_of_each_row():
  def answers(grades):
    return {n: held_out.Answers({}, [{'reward': grade}]) for n, grade in enumerate(grades)}

  before, after = answers([0.0, 0.5, 1.0, 0.2]), answers([0.1, 0.6, 1.2, None])
  change = held_out.paired_change(before, after)
  # Changes 0.1, 0.1, 0.2: mean 2/15, standard deviation 0.1 / sqrt(3), over sqrt(3) rows.
  half = 1.96 * 0.1 / 3
  assert change == pytest.approx(
    {'mean': 2 / 15, 'low': 2 / 15 - half, 'high': 2 / 15 + half, 'rows': 3}
  )
  assert held_out.paired_change(before, {}) is None
