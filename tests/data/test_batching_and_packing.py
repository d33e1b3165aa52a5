"""A batch is the same batch however it is cut, padded and ordered."""

import numpy as np
import pytest

from rft_jax.bucketing import bucket, few
from rft_jax.data import batching, packing
from rft_jax.types import Episode, Example, Grade, Item, Sample

ITEM = Item({'messages': []}, 'made:1')


def _episode(occurrence, index, prompt, tokens):
  sample = Sample(tokens, [-0.1 * (n + 1) for n in range(len(tokens))], None, 'stop')
  return Episode(ITEM, occurrence, index, prompt, sample, '', '', 0, Grade(1.0, {}, {}), 0)


@pytest.fixture
def groups():
  rng = np.random.default_rng(0)
  made = []
  for occurrence in range(7):
    prompt = rng.integers(3, 40, rng.integers(1, 30)).tolist()
    made.append(
      [
        _episode(occurrence, g, prompt, rng.integers(3, 40, rng.integers(1, 50)).tolist())
        for g in range(3)
      ]
    )
  return made


def test_examples_become_prompts_with_one_target_each():
  batch = batching.from_examples([Example(ITEM, [1, 2], [3]), Example(ITEM, [4], [5, 6, 7])])
  assert batch.prompts.tolist() == [[1, 2], [4, 0]]
  assert batch.completions.tolist() == [[3, 0, 0], [5, 6, 7]]
  assert batch.loss_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
  assert batch.group.tolist() == [0, 1]


def test_what_was_sampled_is_what_is_trained(groups):
  batch = batching.from_groups(groups, np.arange(21).reshape(7, 3))
  for row, episode in enumerate(episode for group in groups for episode in group):
    n = len(episode.sample.tokens)
    assert batch.completions[row, :n].tolist() == episode.sample.tokens  # the stop token too
    assert batch.loss_mask[row].tolist() == [1] * n + [0] * (batch.loss_mask.shape[1] - n)
    assert (batch.advantages[row, :n] == row).all() and (batch.advantages[row, n:] == 0).all()
    np.testing.assert_allclose(batch.sampler_logprobs[row, :n], episode.sample.logprobs)
    prompt = batch.prompts[batch.group[row]]
    assert prompt[: len(episode.prompt_ids)].tolist() == episode.prompt_ids


@pytest.mark.parametrize('tokens', [1, 300, 10**6])
@pytest.mark.parametrize('shards', [1, 4])
def test_microbatches_hold_every_row_once_in_few_regular_shapes(groups, tokens, shards):
  batch = batching.from_groups(groups, np.zeros((7, 3)))
  pieces = packing.plan(batch, tokens=tokens, shards=shards)
  seen = []
  for micro, rows in pieces:
    piece = micro.batch
    P, B = len(piece.prompt_lengths), len(piece.completion_lengths)
    assert B == 3 * P and P % shards == 0 and len(micro.packed) % P == 0
    assert (piece.group == np.arange(B) // 3).all()
    assert piece.prompts.shape[1] == few(piece.prompts.shape[1])
    assert micro.packed.shape[1] == few(micro.packed.shape[1])
    for number, row in enumerate(rows):
      n = piece.completion_lengths[number]
      if row < 0:
        assert n == 0 and (piece.loss_mask[number] == 0).all()
        continue
      seen.append(row)
      assert n == batch.completion_lengths[row]
      assert (piece.completions[number, :n] == batch.completions[row, :n]).all()
      m = batch.prompt_lengths[batch.group[row]]
      assert piece.prompt_lengths[piece.group[number]] == m
      assert (piece.prompts[piece.group[number], :m] == batch.prompts[batch.group[row], :m]).all()
  assert sorted(seen) == list(range(21))
  whole = packing.scatter(
    [piece.batch.completions for piece, _ in pieces], pieces, batch.completions.shape
  )
  assert (whole == batch.completions).all()


def test_packed_rows_hold_each_completion_in_one_piece(groups):
  batch = batching.from_groups(groups, np.zeros((7, 3)))
  for micro, _ in packing.plan(batch, tokens=400):
    piece = micro.batch
    P, (rows, W) = len(piece.prompt_lengths), micro.packed.shape
    taken = np.zeros((P, rows // P * W), int)
    packed, begins = (x.reshape(P, -1) for x in (micro.packed, micro.begins))
    places = micro.places.reshape(len(piece.completions), -1)
    for b, n in enumerate(piece.completion_lengths):
      p, where = piece.group[b], places[b, :n]
      assert packed[p, where].tolist() == piece.completions[b, :n].tolist()
      if n:
        assert (np.diff(where) == 1).all() and where[0] // W == where[-1] // W
        assert (begins[p, where] == where[0] % W).all()
      taken[p, where] += 1
    assert taken.max() == 1
    assert (
      begins[taken == 0] == np.tile(np.arange(W), taken.size // W).reshape(taken.shape)[taken == 0]
    ).all()


def test_long_tails_are_packed_well():
  rng = np.random.default_rng(3)
  lengths = np.clip(np.exp(rng.normal(np.log(40), 0.7, (8, 8))), 1, 128).astype(int)
  groups = [
    [_episode(o, g, [5] * 64, [4] * n) for g, n in enumerate(row)] for o, row in enumerate(lengths)
  ]
  batch = batching.from_groups(groups, np.zeros((8, 8)))
  assert packing.token_efficiency(batch, packing.plan(batch, tokens=2048)) > 0.7


def test_varying_lengths_give_few_shapes():
  rng, shapes = np.random.default_rng(4), set()
  for _ in range(50):
    groups = [
      [_episode(o, g, [5] * rng.integers(20, 30), [4] * rng.integers(15, 32)) for g in range(8)]
      for o in range(32)
    ]
    batch = batching.from_groups(groups, np.zeros((32, 8)))
    pieces = packing.plan(batch, tokens=2048)
    assert packing.token_efficiency(batch, pieces) > 0.6
    shapes |= {
      (micro.packed.shape, micro.batch.prompts.shape, micro.batch.loss_mask.shape)
      for micro, _ in pieces
    }
  assert len(shapes) <= 8


def test_single_completions_stand_with_others_of_their_length():
  rng = np.random.default_rng(5)
  examples = [Example(ITEM, [5] * 10, [4] * n) for n in rng.integers(1, 500, 64)]
  batch = batching.from_examples(examples)
  assert packing.token_efficiency(batch, packing.plan(batch, tokens=2048)) > 0.6


def test_groups_of_unequal_size_are_filled_with_empty_completions(groups):
  groups[2] = groups[2][:1]
  rows = sum(map(len, groups))
  batch = batching.from_groups(groups, np.zeros(rows))
  ((piece, numbers),) = packing.plan(batch, tokens=10**6)
  assert sorted(n for n in numbers if n >= 0) == list(range(rows))
  assert piece.batch.completion_lengths[numbers < 0].sum() == 0


def test_parts_of_a_batch_are_whole_groups(groups):
  batch = batching.from_groups(groups, np.zeros((7, 3)))
  parts = batching.split(batch, 3)
  assert [len(part.prompt_lengths) for part in parts] == [3, 2, 2]
  joined = np.concatenate([part.completions for part in parts])
  assert (joined == batch.completions).all()
  with pytest.raises(ValueError, match='updates_per_batch=8 from 7 groups'):
    batching.split(batch, 8)


def test_buckets_hold_their_length_with_little_padding():
  for length in range(1, 5000):
    size = bucket(length)
    assert length <= size and (size - length < 8 or size <= 1.25 * length)
  assert len({bucket(length) for length in range(1, 8193)}) == 36
