"""Sequence sums, pairs and the NLL of the chosen completions by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives.preference_pairs import chosen_nll, pair, sequence_sums


def test_chosen_nll_by_hand():
  logprobs = jnp.array([[-1.0, -2.0], [-5.0, jnp.nan], [-7.0, -7.0]])
  loss_mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
  assert chosen_nll(logprobs, loss_mask, jnp.array([0, 1, 0, -1])) == (8.0, 3.0)


def test_shapes_that_differ_raise():
  with pytest.raises(ValueError, match='shapes differ'):
    sequence_sums(jnp.zeros((5, 4)), jnp.ones((1, 4)))
  with pytest.raises(ValueError, match='shapes differ'):
    pair(jnp.zeros(5), np.array([0, 3, 0]), np.array([1]))
