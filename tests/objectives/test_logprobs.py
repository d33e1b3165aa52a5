"""Chunked log-probs and entropies, and their gradients, against the plain softmax."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives.logprobs import token_statistics


def example(B=3, T=7, D=8, V=13):
  keys = jax.random.split(jax.random.key(0), 3)
  return (
    jax.random.normal(keys[0], (B, T, D)),
    jax.random.normal(keys[1], (D, V)),
    jax.random.randint(keys[2], (B, T), 0, V - 2),
  )


@pytest.mark.parametrize('chunk_elements', [1, 100, 2**22])
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_chunked_logprobs_and_gradients_match_the_plain_softmax(
  monkeypatch, chunk_elements, temperature
):
  monkeypatch.setattr('rft_jax.objectives.logprobs.CHUNK_ELEMENTS', {'cpu': chunk_elements})
  hidden, head, targets = example()
  valid = head.shape[1] - 2

  def plain(hidden, head):
    table = jax.nn.log_softmax((hidden @ head / temperature)[..., :valid])
    return jnp.take_along_axis(table, targets[..., None], -1)[..., 0], table

  chunked = lambda h, w: token_statistics(h, w, targets, temperature=temperature, valid_vocab=valid)
  statistics, (expected, table) = chunked(hidden, head), plain(hidden, head)
  np.testing.assert_allclose(statistics.logprobs, expected, atol=1e-5)
  np.testing.assert_allclose(statistics.entropy, -(jnp.exp(table) * table).sum(-1), atol=1e-5)
  assert (statistics.greedy == (table.argmax(-1) == targets)).all()
  weights = jax.random.normal(jax.random.key(3), targets.shape)
  gradients = jax.grad(lambda h, w: (chunked(h, w).logprobs * weights).sum(), (0, 1))(hidden, head)
  plain_gradients = jax.grad(lambda h, w: (plain(h, w)[0] * weights).sum(), (0, 1))(hidden, head)
  for a, b in zip(gradients, plain_gradients):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_array_over_tokens_and_vocabulary_is_allocated(monkeypatch):
  monkeypatch.setattr('rft_jax.objectives.logprobs.CHUNK_ELEMENTS', {'cpu': 2 * 64})
  hidden, head, targets = example(B=2, T=40, V=64)
  program = (
    jax.jit(
      jax.grad(
        lambda h: token_statistics(h, head, targets, temperature=1.0, valid_vocab=64).logprobs.sum()
      )
    )
    .lower(hidden)
    .as_text()
  )
  shapes = [
    tuple(map(int, shape.split('x')[:-1])) for shape in re.findall(r'tensor<((?:\d+x)+)', program)
  ]
  over_vocabulary = {shape for shape in shapes if shape[-1] == 64}
  assert (2, 64) in over_vocabulary
  assert max(map(math.prod, over_vocabulary)) == head.size
