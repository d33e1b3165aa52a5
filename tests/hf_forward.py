"""What the tests of Hugging Face directories share: running a Decoder, comparing, tokenizers."""
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'
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
    row[:len(ids)] = ids
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
  """Returns i32[B, new_tokens]: prefill, then one token at a time against the cache."""
  tokens, lengths = padded(rows)
  forbidden = np.array(forbidden, np.int32)

  @functools.partial(jax.jit, static_argnums=3)
  def run(model, tokens, lengths, new_tokens):
    prefix = model.prefill(tokens, lengths)
    last = tokens[jnp.arange(len(tokens)), lengths - 1]

    def step(carry, t):
      token, cache = carry
      hidden, cache = model.decode(token, t, prefix, lengths, cache)
      logits = model.logits(hidden).at[:, forbidden].set(-jnp.inf)
      token = jnp.argmax(logits, -1).astype(jnp.int32)
      return (token, cache), token

    cache = model.empty_cache(len(tokens), new_tokens)
    return jax.lax.scan(step, (last, cache), jnp.arange(new_tokens))[1].T

  return np.asarray(run(model, tokens, lengths, new_tokens))


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
  for one, two in zip(jax.tree.leaves(model), jax.tree.leaves(other)):
    assert one.dtype == two.dtype == np.float32
    np.testing.assert_array_equal(one, two)
