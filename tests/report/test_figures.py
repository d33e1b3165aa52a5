"""Axis ticks and running means of the charts."""

import math

import numpy as np

from rft_jax.report import figures


def test_ticks_cover_the_values_and_stay_in_the_unit_interval():
  assert figures.ticks(0.02, 0.97) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
  low, *_, high = figures.ticks(13.0, 88.0)
  assert low <= 13 and high >= 88
  assert figures.ticks(0.0, 0.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_the_running_mean_keeps_a_constant_and_bridges_gaps():
  values = [3.0] * 30 + [math.nan] * 2 + [3.0] * 30
  assert all(abs(value - 3.0) < 1e-12 for value in figures.running_mean(np.asarray(values)))
