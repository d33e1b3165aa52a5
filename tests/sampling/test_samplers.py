"""Samplers: frequencies, filters and log-probs of single tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.sampling import samplers
from rft_jax.sampling.samplers import SamplingConfig


def _sample(logits, config, keys=None):
  keys = jax.random.split(jax.random.key(0), len(logits)) if keys is None else keys
  return samplers.sample_tokens(
    jnp.asarray(logits),
    keys,
    samplers.sampler_params(config),
    valid_vocab=logits.shape[-1],
    filtered=config.filtered,
  )


def test_frequencies_match_the_tempered_distribution():
  logits = np.tile(np.array([0.0, 1.0, -1.0, 2.0], np.float32), (20000, 1))
  sampled = _sample(logits, SamplingConfig(temperature=0.8))
  expected = np.exp(logits[0] / 0.8) / np.exp(logits[0] / 0.8).sum()
  frequencies = np.bincount(sampled.tokens, minlength=4) / 20000
  np.testing.assert_allclose(frequencies, expected, atol=4 * np.sqrt(0.25 / 20000))


@pytest.mark.full
def test_frequencies_over_a_large_vocabulary_and_no_token_without_mass():
  logits = np.random.default_rng(2).normal(size=1000).astype(np.float32)
  logits[::7] = samplers.EXCLUDED
  logits[64:128] = samplers.EXCLUDED  # more than one whole block of the search
  sampled = _sample(np.tile(logits, (40_000, 1)), SamplingConfig())
  counts = np.bincount(sampled.tokens, minlength=1000)
  assert (counts[logits == samplers.EXCLUDED] == 0).all()
  expected = 40_000 * np.asarray(jax.nn.softmax(logits))
  likely = expected > 5
  statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
  degrees = likely.sum() - 1
  assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


def test_greedy_is_argmax_with_the_logprobs_of_temperature_one():
  logits = np.random.default_rng(0).normal(size=(50, 9)).astype(np.float32)
  sampled = _sample(logits, SamplingConfig(temperature=0.0))
  assert (sampled.tokens == logits.argmax(1)).all()
  np.testing.assert_allclose(sampled.logprobs, jax.nn.log_softmax(logits).max(1), atol=1e-6)


def _reference_filter(logits, k, p, min_p):
  """One row at a time: sort, cut at k, cut where the mass before reaches p, cut at min_p."""
  token_sets = []
  for row in logits:
    order = np.argsort(-row, kind='stable')
    order = order[:k] if k else order
    probabilities = np.exp(row[order] - row[order].max())
    probabilities /= probabilities.sum()
    nucleus = [token for i, token in enumerate(order) if probabilities[:i].sum() < p]
    token_sets.append(
      {token for token in nucleus if row[token] >= row.max() + np.log(min_p or 1e-30)}
    )
  return token_sets


@pytest.mark.parametrize(
  'k, p, min_p',
  [
    (3, 1.0, 0.0),
    (0, 0.7, 0.0),
    (0, 1.0, 0.2),
    (5, 0.8, 0.1),
    (1, 1.0, 0.0),
    (0, 0.01, 0.0),
    (40, 1.0, 0.0),
    (0, 0.999, 0.0),
  ],
)
def test_filters_keep_the_tokens_they_should(k, p, min_p):
  logits = np.random.default_rng(1).normal(size=(40, 11)).astype(np.float32)
  config = SamplingConfig(top_k=k, top_p=p, min_p=min_p)
  filtered = samplers.filter_logits(jnp.asarray(logits), samplers.sampler_params(config))
  token_sets = [set(np.flatnonzero(row > samplers.EXCLUDED / 2)) for row in np.asarray(filtered)]
  assert token_sets == _reference_filter(logits, k, p, min_p)


@pytest.mark.full
def test_filtered_logprobs_are_normalised_over_the_remaining_tokens():
  logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32)).repeat(100, 0)
  sampled = _sample(logits, SamplingConfig(top_k=2))
  assert set(np.asarray(sampled.tokens)) == {0, 1}
  expected = np.where(sampled.tokens == 0, np.log(0.5), np.log(0.3))
  np.testing.assert_allclose(sampled.logprobs, expected, atol=1e-6)
  np.testing.assert_allclose(sampled.filtered_logprobs, expected - np.log(0.8), atol=1e-6)
