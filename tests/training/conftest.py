"""A tiny decoder, a random GRPO batch for it, and the same batch as rows of prompt + completion."""

import jax
import numpy as np
import pytest

from rft_jax import models
from rft_jax.objectives import masked
from rft_jax.types import Batch


@pytest.fixture(scope='module')
def model():
  config = models.DecoderConfig(
    vocab_size=48,
    dim=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    qkv_bias=True,
    tied_head=False,
    valid_vocab=44,
  )
  return jax.tree.map(lambda x: 3.0 * x, models.make(config, seed=1))


@pytest.fixture(scope='module')
def batch():
  """Returns 8 prompts with 3 completions each."""
  rng = np.random.default_rng(2)
  P, G, S, T = 8, 3, 11, 17
  B = P * G
  lengths = rng.integers(1, T + 1, B).astype(np.int32)
  loss_mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
  noise = lambda scale: (scale * rng.normal(size=(B, T)) * loss_mask).astype(np.float32)
  group = np.repeat(np.arange(P), G).astype(np.int32)
  return Batch(
    rng.integers(0, 44, (P, S)).astype(np.int32),
    rng.integers(1, S + 1, P).astype(np.int32),
    rng.integers(0, 44, (B, T)).astype(np.int32),
    lengths,
    group,
    loss_mask,
    advantages=noise(1.0),
    old_logprobs=noise(0.3) - 3.8,
    reference_logprobs=noise(0.3) - 3.8,
    sampler_logprobs=noise(0.1) - 3.8,
    group_tokens=masked.tokens_of_groups(loss_mask, group),
  )


@pytest.fixture(scope='module')
def separate_rows(batch):
  """Returns (ids i32[B, S + T] of prompt + completion, lengths, starts of the completions)."""
  starts = batch.prompt_lengths[batch.group]
  ids = np.zeros((len(starts), batch.prompts.shape[1] + batch.completions.shape[1]), np.int32)
  for row, (m, n) in enumerate(zip(starts, batch.completion_lengths)):
    ids[row, :m] = batch.prompts[batch.group[row], :m]
    ids[row, m : m + n] = batch.completions[row, :n]
  return ids, starts + batch.completion_lengths, starts
