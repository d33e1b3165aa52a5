"""Masked sums and aggregations against loops in float64, and of a step in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import masked

GROUP = np.array([0, 0, 1, 1, 2, 2])


def example(seed, T=6):
  """Values and loss mask f32[6, T]; one row is empty, one has a tool token in between."""
  rng = np.random.default_rng(seed)
  lengths = np.array([5, 1, 0, 6, 3, 6])
  values = -rng.exponential(1.0, (6, T)) - 0.02
  mask = np.arange(T) < lengths[:, None]
  mask[3, 2] = False
  return np.float32(values), np.float32(mask)


@pytest.mark.parametrize('name', masked.AGGREGATIONS)
def test_aggregations_and_their_gradients(name):
  values, mask = example(9)
  sizes = masked.Sizes(length=11, group_tokens=masked.tokens_of_groups(mask, GROUP))
  mean = lambda x: masked.means({'a': masked.AGGREGATIONS[name](x, mask, sizes)})['a']
  function = lambda x: reference.aggregate(name, x, mask, length=11, group=list(GROUP))
  np.testing.assert_allclose(mean(values), function(np.float64(values)), rtol=2e-6)
  np.testing.assert_allclose(
    jax.grad(mean)(values), reference.gradient(function, values), rtol=1e-5, atol=1e-8
  )


def test_aggregations_by_hand():
  values = jnp.array([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
  mask = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
  assert masked.over_tokens(values, mask) == (8.0, 3.0)
  assert masked.over_sequences(values, mask) == (1.5 + 5.0, 2.0)
  assert masked.over_sequences_sum(values, mask) == (8.0, 2.0)
  assert masked.over_constant(values, mask, length=10) == (8.0, 20.0)
  group_tokens = masked.tokens_of_groups(mask, np.array([0, 0, 1]))
  assert group_tokens.tolist() == [3, 3, 0]
  sums = masked.over_prompts(values, mask, group_tokens)
  np.testing.assert_allclose(sums, (8 / 3, 1.0), rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(tuple(masked.AGGREGATIONS)),
  st.integers(0, 1000),
  st.lists(st.integers(0, 2), min_size=6, max_size=6),
  st.permutations(range(6)),
  st.sampled_from((0, 3)),
)
def test_a_step_in_any_parts_has_the_same_sums(name, seed, part, order, extra):
  values, mask = example(seed)
  group_tokens = masked.tokens_of_groups(mask, GROUP)
  aggregate = lambda rows, pad: masked.AGGREGATIONS[name](
    np.pad(values[rows], ((0, 0), (0, pad)), constant_values=np.nan),
    np.pad(mask[rows], ((0, 0), (0, pad))),
    masked.Sizes(11, group_tokens[rows]),
  )
  whole = aggregate(np.arange(6), 0)
  part, order = np.array(part), np.array(order)
  pieces = [aggregate(order[part == p], extra) for p in range(3) if (part == p).any()]
  for index in (0, 1):
    np.testing.assert_allclose(
      sum(piece[index] for piece in pieces), whole[index], rtol=5e-6, atol=1e-6
    )


def test_equal_lengths_make_the_means_over_tokens_sequences_and_prompts_equal():
  values = np.float32(np.random.default_rng(0).normal(size=(6, 4)))
  mask = np.ones_like(values)
  sizes = masked.Sizes(length=4, group_tokens=masked.tokens_of_groups(mask, GROUP))
  means = masked.means(
    {
      name: masked.AGGREGATIONS[name](values, mask, sizes)
      for name in ('token_mean', 'sequence_mean', 'constant', 'prompt_mean')
    }
  )
  np.testing.assert_allclose(list(means.values()), values.mean(), rtol=1e-5)


@pytest.mark.parametrize('name', masked.AGGREGATIONS)
def test_without_tokens_sums_and_gradients_are_zero(name):
  sizes = masked.Sizes(length=4, group_tokens=np.zeros(2, np.float32))
  values, mask = np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), np.float32)
  function = lambda x: masked.AGGREGATIONS[name](x, mask, sizes)
  assert tuple(map(float, function(values))) == (0, 0)
  assert not np.asarray(jax.grad(lambda x: function(x).total)(values)).any()


@pytest.mark.parametrize('name, missing', [('constant', 'length'), ('prompt_mean', 'group_tokens')])
def test_an_aggregation_names_the_missing_size(name, missing):
  with pytest.raises(ValueError, match=missing):
    masked.AGGREGATIONS[name](jnp.ones((1, 2)), jnp.ones((1, 2)), masked.Sizes())


def test_masked_positions_may_be_nan():
  values, mask = jnp.array([[1.0, jnp.nan]]), jnp.array([[1.0, 0.0]])
  for aggregate in (masked.over_tokens, masked.over_sequences):
    assert float(aggregate(values, mask).total) == 1.0


def test_sums_over_microbatches_are_divided_once_and_maxima_compared():
  parts = [
    {'a': masked.Weighted(2.0, 1.0), 'b': masked.Maximum(3.0)},
    {'a': masked.Weighted(1.0, 3.0), 'b': masked.Maximum(5.0)},
    {'a': masked.Weighted(0.0, 0.0), 'b': masked.Maximum(4.0)},
  ]
  # a: not the mean of means, 1.1667
  assert masked.means(masked.add_sums(parts)) == {'a': 0.75, 'b': 5.0}
