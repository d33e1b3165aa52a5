"""Packing: packs completions into microbatches, several behind one prompt in a row.

A packed row of the device arrays holds several completions of one prompt, one after the other. Each
attends to the prompt and to itself alone. Short completions of a group share rows with long ones,
so that few computed positions are padding, and the arrays have few shapes.
"""

from typing import NamedTuple

import numpy as np

from rft_jax.bucketing import coarse_bucket, power_of_two
from rft_jax.data.batching import ROW_FIELDS
from rft_jax.types import Array, Batch

# One row of twice the width costs more than two rows, because the cost of attention grows with the
# square of the width. This is the extra cost per column, relative to everything else in the row.
# About right for models of a few million parameters; for larger models wider rows would pay off.
COLUMN_COST = 1 / 2000


class Microbatch(NamedTuple):
  """Some completions of a Batch, packed for the device.

  `batch` holds P prompts with G completions each, in prompt order; missing completions are empty,
  with a loss mask of 0. The model reads the tokens of the completions from `packed`, R rows of W
  columns for each prompt. A group that needs more than R rows occurs several times as a prompt,
  each time with other completions.
  """

  batch: Batch
  packed: Array  # i32[P * R, W], the R rows of a prompt are adjacent
  completion_starts: Array  # i32[P * R, W], the column in which the completion of each token starts
  unpack_indices: Array  # i32[P, G * T], where each token is in the R * W of its prompt

  @property
  def size(self) -> int:
    """Returns the number of positions that are computed, padding included."""
    return self.batch.prompts.size + self.packed.size


class _Shape(NamedTuple):
  S: int  # prompt tokens
  R: int  # packed rows per prompt
  W: int  # columns of a packed row

  @property
  def size(self) -> int:
    return self.S + self.R * self.W


