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


# ------------------------------------------------------------------ the gradient of the entropy


def weighted_inputs(B=2, T=5, D=6, V=11):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(B, T, D)),
    2 * rng.normal(size=(D, V)),
    rng.integers(0, V - 2, (B, T)),
    rng.normal(size=(2, B, T)),
  )


def plain_weighted_sum(hidden, head, targets, weights, temperature, valid):
  """The weighted sum of log-probs and entropies, written plainly, in any precision."""
  table = jax.nn.log_softmax((hidden @ head)[..., :valid] / temperature)
  logprobs = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
  return (weights[0] * logprobs - weights[1] * (jnp.exp(table) * table).sum(-1)).sum()


@pytest.mark.parametrize('terms', [(0, 1), (1, 1)])  # a loss of entropy alone, and of both
@pytest.mark.parametrize('temperature', [1.0, 0.6])
@pytest.mark.parametrize('chunk_elements', [40, 2**22])
def test_the_gradient_of_the_entropy_is_that_of_float64(
  monkeypatch, chunk_elements, temperature, terms
):
  monkeypatch.setattr('rft_jax.objectives.logprobs.CHUNK_ELEMENTS', {'cpu': chunk_elements})
  hidden, head, targets, weights = weighted_inputs()
  weights, valid = weights * np.array(terms)[:, None, None], head.shape[1] - 2

  def weighted_sum(hidden, head):
    statistics = token_statistics(
      hidden, head, jnp.int32(targets), temperature=jnp.float32(temperature), valid_vocab=valid
    )
    columns = zip(terms, weights, (statistics.logprobs, statistics.entropy))
    return sum((factors * values).sum() for in_loss, factors, values in columns if in_loss)

  with jax.enable_x64(True):
    exact = jax.grad(plain_weighted_sum, (0, 1))(hidden, head, targets, weights, temperature, valid)
  gradients = jax.jit(jax.grad(weighted_sum, (0, 1)))(jnp.float32(hidden), jnp.float32(head))
  for gradient, expected in zip(gradients, exact):
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())
  assert not np.asarray(gradients[1])[:, valid:].any()  # ids outside the vocabulary


def test_the_entropy_of_a_deterministic_policy_has_a_finite_gradient():
  hidden, head = jnp.ones((1, 1, 1)), jnp.float32([[300.0, 0.0, -300.0]])
  gradient = jax.grad(
    lambda w: token_statistics(
      hidden, w, jnp.zeros((1, 1), jnp.int32), temperature=0.1, valid_vocab=2
    ).entropy.sum()
  )
  assert (np.asarray(gradient(head)) == 0).all()


def test_a_loss_without_entropy_does_not_compute_its_gradient():
  hidden, head, targets, _ = weighted_inputs()

  def flops(coefficient):
    def loss(hidden):
      statistics = token_statistics(
        hidden, jnp.float32(head), jnp.int32(targets), temperature=1.0, valid_vocab=11
      )
      value = statistics.logprobs.sum()
      if coefficient:
        value += coefficient * statistics.entropy.sum()
      return value, statistics.entropy.sum()  # as a metric, entropy is there in both

    return (
      jax.jit(jax.grad(loss, has_aux=True))
      .lower(jnp.float32(hidden))
      .compile()
      .cost_analysis()['flops']
    )

  logits = 10 * 11
  assert flops(0.1) >= flops(0.0) + 2 * logits
