"""Scoring: log-probs of batches and of single sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rft_jax
from rft_jax import sharding
from rft_jax.training import scoring
from rft_jax.training.update import UpdateConfig


def test_scores_of_a_batch_are_those_of_single_sequences(model, batch, separate_rows):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  logprobs = scoring.score_batch(
    model, batch, UpdateConfig(microbatch_tokens=200), temperature=jnp.float32(0.8), mesh=mesh
  ).logprobs
  ids, lengths, starts = separate_rows
  expected = np.asarray(rft_jax.score(model, ids, lengths, 0.8))
  for row, (start, n) in enumerate(zip(starts, batch.completion_lengths)):
    np.testing.assert_allclose(
      logprobs[row, :n], expected[row, start - 1 : start - 1 + n], atol=1e-5
    )
    assert (logprobs[row, n:] == 0).all()


def test_score_refuses_lengths_and_ids_out_of_range(model):
  with pytest.raises(ValueError, match='lengths 0..2'):
    rft_jax.score(model, [[1, 2], [3, 4]], [0, 2])
  with pytest.raises(ValueError, match='ids 1..99'):
    rft_jax.score(model, [[1, 99]], [2])
