"""95 % confidence intervals of means: bootstrap over rows, seeds or groups, and paired changes.

The random numbers of each function are fixed: the same values give the same interval every time.
"""

import math
import statistics

import numpy as np

ROW_RESAMPLES = 2000  # of the rows
SEED_AND_ROW_RESAMPLES = 4000  # of the seeds and of the rows
GROUP_RESAMPLES = 10_000  # of the groups


def intervals(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """Returns the mean of each column with its 95 % interval, percentile bootstrap over rows.

  Args:
    columns: {metric: f64[rows]}. Rows that are NaN are left out; so is a column of nothing else.

  Returns:
    {metric: {'mean', 'low', 'high'}}.
  """
  results = {}
  for name, values in columns.items():
    values = values[~np.isnan(values)]
    if len(values):
      low, high = np.quantile(_resampled_means(values), [0.025, 0.975])
      results[name] = {'mean': float(values.mean()), 'low': float(low), 'high': float(high)}
  return results


def paired_difference(after, before) -> dict[str, float]:
  """Returns the mean of after - before over the same rows, with its 95 % bootstrap interval.

  Args:
    after, before: f64[rows], NaN where a row has no value in one of them: left out of both.
  """
  difference = np.asarray(after, float) - np.asarray(before, float)
  return intervals({'difference': difference})['difference']


def mean_with_interval(values, *, seed: int = 0, resamples: int = 2000) -> dict[str, float]:
  """Returns {'mean', 'low', 'high'} of one value per row, 95 % percentile bootstrap over rows.

  The statistic of `intervals` from other random numbers: row indices, not multinomial counts. The
  reference levels in the task.json of the built-in tasks are computed with it.
  """
  values = np.asarray(values, float)
  indices = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
  low, high = np.percentile(values[indices].mean(1), (2.5, 97.5))
  return {'mean': float(values.mean()), 'low': float(low), 'high': float(high)}


def interval_over_seeds_and_rows(values: np.ndarray) -> tuple[float, float, float]:
  """Returns (mean, low, high) of f64[seeds, rows], 95 % bootstrap over both seeds and rows."""
  rng = np.random.default_rng(0)
  seeds, rows = values.shape
  by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=SEED_AND_ROW_RESAMPLES) / seeds
  by_row = rng.multinomial(rows, np.full(rows, 1 / rows), size=SEED_AND_ROW_RESAMPLES) / rows
  means = np.einsum('bs,sr,br->b', by_seed, values, by_row, optimize=True)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(values.mean()), float(low), float(high)


def interval_over_groups(values: np.ndarray, groups=None) -> tuple[float, float, float]:
  """Returns (mean, low, high) of f64[rows], 95 % bootstrap over groups of rows that are alike.

  Args:
    groups: the group of each row, such as its publication; None: every row is its own group.
  """
  groups = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
  sums, sizes = np.bincount(groups, values), np.bincount(groups)
  counts = np.random.default_rng(0).multinomial(
    len(sums), np.full(len(sums), 1 / len(sums)), size=GROUP_RESAMPLES
  )
  low, high = np.quantile((counts @ sums) / (counts @ sizes), [0.025, 0.975])
  return float(values.mean()), float(low), float(high)


def normal_interval(values: list[float]) -> dict[str, float]:
  """Returns {'mean', 'low', 'high'} by the normal approximation; needs at least two values.

  mean(x) +- 1.96 * stdev(x) / sqrt(n)
  """
  mean = statistics.fmean(values)
  half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def _resampled_means(values):
  rng = np.random.default_rng(0)  # the same resamples for every column and every evaluation
  counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=ROW_RESAMPLES)
  return counts @ values / len(values)