def pack(batch: Batch, *, tokens: int, shards: int = 1) -> list[tuple[Microbatch, np.ndarray]]:
  """Packs a Batch into microbatches of about `tokens` positions at most, in very few shapes.

  Each shape is a program to compile, and lengths differ from step to step. So all groups with about
  the same longest completion share one shape, whatever the lengths of the others, with P `shards`
  times a power of two, or half of that for the last microbatch. The result depends on the batch
  alone. In a batch with grades, completions of a group are compared with each other: no group is
  then split.

  Returns:
    (microbatch, rows) pairs; rows i32[B] is the row of the batch in each row of the microbatch, -1
    for padding. See scatter().
  """
  rows_of = [np.flatnonzero(batch.group == group) for group in range(len(batch.prompt_lengths))]
  G, T = max(map(len, rows_of)), power_of_two(max(8, int(batch.completion_lengths.max())))
  microbatches = []
  for groups in _length_classes(batch, rows_of):
    lengths = [batch.completion_lengths[rows_of[group]] for group in groups]
    shape = _cheapest_shape(
      coarse_bucket(int(batch.prompt_lengths[groups].max())),
      lengths,
      whole_groups=batch.grades is not None,
    )
    parts = [
      (group, rows_of[group][members], starts)
      for group, group_lengths in zip(groups, lengths)
      for members, starts in _group_parts(group_lengths, shape)
    ]
    full = shards * (1 << (max(tokens // shape.size // shards, 1).bit_length() - 1))
    for first in range(0, len(parts), full):
      chunk = parts[first : first + full]
      half = full // 2 if full >= 2 * shards else full
      count = half if len(chunk) <= half else full
      microbatches.append(_microbatch(batch, chunk, count, G, T, shape))
  return microbatches


def scatter(arrays, microbatches, shape) -> np.ndarray:
  """Scatters per-token arrays [B', T'] of microbatches into one f32 array of the batch's shape."""
  result = np.zeros(shape, np.float32)
  for array, (_, rows) in zip(arrays, microbatches):
    is_real = rows >= 0
    columns = min(shape[1], array.shape[1])
    result[rows[is_real], :columns] = np.asarray(array)[is_real, :columns]
  return result


def token_efficiency(batch: Batch, microbatches) -> float:
  """Returns the share of computed positions that hold a token; prompts count once per group."""
  real = int(batch.prompt_lengths[batch.prompt_lengths > 1].sum() + batch.completion_lengths.sum())
  return real / sum(microbatch.size for microbatch, _ in microbatches)


def _length_classes(batch, rows_of):
  """Returns lists of groups that share a shape, the longest completions first.

  Groups of several samples mix long and short completions in their rows anyway: they are one
  class. Single completions are put together with others of about their length.
  """
  if max(map(len, rows_of)) > 1:
    return [list(range(len(rows_of)))]
  classes = {}
  for group, rows in enumerate(rows_of):
    width = coarse_bucket(max(int(batch.completion_lengths[rows].max()), 8))
    classes.setdefault(width, []).append(group)
  return [classes[width] for width in sorted(classes, reverse=True)]


def _cheapest_shape(S: int, lengths, *, whole_groups=False) -> _Shape:
  """Returns the shape that holds every completion at the least cost, summed over all groups.

  whole_groups: no group is split, so R is the largest number of rows that a group needs.
  """
  longest = coarse_bucket(max(8, max(int(group.max()) for group in lengths)))
  costs = []
  for W in (longest, 2 * longest):
    rows = [max(row for row, _ in _first_fit(group, W)) + 1 for group in lengths]
    for R in sorted({power_of_two(row) for row in ([max(rows)] if whole_groups else rows)}):
      shape = _Shape(S, R, W)
      prompts = sum(-(-row // R) for row in rows)
      costs.append((prompts * (S + R * W * (1 + W * COLUMN_COST)), shape))
  return min(costs)[1]


def _group_parts(lengths, shape):
  """Yields the parts of a group that fit into R rows each, as (members, (row, column) of each)."""
  starts = _first_fit(lengths, shape.W)
  for first in range(0, max(row for row, _ in starts) + 1, shape.R):
    part = [index for index, (row, _) in enumerate(starts) if first <= row < first + shape.R]
    yield part, [(starts[index][0] - first, starts[index][1]) for index in part]


def _first_fit(lengths, W) -> list[tuple[int, int]]:
  """Returns the (row, column) at which each completion starts, by first-fit decreasing.

  The longest completions go first, each into the first row of W columns with enough space.
  """
  used: list[int] = []  # columns of each row
  starts = [(0, 0)] * len(lengths)
  for index in np.argsort(-lengths, kind='stable'):
    n = int(lengths[index])
    row = next((row for row, taken in enumerate(used) if taken + n <= W), len(used))
    used += [0] * (row == len(used))
    starts[index] = row, used[row]
    used[row] += n
  return starts


def _microbatch(batch, parts, P, G, T, shape):
  """Returns (Microbatch, rows) of group parts, filled up to P prompts of G completions each."""
  S, R, W = shape
  rows = np.full((P, G), -1)
  packed = np.zeros((P, R, W), np.int32)
  # A padding token attends to itself alone.
  completion_starts = np.broadcast_to(np.arange(W, dtype=np.int32), (P, R, W)).copy()
  unpack_indices = np.zeros((P, G, T), np.int32)
  for p, (_, members, starts) in enumerate(parts):
    rows[p, : len(members)] = members
    for g, (member, (row, column)) in enumerate(zip(members, starts)):
      n = batch.completion_lengths[member]
      packed[p, row, column : column + n] = batch.completions[member, :n]
      completion_starts[p, row, column : column + n] = column
      unpack_indices[p, g, :n] = row * W + column + np.arange(n)
  rows = rows.reshape(-1)

  def completions_of(array):
    if array is None:
      return None
    out = np.zeros((P * G,) + ((T,) if array.ndim == 2 else ()), array.dtype)
    if array.ndim == 2:
      out[rows >= 0, : array.shape[1]] = array[rows[rows >= 0], :T]
    else:
      out[rows >= 0] = array[rows[rows >= 0]]
    return out

  groups = [group for group, _, _ in parts]
  prompts = np.zeros((P, S), np.int32)
  prompts[: len(groups), : batch.prompts.shape[1]] = batch.prompts[groups, :S]
  prompt_lengths = np.ones(P, np.int32)  # a padding prompt has one token, of any id
  prompt_lengths[: len(groups)] = batch.prompt_lengths[groups]
  padded = Batch(
    prompts,
    prompt_lengths,
    completions_of(batch.completions),
    completions_of(batch.completion_lengths),
    np.repeat(np.arange(P, dtype=np.int32), G),
    **{name: completions_of(getattr(batch, name)) for name in ROW_FIELDS},
  )
  return Microbatch(
    padded,
    packed.reshape(P * R, W),
    completion_starts.reshape(P * R, W),
    unpack_indices.reshape(P, G * T),
  ), rows
