"""The Bradley-Terry loss against loops in float64, rankings, and the score of a completion."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies
from reference_policy import gradient as numeric_gradient
from reference_policy import log_sigma

from rft_jax.objectives.masked import means
from rft_jax.objectives.preference_pairs import over_prompts, pair, present
from rft_jax.objectives.reward_model_losses import bradley_terry, last_scores

# ------------------------------------------------------------------ comparisons


@pytest.mark.parametrize('centring', [0.0, 0.01])
def test_bradley_terry_golden_with_its_gradient(centring):
  scores = np.array([[1.0, -0.5], [0.2, 0.9], [-3.0, -3.0]])
  margin = np.array([0.0, 1.0, 0.5])

  def total(scores):
    value = 0.0
    for (w, r), m in zip(scores, margin):
      value += -log_sigma(w - r - m) + centring * (w + r) ** 2
    return value

  with jax.enable_x64(True):
    loss = lambda s: bradley_terry(
      s[:, 0], s[:, 1], margin=jnp.array(margin), centring=centring
    ).sum()
    value, gradient = jax.value_and_grad(loss)(jnp.array(scores))
  np.testing.assert_allclose(value, total(scores), rtol=1e-12)
  expected = numeric_gradient(total, scores, step=1e-5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_equal_scores_have_loss_log_2_and_gradients_of_a_half():
  loss = lambda w, r: bradley_terry(w, r).sum()
  value, gradient = jax.value_and_grad(loss, (0, 1))(jnp.ones(1), jnp.ones(1))
  np.testing.assert_allclose(value, math.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient, [[-0.5], [0.5]], rtol=1e-6)


def test_only_centring_depends_on_the_mean_of_all_scores():
  w, r = jnp.array([1.0]), jnp.array([0.25])
  np.testing.assert_allclose(bradley_terry(w + 8, r + 8), bradley_terry(w, r), rtol=1e-6)
  assert bradley_terry(w + 8, r + 8, centring=0.01) > bradley_terry(w, r, centring=0.01)


def ranking(scores, group, grades, P):
  """The loss over all pairs of a group whose grades differ."""
  same_group = group[:, None] == group[None, :]
  chosen, rejected = np.nonzero(same_group & (grades[:, None] > grades[None, :]))
  losses = bradley_terry(*pair(scores, chosen, rejected))
  is_present = present(jnp.ones((len(scores), 1)), chosen, rejected)
  return over_prompts(losses, is_present, np.asarray(group, np.int32)[chosen], P)


def test_ranking_is_a_mean_over_the_pairs_of_a_prompt():
  # prompt 0 ranks three answers, prompt 1 two, prompt 2 has one answer and prompt 3 a tie
  group, grades = np.array([0, 0, 0, 1, 1, 2, 3, 3]), np.array([3.0, 1, 2, 0, 1, 5, 1, 1])
  scores = np.random.default_rng(0).normal(size=8)

  def total(scores):
    value = 0.0
    for p in range(4):
      losses = [
        -log_sigma(scores[i] - scores[j])
        for i in range(8)
        for j in range(8)
        if group[i] == group[j] == p and grades[i] > grades[j]
      ]
      value += sum(losses) / len(losses) if losses else 0.0
    return value

  with jax.enable_x64(True):
    sums = ranking(jnp.array(scores), group, grades, 4)
    gradient = jax.grad(lambda s: ranking(s, group, grades, 4).total)(jnp.array(scores))
  np.testing.assert_allclose(sums, (total(scores), 2.0), rtol=1e-12)
  expected = numeric_gradient(total, scores, step=1e-5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.full
@settings(max_examples=8, deadline=None)
@given(strategies.integers(0, 10**6), strategies.sampled_from([1, 3]))
def test_order_and_cuts_at_prompts_change_no_ranking(seed, G):
  rng = np.random.default_rng(seed)
  group, grades, scores = np.repeat([0, 1], G), rng.integers(0, 3, 2 * G), rng.normal(size=2 * G)
  order = rng.permutation(2 * G)
  with jax.enable_x64(True):
    whole = ranking(jnp.array(scores), group, grades, 2)
    permuted = ranking(jnp.array(scores[order]), group[order], grades[order], 2)
    parts = [
      ranking(jnp.array(scores[group == p]), np.zeros(G, int), grades[group == p], 1)
      for p in (0, 1)
    ]
  np.testing.assert_allclose(permuted, whole, rtol=1e-9)
  np.testing.assert_allclose(np.add(*parts), whole, rtol=1e-9)


# ------------------------------------------------------------------ the score of a completion


def test_the_score_is_read_at_the_last_trainable_token():
  scores = jnp.array([[1.0, 2.0, 3.0], [4.0, jnp.nan, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])
  loss_mask = jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
  assert last_scores(scores, loss_mask).tolist() == [3.0, 4.0, 0.0]
  gradient = jax.grad(lambda s: last_scores(s, loss_mask).sum())(scores)
  assert gradient.tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_huge_scores_stay_finite(size):
  huge = jnp.array([size])
  gradients = jax.grad(lambda w, r: bradley_terry(w, r, centring=0.01).sum(), (0, 1))(huge, -huge)
  assert np.isfinite(bradley_terry(huge, -huge, centring=0.01)).all()
  assert np.isfinite(gradients).all()


def test_one_answer_per_prompt_gives_no_pairs():
  sums = ranking(jnp.ones(3), np.arange(3), np.array([1.0, 2.0, 3.0]), 3)
  assert sums == (0.0, 0.0) and means({'loss': sums})['loss'] == 0


def test_shapes_that_differ_raise():
  with pytest.raises(ValueError, match='shapes differ'):
    bradley_terry(jnp.zeros(2), jnp.zeros(3))
