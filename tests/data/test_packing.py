"""Packing: microbatches hold every completion of a batch once, in few shapes."""

import numpy as np
import pytest
from episodes import ITEM, make_episode, random_groups

from rft_jax.bucketing import coarse_bucket
from rft_jax.data import batching, packing
from rft_jax.types import Example


@pytest.mark.parametrize('tokens', [1, 300, 10**6])
@pytest.mark.parametrize('shards', [1, 4])
def test_microbatches_hold_every_row_once_in_few_regular_shapes(tokens, shards):
  batch = batching.from_groups(random_groups(), np.zeros((7, 3)))
  microbatches = packing.pack(batch, tokens=tokens, shards=shards)
  packed_rows = []
  for microbatch, rows in microbatches:
    padded = microbatch.batch
    P, B = len(padded.prompt_lengths), len(padded.completion_lengths)
    assert B == 3 * P and P % shards == 0 and len(microbatch.packed) % P == 0
    assert (padded.group == np.arange(B) // 3).all()
    for width in (padded.prompts.shape[1], microbatch.packed.shape[1]):
      assert width == coarse_bucket(width)
    for number, row in enumerate(rows):
      n = padded.completion_lengths[number]
      if row < 0:
        assert n == 0 and (padded.loss_mask[number] == 0).all()
        continue
      packed_rows.append(row)
      assert n == batch.completion_lengths[row]
      assert (padded.completions[number, :n] == batch.completions[row, :n]).all()
      m = batch.prompt_lengths[batch.group[row]]
      assert padded.prompt_lengths[padded.group[number]] == m
      assert (padded.prompts[padded.group[number], :m] == batch.prompts[batch.group[row], :m]).all()
  assert sorted(packed_rows) == list(range(21))
  scattered = packing.scatter(
    [microbatch.batch.completions for microbatch, _ in microbatches],
    microbatches,
    batch.completions.shape,
  )
  assert (scattered == batch.completions).all()


def test_packed_rows_hold_each_completion_contiguously():
  batch = batching.from_groups(random_groups(), np.zeros((7, 3)))
  for microbatch, _ in packing.pack(batch, tokens=400):
    padded = microbatch.batch
    P, (rows, W) = len(padded.prompt_lengths), microbatch.packed.shape
    uses = np.zeros((P, rows // P * W), int)
    packed = microbatch.packed.reshape(P, -1)
    starts = microbatch.completion_starts.reshape(P, -1)
    unpack_indices = microbatch.unpack_indices.reshape(len(padded.completions), -1)
    for b, n in enumerate(padded.completion_lengths):
      p, indices = padded.group[b], unpack_indices[b, :n]
      assert packed[p, indices].tolist() == padded.completions[b, :n].tolist()
      if n:
        assert (np.diff(indices) == 1).all() and indices[0] // W == indices[-1] // W
        assert (starts[p, indices] == indices[0] % W).all()
      uses[p, indices] += 1
    assert uses.max() == 1
    columns = np.tile(np.arange(W), uses.size // W).reshape(uses.shape)
    assert (starts[uses == 0] == columns[uses == 0]).all()  # padding attends to itself alone


def test_a_long_tail_of_lengths_is_packed_efficiently():
  rng = np.random.default_rng(3)
  lengths = np.clip(np.exp(rng.normal(np.log(40), 0.7, (8, 8))), 1, 128).astype(int)
  groups = [
    [make_episode(o, g, [5] * 64, [4] * n) for g, n in enumerate(row)]
    for o, row in enumerate(lengths)
  ]
  batch = batching.from_groups(groups, np.zeros((8, 8)))
  assert packing.token_efficiency(batch, packing.pack(batch, tokens=2048)) > 0.7


def test_varying_lengths_give_few_shapes():
  rng, shapes = np.random.default_rng(4), set()
  for _ in range(50):
    groups = [
      [make_episode(o, g, [5] * rng.integers(20, 30), [4] * rng.integers(15, 32)) for g in range(8)]
      for o in range(32)
    ]
    batch = batching.from_groups(groups, np.zeros((32, 8)))
    microbatches = packing.pack(batch, tokens=2048)
    assert packing.token_efficiency(batch, microbatches) > 0.6
    shapes |= {
      (microbatch.packed.shape, microbatch.batch.prompts.shape, microbatch.batch.loss_mask.shape)
      for microbatch, _ in microbatches
    }
  assert len(shapes) <= 8


def test_single_completions_are_packed_with_others_of_their_length():
  rng = np.random.default_rng(5)
  examples = [Example(ITEM, [5] * 10, [4] * n) for n in rng.integers(1, 500, 64)]
  batch = batching.from_examples(examples)
  assert packing.token_efficiency(batch, packing.pack(batch, tokens=2048)) > 0.6


def test_groups_of_unequal_size_are_filled_with_empty_completions():
  groups = random_groups()
  groups[2] = groups[2][:1]
  count = sum(map(len, groups))
  batch = batching.from_groups(groups, np.zeros(count))
  ((microbatch, rows),) = packing.pack(batch, tokens=10**6)
  assert sorted(row for row in rows if row >= 0) == list(range(count))
  assert microbatch.batch.completion_lengths[rows < 0].sum() == 0


@pytest.mark.parametrize('tokens', [1, 60, 200, 10**6])
def test_a_pair_is_never_split(tokens):
  rng = np.random.default_rng(0)
  random_ids = lambda most: rng.integers(0, 44, rng.integers(1, most + 1)).tolist()
  pairs = [
    Example(ITEM, random_ids(6), random_ids(20), rejected_ids=random_ids(60 if n % 3 else 9))
    for n in range(7)
  ]
  batch = batching.from_pairs(pairs)
  packed_rows = []
  for microbatch, rows in packing.pack(batch, tokens=tokens):
    chosen, rejected = rows.reshape(-1, 2).T
    present = chosen >= 0
    assert (chosen[~present] == -1).all() and (rejected[~present] == -1).all()
    assert (chosen[present] % 2 == 0).all() and (chosen[present] + 1 == rejected[present]).all()
    assert (microbatch.batch.grades.reshape(-1, 2)[present] == [1, 0]).all()
    packed_rows += chosen[present].tolist()
  assert sorted(packed_rows) == [2 * n for n in range(7)]
  without_grades = packing.pack(batch._replace(grades=None), tokens=1)
  assert any(
    len(np.unique(rows[rows >= 0] // 2)) * 2 > (rows >= 0).sum() for _, rows in without_grades
  )
