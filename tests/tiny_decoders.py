"""Decoders small enough for tests in which every leaf matters, and batches of ragged rows."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import models
from rft_jax.sharding import name_of

V = 61
LLAMA3 = models.Llama3Rope(
  factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
)
TINY = models.DecoderConfig(
  vocab_size=V,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  max_positions=128,
  tied_head=True,
)
RICH = dataclasses.replace(
  TINY,
  qkv_bias=True,
  output_bias=True,
  mlp_bias=True,
  qk_norm=True,
  tied_head=False,
  rope_scaling=LLAMA3,
)


def make(config, seed=0):
  """A model in which every leaf matters: no norm is 1, no bias 0, no attention nearly uniform."""

  def perturb(path, x):
    key = jax.random.fold_in(jax.random.key(seed + 1), zlib.crc32(name_of(path).encode()))
    noise = 0.2 * jax.random.normal(key, x.shape)
    return 6 * x if name_of(path).endswith(('kernel', 'embed')) else x + noise

  return jax.jit(lambda m: jax.tree_util.tree_map_with_path(perturb, m))(models.make(config, seed))


def with_config(model, config):
  """The weights of model under another config."""
  return jax.tree.unflatten(jax.tree.structure(models.abstract(config)), jax.tree.leaves(model))


def call(model, tokens, lengths):
  return np.array(jax.jit(lambda m, *xs: m(xs[0], lengths=xs[1]))(model, tokens, lengths))


def completion_hidden(model, *arrays):
  return np.array(jax.jit(lambda m, *xs: m.completion_hidden(*xs))(model, *arrays))


def count_traces(function, **options):
  """Returns the function compiled, and a function that returns how often it was traced so far.

  Not jit's own count: its table is one for the process, and when a long run of tests has filled it
  no new entry stays there.
  """
  traces = []

  def trace(*args):
    traces.append(None)
    return function(*args)

  return jax.jit(trace, **options), lambda: len(traces)


def ragged(P=3, G=3, S=7, T=6, seed=0):
  """Prompts of lengths 1 to S and completions of lengths 1 to T, with garbage on the padding."""
  rng = np.random.default_rng(seed)
  prompt_lengths = np.resize([S, 1, 4, 2], P).astype(np.int32)
  completion_lengths = np.resize([T, 1, 3, 5, 2], P * G).astype(np.int32)
  return (
    rng.integers(0, V, (P, S), np.int32),
    prompt_lengths,
    rng.integers(0, V, (P * G, T), np.int32),
    completion_lengths,
  )


def concatenated(prompts, prompt_lengths, completions, completion_lengths):
  """Each prompt with its completion as one right-padded row, and the columns of its targets."""
  B, T = completions.shape
  prompts = np.repeat(prompts, B // len(prompts), axis=0)
  n = np.repeat(prompt_lengths, B // len(prompt_lengths))
  rows = np.zeros((B, prompts.shape[1] + T), np.int32)
  for b in range(B):
    row = [*prompts[b, : n[b]], *completions[b, : completion_lengths[b]]]
    rows[b, : len(row)] = row
  return rows, n + completion_lengths, n[:, None] - 1 + np.arange(T)


def full_forward_states(model, batch):
  """The hidden states of completion_hidden, from separate rows of prompt and completion."""
  rows, lengths, columns = concatenated(*batch)
  return jnp.take_along_axis(model.hidden(rows, lengths=lengths), columns[..., None], axis=1)


def assert_close(a, b, tolerance=1e-5):
  """max |a - b| below tolerance x max |b|: the size of float32 rounding in sums of such terms."""
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def assert_trees_close(a, b, tolerance=1e-5):
  """max |a - b| below tolerance x max |b|, leaf by leaf, and no leaf of b is all zero."""
  flat_b = jax.tree_util.tree_flatten_with_path(b)[0]
  for x, (path, y) in zip(jax.tree.leaves(a), flat_b, strict=True):
    scale = np.abs(y).max()
    assert scale > 0, name_of(path)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale, err_msg=name_of(path))
