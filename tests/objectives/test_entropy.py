"""The entropy bonus with a target, and token masks by entropy and covariance, against loops."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import entropy
from rft_jax.objectives.entropy import EntropyConfig, exploration
from rft_jax.types import Batch


def test_the_coefficient_follows_the_target_and_is_never_negative():
  steps = [(0.0, 0.1), (0.005, 0.15), (0.01, 0.3), (0.005, 0.2), (0.0, 0.9)]
  coefficients = [entropy.adapt_entropy_coefficient(c, h) for c, h in steps]
  np.testing.assert_allclose(
    coefficients, [(0.005, 0.0), (0.01, 0.005), (0.005, 0.0), (0.005, 0.005), (0.0, 0.0)]
  )


def test_the_threshold_selects_the_top_share_of_entropies():
  values = np.float32([[5, 1, 9, np.nan], [2, 3, 4, 8]])
  mask = np.float32([[1, 1, 1, 0], [1, 1, 1, 1]])
  for share, expected in (
    (0.2, {8, 9}),
    (1 / 7, {9}),
    (1e-6, {9}),
    (3 / 7, {5, 8, 9}),
    (1.0, {1, 2, 3, 4, 5, 8, 9}),
  ):
    threshold = entropy.entropy_threshold(values, mask, share)
    assert set(values[(mask > 0) & (values >= threshold)].tolist()) == expected


def test_without_tokens_nothing_is_masked_and_a_share_out_of_range_raises():
  assert entropy.entropy_threshold(np.ones((1, 2)), np.zeros((1, 2)), 0.2) == -np.inf
  for share in (0.0, 1.5):
    with pytest.raises(ValueError, match=f'share={share}'):
      entropy.entropy_threshold(np.ones((1, 2)), np.ones((1, 2)), share)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1), st.permutations(range(5)))
def test_the_selected_share_does_not_depend_on_order_or_cut(seed, share, order):
  rng = np.random.default_rng(seed)
  values = np.float32(rng.exponential(size=(5, 6)))
  mask = np.float32(np.arange(6) < rng.integers(0, 7, 5)[:, None])
  threshold = entropy.entropy_threshold(values, mask, share)
  order = np.array(order)
  assert entropy.entropy_threshold(values[order], mask[order], share) == threshold
  selected = sum(((mask[b] > 0) & (values[b] >= threshold)).sum() for b in range(5))
  assert selected == math.ceil(share * mask.sum() - 1e-9)


# ------------------------------------------------------------------ covariance


def covariance_inputs():
  rng = np.random.default_rng(3)
  advantages, logprobs = (
    np.float32(rng.normal(size=(4, 50))),
    np.float32(-rng.exponential(1.5, (4, 50))),
  )
  mask = np.float32(np.arange(50) < np.array([50, 20, 0, 35])[:, None])
  return advantages, logprobs, mask


def test_covariances():
  advantages, logprobs, mask = covariance_inputs()
  covariance = entropy.covariances(np.where(mask > 0, advantages, np.nan), logprobs, mask)
  tokens = [(b, t) for b in range(4) for t in range(50) if mask[b, t]]
  mean_a = sum(float(advantages[i]) for i in tokens) / len(tokens)
  mean_p = sum(float(logprobs[i]) for i in tokens) / len(tokens)
  for i in tokens:
    np.testing.assert_allclose(
      covariance[i], (float(advantages[i]) - mean_a) * (float(logprobs[i]) - mean_p)
    )
  assert np.isnan(covariance[mask == 0]).all()
  np.testing.assert_allclose(
    np.nanmean(covariance), np.cov(advantages[mask > 0], logprobs[mask > 0], ddof=0)[0, 1]
  )


def test_clip_cov_drops_a_random_share_inside_the_band():
  covariance = entropy.covariances(*covariance_inputs())
  mask = entropy.clip_cov_mask(covariance, np.random.default_rng(0), share=0.05)
  dropped = covariance[mask == 0]
  assert len(dropped) == math.ceil(0.05 * 105) and ((dropped > 1) & (dropped < 5)).all()
  again = entropy.clip_cov_mask(covariance, np.random.default_rng(0), share=0.05)
  np.testing.assert_array_equal(mask, again)
  assert entropy.clip_cov_mask(covariance, np.random.default_rng(0), low=90, high=99).all()


def test_kl_cov_selects_the_largest_covariances():
  covariance = entropy.covariances(*covariance_inputs())
  mask = entropy.kl_cov_mask(covariance, share=0.1)
  expected = np.sort(covariance[np.isfinite(covariance)])[-11:]
  np.testing.assert_array_equal(np.sort(covariance[mask > 0]), expected)
  assert entropy.kl_cov_mask(covariance).sum() == 1


def test_without_tokens_the_covariance_masks_change_nothing():
  covariance = entropy.covariances(np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3)))
  assert not entropy.kl_cov_mask(covariance).any()
  assert entropy.clip_cov_mask(covariance, np.random.default_rng(0)).all()


def test_the_penalty_of_kl_cov():
  old, p = np.float32([[-1, -2, -3, np.nan]]), np.float32([[-1.5, -1, -3, np.nan]])
  mask, penalty_mask = np.float32([[1, 1, 1, 0]]), np.float32([[1, 0, 1, 1]])
  function = lambda x: entropy.kl_cov_penalty(x, old, mask, penalty_mask, coefficient=2.0)
  assert function(p).tolist() == [[1.0, 0.0, 0.0, 0.0]]
  assert jax.grad(lambda x: function(x).sum())(p).tolist() == [[-2.0, 0.0, 0.0, 0.0]]


# ------------------------------------------------------------------ exploration of a whole step


def step_inputs(B=40, T=50):
  """Returns (a batch with advantages, scores of the policy), NaN on padding."""
  rng = np.random.default_rng(0)
  loss_mask = np.float32(np.arange(T) < rng.integers(1, T + 1, B)[:, None])
  on_tokens = lambda x: np.where(loss_mask > 0, x, np.nan).astype(np.float32)
  batch = Batch(
    None,
    np.ones(B // 4),
    np.zeros((B, T), np.int32),
    loss_mask.sum(1),
    np.arange(B) // 4,
    loss_mask,
    advantages=on_tokens(rng.normal(size=(B, T))),
  )
  return batch, SimpleNamespace(
    logprobs=on_tokens(-rng.exponential(2, (B, T))), entropy=on_tokens(rng.exponential(1, (B, T)))
  )


def test_by_default_exploration_changes_nothing():
  batch, scores = step_inputs()
  config = EntropyConfig()
  assert not (config.bonus or config.needs_scores or config.leaves_out_tokens)
  unchanged, coefficient, metrics = exploration(batch, scores, config, 0.5, None)
  assert unchanged is batch and coefficient == 0.5 and metrics == {}


def test_the_adaptive_coefficient_is_carried_from_step_to_step():
  batch, scores = step_inputs()
  H = float(np.nanmean(scores.entropy.astype(np.float64)))
  coefficient, applied = 0.0, []
  for target in (H + 1, H + 1, H + 1, H - 0.1, H + 1):
    result, coefficient, metrics = exploration(
      batch, scores, EntropyConfig(target=target, target_step=0.01), coefficient, None
    )
    assert (result.entropy_coef == np.float32(metrics['entropy_coef'])).all()
    applied.append(metrics['entropy_coef'])
  np.testing.assert_allclose(applied, [0, 0.01, 0.02, 0, 0.02], atol=1e-12)


def test_top_share_keeps_the_policy_loss_on_the_tokens_of_highest_entropy():
  batch, scores = step_inputs()
  result, _, metrics = exploration(batch, scores, EntropyConfig(top_share=0.2), 0.0, None)
  tokens = batch.loss_mask > 0
  expected = np.sort(scores.entropy[tokens])[-int(np.ceil(0.2 * tokens.sum())) :]
  np.testing.assert_array_equal(np.sort(scores.entropy[result.token_loss_weights > 0]), expected)
  np.testing.assert_allclose(metrics['policy_loss_share'], len(expected) / tokens.sum(), rtol=1e-6)
  assert (result.loss_mask == batch.loss_mask).all()  # the denominators stay


def test_clip_cov_depends_on_seed_and_step_and_multiplies_existing_weights():
  batch, scores = step_inputs()
  half = 0.5 * batch.loss_mask
  config = EntropyConfig(covariance='clip_cov', clip_cov_share=0.02)
  draw = lambda step: (
    exploration(
      batch._replace(token_loss_weights=half), scores, config, 0.0, np.random.default_rng([7, step])
    )[0].token_loss_weights
  )
  covariance = entropy.covariances(batch.advantages, scores.logprobs, batch.loss_mask)
  dropped = (draw(3) == 0) & (batch.loss_mask > 0)
  assert dropped.sum() == np.ceil(0.02 * batch.loss_mask.sum())
  assert ((covariance[dropped] > 1) & (covariance[dropped] < 5)).all()
  assert (draw(3)[~dropped] == half[~dropped]).all()
  assert (draw(3) == draw(3)).all() and (draw(3) != draw(4)).any()


def test_kl_cov_masks_the_tokens_of_largest_covariance():
  batch, scores = step_inputs()
  result, _, metrics = exploration(
    batch, scores, EntropyConfig(covariance='kl_cov', kl_cov_share=0.01), 0.0, None
  )
  covariance = entropy.covariances(batch.advantages, scores.logprobs, batch.loss_mask)
  tokens, mask = batch.loss_mask > 0, result.kl_cov_mask
  assert mask.sum() == np.ceil(0.01 * tokens.sum()) and result.token_loss_weights is None
  assert covariance[mask > 0].min() >= covariance[tokens & (mask == 0)].max()
  np.testing.assert_allclose(metrics['entropy_covariance'], covariance[tokens].mean())


def test_exploration_of_a_step_without_tokens_changes_nothing():
  batch, scores = step_inputs()
  empty = batch._replace(loss_mask=0 * batch.loss_mask)
  config = EntropyConfig(target=0.3, top_share=0.2, covariance='clip_cov')
  assert exploration(empty, scores, config, 0.5, None) == (empty, 0.5, {})
