"""Batching: examples and episodes padded to a Batch."""

import numpy as np
import pytest
from episodes import ITEM, random_groups

from rft_jax.data import batching
from rft_jax.types import Example


def test_examples_become_prompts_with_one_target_each():
  batch = batching.from_examples([Example(ITEM, [1, 2], [3]), Example(ITEM, [4], [5, 6, 7])])
  assert batch.prompts.tolist() == [[1, 2], [4, 0]]
  assert batch.completions.tolist() == [[3, 0, 0], [5, 6, 7]]
  assert batch.loss_mask.tolist() == [[1, 0, 0], [1, 1, 1]]
  assert batch.group.tolist() == [0, 1]


def test_the_sampled_tokens_are_the_trained_tokens():
  groups = random_groups()
  batch = batching.from_groups(groups, np.arange(21).reshape(7, 3))
  for row, episode in enumerate(episode for group in groups for episode in group):
    n = len(episode.sample.tokens)
    assert batch.completions[row, :n].tolist() == episode.sample.tokens  # the stop token too
    assert batch.loss_mask[row].tolist() == [1] * n + [0] * (batch.loss_mask.shape[1] - n)
    assert (batch.advantages[row, :n] == row).all() and (batch.advantages[row, n:] == 0).all()
    np.testing.assert_allclose(batch.sampler_logprobs[row, :n], episode.sample.logprobs)
    prompt = batch.prompts[batch.group[row]]
    assert prompt[: len(episode.prompt_ids)].tolist() == episode.prompt_ids


def test_a_batch_is_split_into_whole_groups():
  batch = batching.from_groups(random_groups(), np.zeros((7, 3)))
  parts = batching.split(batch, 3)
  assert [len(part.prompt_lengths) for part in parts] == [3, 2, 2]
  joined = np.concatenate([part.completions for part in parts])
  assert (joined == batch.completions).all()
  with pytest.raises(ValueError, match='updates_per_batch=8 from 7 groups'):
    batching.split(batch, 8)
