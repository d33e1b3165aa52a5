"""Bootstrap intervals: coverage, pairing, width over seeds and groups, and fixed random numbers."""

import math

import numpy as np
import pytest

from rft_jax import bootstrap


@pytest.mark.full
def test_intervals_cover_the_mean_of_a_normal_as_often_as_they_say():
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(200):
    interval = bootstrap.intervals({'x': rng.normal(3.0, 1.0, 100)})['x']
    hits += interval['low'] <= 3.0 <= interval['high']
  assert 0.89 <= hits / 200 <= 0.99


def test_rows_without_a_value_are_left_out_and_a_column_of_them_has_no_interval():
  columns = {'some': np.array([1.0, math.nan, 1.0]), 'none': np.full(3, math.nan)}
  assert bootstrap.intervals(columns) == {'some': {'mean': 1.0, 'low': 1.0, 'high': 1.0}}


def test_pairing_shows_a_small_difference_that_two_intervals_hide():
  rng = np.random.default_rng(1)
  before = rng.normal(0.0, 1.0, 300)
  after = before + rng.normal(0.05, 0.1, 300)
  assert bootstrap.paired_difference(after, before)['low'] > 0
  apart = bootstrap.intervals({'before': before, 'after': after})
  assert apart['after']['low'] < apart['before']['high']


def test_a_difference_leaves_out_rows_without_a_value_in_either():
  difference = bootstrap.paired_difference([1.0, math.nan, 3.0], [0.0, 5.0, math.nan])
  assert difference == {'mean': 1.0, 'low': 1.0, 'high': 1.0}


def test_an_interval_over_seeds_and_rows_is_as_wide_as_both_make_it():
  """Independent rows of one seed: 1.96 standard errors of their mean."""
  values = np.random.default_rng(0).normal(size=(1, 400))
  mean, low, high = bootstrap.interval_over_seeds_and_rows(values)
  error = values.std() / 20
  assert mean == values.mean() and abs((high - low) / (2 * 1.96 * error) - 1) < 0.05
  apart = np.concatenate([values, values + 3])  # seeds that differ widen it
  _, low, high = bootstrap.interval_over_seeds_and_rows(apart)
  assert high - low > 2.9


def test_rows_that_are_alike_count_as_one():
  """A row and its 24 copies: the interval of 16 rows, five times as wide as that of 400."""
  values = np.repeat(np.random.default_rng(0).normal(size=16), 25)
  width = lambda interval: interval[2] - interval[1]
  grouped = bootstrap.interval_over_groups(values, [f'group {n // 25}' for n in range(400)])
  ratio = width(grouped) / width(bootstrap.interval_over_groups(values))
  assert grouped[0] == values.mean() and ratio == pytest.approx(5, rel=0.1)


def test_the_normal_interval_is_196_standard_errors_on_either_side():
  half = 1.96 * 1.0 / math.sqrt(3)
  interval = bootstrap.normal_interval([1.0, 2.0, 3.0])
  assert interval == pytest.approx({'mean': 2.0, 'low': 2.0 - half, 'high': 2.0 + half})


def test_the_random_numbers_are_fixed():
  """Published figures rest on these resamples: another draw would change their last digits."""
  values = np.random.default_rng(7).normal(size=(2, 30))
  results = (
    [*bootstrap.intervals({'x': values[0]})['x'].values()],
    [*bootstrap.paired_difference(values[0], values[1]).values()],
    [*bootstrap.mean_with_interval(values[0]).values()],
    [*bootstrap.interval_over_seeds_and_rows(values)],
    [*bootstrap.interval_over_groups(values[0], np.arange(30) // 5)],
  )
  expected = (
    [-0.414069692749, -0.706342483755, -0.114280492322],
    [-0.409445414275, -0.863857908815, 0.0318184921819],
    [-0.414069692749, -0.707836585773, -0.125271789508],
    [-0.209346985612, -0.610718195153, 0.19613086154],
    [-0.414069692749, -0.647611543843, -0.18592788204],
  )
  np.testing.assert_allclose(results, expected, rtol=1e-9)
