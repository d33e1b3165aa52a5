"""Helpers for tests of Hugging Face directories: running a Decoder, comparing, tokenizers."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from paths import ROOT

RECORDED = ROOT / 'tests' / 'recorded'


def record_oracles():
  """Returns the module scripts/record_oracles.py, which writes the tiny checkpoints."""
  if str(ROOT / 'scripts') not in sys.path:
    sys.path.append(str(ROOT / 'scripts'))
  import record_oracles as module

  return module


def padded(rows):
  """Returns (i32[B, T] right-padded with 0, i32[B] lengths) of lists of ids."""
  lengths = np.array([len(row) for row in rows], np.int32)
  tokens = np.zeros((len(rows), lengths.max()), np.int32)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
  return tokens, lengths


def logits_of(model, rows):
  """Returns the logits of each row by itself, f32[length, V], from one right-padded batch."""
  tokens, lengths = padded(rows)
  logits = np.asarray(jax.jit(lambda m, t, n: m(t, lengths=n))(model, tokens, lengths))
  return [row[:length] for row, length in zip(logits, lengths)]


def logprobs_of(logits, ids):
  """Returns f64[length - 1] nats: log p(ids[t + 1] | ids[:t + 1])."""
  logits = logits.astype(np.float64)
  top = logits.max(-1)
  normalizer = top + np.log(np.exp(logits - top[:, None]).sum(-1))
  return logits[np.arange(len(ids) - 1), ids[1:]] - normalizer[:-1]


def greedy(model, rows, new_tokens, forbidden=()):
  """Returns i32[B, new_tokens]: the most probable continuation, from a full pass for each token."""
  tokens, lengths = padded(rows)
  tokens = np.pad(tokens, [(0, 0), (0, new_tokens)])
  index, forbidden = np.arange(len(rows)), np.array(forbidden, np.int32)

  @jax.jit
  def next_token(model, tokens, lengths):
    logits = model(tokens, lengths=lengths)[index, lengths - 1]
    return jnp.argmax(logits.at[:, forbidden].set(-jnp.inf), -1)

  for t in range(new_tokens):
    tokens[index, lengths + t] = next_token(model, tokens, lengths + t)
  return np.stack([row[n : n + new_tokens] for row, n in zip(tokens, lengths)])


def write_tokenizer(directory, size):
  """Writes a tokenizer.json with that many ids, one of them added, and returns the tokenizer."""
  words = {f'w{i}': i for i in range(size - 1)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))
  tokenizer.add_special_tokens(['<end>'])  # has the id size - 1
  tokenizer.save(str(directory / 'tokenizer.json'))
  return tokenizer


def assert_same_weights(model, other):
  """Bit for bit, and float32."""
  assert jax.tree.structure(model) == jax.tree.structure(other)
  for x, y in zip(jax.tree.leaves(model), jax.tree.leaves(other)):
    assert x.dtype == y.dtype == np.float32
    np.testing.assert_array_equal(x, y)
