"""Data order: a pure function of (seed, position)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.data import order


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 5), rows=st.integers(1, 60))
def test_each_epoch_visits_each_row_once(seed, epoch, rows):
  assert sorted(order.rows_at(seed, epoch * rows, rows, rows)) == list(range(rows))


def test_a_row_depends_on_seed_and_position_alone():
  expected = order.rows_at(7, 0, 95, 10)
  order.rows_at(8, 0, 95, 10)  # removes the epochs of seed 7 from the cache
  assert [order.row_at(7, position, 10) for position in reversed(range(95))] == expected[::-1]
  assert order.rows_at(7, 33, 20, 10) == expected[33:53]  # a step may cross an epoch boundary


def test_epochs_and_seeds_differ():
  epochs = {tuple(order.rows_at(seed, epoch * 50, 50, 50)) for seed in (0, 1) for epoch in (0, 1)}
  assert len(epochs) == 4


def test_the_order_of_seed_0_never_changes():
  # A recorded value: if the order changed, no old run could be resumed.
  assert order.rows_at(0, 0, 12, 6) == [0, 3, 5, 1, 2, 4, 3, 4, 2, 1, 5, 0]


@pytest.mark.parametrize('arguments', [(0, -1, 5), (0, 0, 0), (-1, 0, 5)])
def test_impossible_arguments_are_refused(arguments):
  with pytest.raises(ValueError, match='need >='):
    order.row_at(*arguments)
