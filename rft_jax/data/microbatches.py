"""From a Batch to microbatches of few shapes: completions packed behind their prompts.

A row of the device's arrays holds several completions of one prompt, one behind the other, each of
which sees the prompt and itself alone. So long and short completions of a group share rows, and
little is computed that nobody asked for.
"""
from typing import NamedTuple

import numpy as np

from rft_jax.data.packing import ROW_FIELDS
from rft_jax.shapes import bucket, few, power_of_two
from rft_jax.types import Array, Batch

# A row twice as wide costs more than two rows, as attention grows with its square: by this share
# of everything else for each column. About right for models of a few million parameters; larger
# ones would bear wider rows.
COLUMN_COST = 1 / 2000


class Microbatch(NamedTuple):
  """Some groups of a Batch as the device reads them.

  `batch` holds P prompts with G completions each, in prompt order; missing ones are empty, with
  weights of 0. The completions' tokens are read from R packed rows of W columns for each prompt.
  """
  batch: Batch
  packed: Array  # i32[P * R, W], the rows of a prompt next to each other
  begins: Array  # i32[P * R, W], where the completion of each token begins
  places: Array  # i32[P, G * T], where each token of the batch stands in its prompt's R * W

  @property
  def size(self) -> int:
    """Returns how many positions are computed."""
    return self.batch.prompts.size + self.packed.size


def plan(batch: Batch, *, tokens: int, shards: int = 1) -> list[tuple[Microbatch, np.ndarray]]:
  """Cuts a Batch into microbatches of at most about `tokens` positions, of few shapes.

  Groups stay whole and are taken in the order of their tokens, so that like ones stand together.
  P is `shards` times a power of two, R and W come from short lists.

  Returns:
    (microbatch, rows) pairs; rows i32[B] says which row of the batch each row of the microbatch
    is, -1 for padding. See scatter().
  """
  P = len(batch.prompt_lengths)
  members = [np.flatnonzero(batch.group == group) for group in range(P)]
  lengths = [batch.completion_lengths[rows] for rows in members]
  G, T = max(map(len, members)), power_of_two(max(8, int(batch.completion_lengths.max())))
  order = sorted(range(P), key=lambda group: (-lengths[group].sum(), -lengths[group].max()))
  pieces, start = [], 0
  while start < P:
    left = order[start:]
    S = bucket(int(batch.prompt_lengths[left].max()))
    R, W = _shape([lengths[group] for group in left[:1]])
    count = shards * _count(max(tokens // (S + R * W) // shards, 1), -(-len(left) // shards))
    chosen = left[:count]
    R, W = _shape([lengths[group] for group in chosen])
    pieces.append(_microbatch(batch, chosen, members, (count, G, S, T, R, W)))
    start += count
  return pieces


def scatter(parts, pieces, shape) -> np.ndarray:
  """Puts per-token arrays [B', T'] of the pieces back into one array of the batch's shape."""
  whole = np.zeros(shape, np.float32)
  for part, (_, rows) in zip(parts, pieces):
    real = rows >= 0
    columns = min(shape[1], part.shape[1])
    whole[rows[real], :columns] = np.asarray(part)[real, :columns]
  return whole


def token_efficiency(pieces) -> float:
  """Returns the share of computed positions that hold a real token."""
  real = sum(int(piece.batch.prompt_lengths[piece.batch.prompt_lengths > 1].sum() +
                 piece.batch.completion_lengths.sum()) for piece, _ in pieces)
  return real / sum(piece.size for piece, _ in pieces)


def _count(fits: int, left: int) -> int:
  """Returns a power of two, at most `fits`: how many groups to take of those that are left."""
  whole = power_of_two(left)
  if whole > fits or left < 0.75 * whole:
    return 1 << (min(fits, left).bit_length() - 1)
  return whole


def _shape(lengths) -> tuple[int, int]:
  """Returns the (R, W) that hold every group's completions at the least cost."""
  longest = few(max(int(group.max()) for group in lengths))
  shapes = []
  for W in sorted({longest, few(longest + 1), few(few(longest + 1) + 1)}):
    R = few(max(max(row for row, _ in _first_fit(group, W)) + 1 for group in lengths))
    shapes.append((R * W * (1 + W * COLUMN_COST), R, W))
  return min(shapes)[1:]


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


def _microbatch(batch, chosen, members, shape):
  P, G, S, T, R, W = shape
  rows = np.full((P, G), -1)
  packed = np.zeros((P, R, W), np.int32)
  begins = np.broadcast_to(np.arange(W, dtype=np.int32), (P, R, W)).copy()  # padding sees itself
  places = np.zeros((P, G, T), np.int32)
  for number, group in enumerate(chosen):
    rows[number, :len(members[group])] = members[group]
    lengths = batch.completion_lengths[members[group]]
    for g, (row, column) in enumerate(_first_fit(lengths, W)):
      n = lengths[g]
      packed[number, row, column:column + n] = batch.completions[members[group][g], :n]
      begins[number, row, column:column + n] = column
      places[number, g, :n] = row * W + column + np.arange(n)
  rows = rows.reshape(-1)

  def completions_of(array):
    if array is None:
      return None
    out = np.zeros((P * G,) + ((T,) if array.ndim == 2 else ()), array.dtype)
    if array.ndim == 2:
      out[rows >= 0, :array.shape[1]] = array[rows[rows >= 0], :T]
    else:
      out[rows >= 0] = array[rows[rows >= 0]]
    return out

  prompts = np.zeros((P, S), np.int32)
  prompts[:len(chosen), :batch.prompts.shape[1]] = batch.prompts[chosen, :S]
  prompt_lengths = np.ones(P, np.int32)  # an empty prompt has one token, whatever it is
  prompt_lengths[:len(chosen)] = batch.prompt_lengths[chosen]
  piece = Batch(prompts, prompt_lengths, completions_of(batch.completions),
                completions_of(batch.completion_lengths),
                np.repeat(np.arange(P, dtype=np.int32), G),
                **{name: completions_of(getattr(batch, name)) for name in ROW_FIELDS})
  return Microbatch(piece, packed.reshape(P * R, W), begins.reshape(P * R, W),
                    places.reshape(P, G * T)), rows
