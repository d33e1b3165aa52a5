"""Data order: which row is visited when, a pure function of (seed, position)."""

import functools

import numpy as np


def row_at(seed: int, position: int, rows: int) -> int:
  """Returns the index of the row at a position counted over the whole run.

  Epoch e consists of the positions e * rows to (e + 1) * rows - 1 and is a permutation of all rows,
  determined by (seed, e) alone: each epoch visits each row exactly once, and no row is dropped
  when a step crosses the boundary between two epochs.

  Raises:
    ValueError: seed or position is negative, or there are no rows.
  """
  if position < 0:
    raise ValueError(f'position={position}, need >= 0')
  if rows < 1:
    raise ValueError(f'rows={rows}, need >= 1')
  epoch, offset = divmod(position, rows)
  return int(_epoch_order(seed, epoch, rows)[offset])


def rows_at(seed: int, start: int, count: int, rows: int) -> list[int]:
  """Returns the row indices at positions start to start + count - 1."""
  return [row_at(seed, position, rows) for position in range(start, start + count)]


@functools.lru_cache(maxsize=8)
def _epoch_order(seed, epoch, rows):
  """Returns i64[rows], the permutation of one epoch.

  It sorts the raw words of a counter-based generator, which NumPy guarantees never to change
  between its versions; Generator.permutation has no such guarantee.
  """
  if seed < 0:
    raise ValueError(f'seed={seed}, need >= 0')
  words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(rows)
  return np.argsort(words, kind='stable')
