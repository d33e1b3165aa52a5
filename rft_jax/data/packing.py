"""From a Batch to microbatches of few shapes: completions packed behind their prompts.

A row of the device's arrays holds several completions of one prompt, one behind the other, each of
which sees the prompt and itself alone. So long and short completions of a group share rows, and
little is computed that nobody asked for.
"""

from typing import NamedTuple

import numpy as np

from rft_jax.bucketing import few, power_of_two
from rft_jax.data.batching import ROW_FIELDS
from rft_jax.types import Array, Batch

# A row twice as wide costs more than two rows, as attention grows with its square: by this share
# of everything else for each column. About right for models of a few million parameters; larger
# ones would bear wider rows.
COLUMN_COST = 1 / 2000


class Microbatch(NamedTuple):
  """Some completions of a Batch as the device reads them.

  `batch` holds P prompts with G completions each, in prompt order; missing ones are empty, with
  weights of 0. The completions' tokens are read from R packed rows of W columns for each prompt. A
  group that needs more rows than R stands there several times, each time with some of its
  completions.
  """

  batch: Batch
  packed: Array  # i32[P * R, W], the rows of a prompt next to each other
  begins: Array  # i32[P * R, W], where the completion of each token begins
  places: Array  # i32[P, G * T], where each token of the batch stands in its prompt's R * W

  @property
  def size(self) -> int:
    """Returns how many positions are computed."""
    return self.batch.prompts.size + self.packed.size


class _Shape(NamedTuple):
  S: int
  R: int
  W: int

  @property
  def size(self) -> int:
    return self.S + self.R * self.W


def plan(batch: Batch, *, tokens: int, shards: int = 1) -> list[tuple[Microbatch, np.ndarray]]:
  """Cuts a Batch into microbatches of at most about `tokens` positions, of very few shapes.

  Each shape is a program to compile, and lengths differ from step to step; so all groups of about
  the same longest completion share one shape, whatever the others' lengths are, with P `shards`
  times a power of two, or half of that for the last one. Everything follows from the batch alone.
  A batch with grades compares completions of a group: no group is then cut in two.

  Returns:
    (microbatch, rows) pairs; rows i32[B] says which row of the batch each row of the microbatch
    is, -1 for padding. See scatter().
  """
  slot_assignment = [np.flatnonzero(batch.group == group) for group in range(len(batch.prompt_lengths))]
  G, T = max(map(len, slot_assignment)), power_of_two(max(8, int(batch.completion_lengths.max())))
  pieces = []
  for groups in _classes(batch, slot_assignment):
    lengths = [batch.completion_lengths[slot_assignment[group]] for group in groups]
    shape = _shape(
      few(int(batch.prompt_lengths[groups].max())), lengths, whole_groups=batch.grades is not None
    )
    parts = [
      (group, slot_assignment[group][part], places)
      for group, of in zip(groups, lengths)
      for part, places in _parts(of, shape)
    ]
    most = shards * (1 << (max(tokens // shape.size // shards, 1).bit_length() - 1))
    for start in range(0, len(parts), most):
      some = parts[start : start + most]
      half = most // 2 if most >= 2 * shards else most
      count = half if len(some) <= half else most
      pieces.append(_microbatch(batch, some, count, G, T, shape))
  return pieces


def _classes(batch, slot_assignment):
  """Returns lists of groups that are alike, the longest completions first.

  Groups of several samples mix long and short completions in their rows anyway: they are one
  class. Single completions are put with others of their own length.
  """
  if max(map(len, slot_assignment)) > 1:
    return [list(range(len(slot_assignment)))]
  widths = {}
  for group, rows in enumerate(slot_assignment):
    widths.setdefault(few(max(int(batch.completion_lengths[rows].max()), 8)), []).append(group)
  return [widths[width] for width in sorted(widths, reverse=True)]


def scatter(parts, pieces, shape) -> np.ndarray:
  """Puts per-token arrays [B', T'] of the pieces back into one array of the batch's shape."""
  whole = np.zeros(shape, np.float32)
  for part, (_, rows) in zip(parts, pieces):
    real = rows >= 0
    columns = min(shape[1], part.shape[1])
    whole[rows[real], :columns] = np.asarray(part)[real, :columns]
  return whole


def token_efficiency(batch: Batch, pieces) -> float:
  """Returns the share of computed positions that hold a token, prompts counted once a group."""
  real = int(batch.prompt_lengths[batch.prompt_lengths > 1].sum() + batch.completion_lengths.sum())
  return real / sum(piece.size for piece, _ in pieces)


def _shape(S: int, lengths, *, whole_groups=False) -> _Shape:
  """Returns the shape that holds every completion at the least cost, all groups together.

  whole_groups: each group in one piece, so that R is as many rows as the widest of them takes.
  """
  longest = few(max(8, max(int(group.max()) for group in lengths)))
  costs = []
  for W in (longest, 2 * longest):
    rows = [max(row for row, _ in _first_fit(group, W)) + 1 for group in lengths]
    for R in sorted({power_of_two(row) for row in ([max(rows)] if whole_groups else rows)}):
      shape = _Shape(S, R, W)
      times = sum(-(-row // R) for row in rows)
      costs.append((times * (S + R * W * (1 + W * COLUMN_COST)), shape))
  return min(costs)[1]


def _parts(lengths, shape):
  """Yields (which completions, the (row, column) of each) for each time the prompt stands there."""
  places = _first_fit(lengths, shape.W)
  for first in range(0, max(row for row, _ in places) + 1, shape.R):
    part = [index for index, (row, _) in enumerate(places) if first <= row < first + shape.R]
    yield part, [(places[index][0] - first, places[index][1]) for index in part]


def _first_fit(lengths, W) -> list[tuple[int, int]]:
  """Returns the (row, column) at which each completion begins: the longest first, each into the
  first row of W columns that has room for it."""
  used, places = [], [(0, 0)] * len(lengths)
  for index in np.argsort(-lengths, kind='stable'):
    n = int(lengths[index])
    row = next((row for row, taken in enumerate(used) if taken + n <= W), len(used))
    used += [0] * (row == len(used))
    places[index] = row, used[row]
    used[row] += n
  return places


def _microbatch(batch, parts, P, G, T, shape):
  S, R, W = shape
  rows = np.full((P, G), -1)
  packed = np.zeros((P, R, W), np.int32)
  begins = np.broadcast_to(np.arange(W, dtype=np.int32), (P, R, W)).copy()  # padding sees itself
  places = np.zeros((P, G, T), np.int32)
  for number, (_, slot_assignment, where) in enumerate(parts):
    rows[number, : len(slot_assignment)] = slot_assignment
    for g, (member, (row, column)) in enumerate(zip(slot_assignment, where)):
      n = batch.completion_lengths[member]
      packed[number, row, column : column + n] = batch.completions[member, :n]
      begins[number, row, column : column + n] = column
      places[number, g, :n] = row * W + column + np.arange(n)
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
  prompt_lengths = np.ones(P, np.int32)  # an empty prompt has one token, whatever it is
  prompt_lengths[: len(groups)] = batch.prompt_lengths[groups]
  piece = Batch(
    prompts,
    prompt_lengths,
    completions_of(batch.completions),
    completions_of(batch.completion_lengths),
    np.repeat(np.arange(P, dtype=np.int32), G),
    **{name: completions_of(getattr(batch, name)) for name in ROW_FIELDS},
  )
  return Microbatch(
    piece, packed.reshape(P * R, W), begins.reshape(P * R, W), places.reshape(P, G * T)
  ), rows
