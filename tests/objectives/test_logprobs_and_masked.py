"""Objectives against numbers worked out by hand, NumPy recursions, and exact small cases."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives import kl, masked
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.importance_ratios import LEVELS
from rft_jax.objectives.logprobs import token_statistics
from rft_jax.objectives.off_policy import truncated_importance
from rft_jax.objectives.policy_loss_config import PolicyLossConfig
from rft_jax.objectives.policy_losses import clip

# ------------------------------------------------------------------ advantages


@pytest.mark.parametrize('ddof, expected', [(1, 0.70710678), (0, 1.0)])
def test_a_group_of_two_is_plus_and_minus_a_known_number(ddof, expected):
  config = AdvantageConfig(ddof=ddof, epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages([[3.0, 1.0]], config), [[expected, -expected]], rtol=1e-6
  )


def test_group_scale_by_hand():
  # rewards 0 0 0 1: mean 1/4, variance (3/16 + 9/16) / 3 = 1/4, std 1/2
  found = group_advantages([[0, 0, 0, 1]], AdvantageConfig(epsilon=1e-4))
  np.testing.assert_allclose(found, np.array([[-0.25, -0.25, -0.25, 0.75]]) / 0.5001, rtol=1e-6)


def test_batch_scale_divides_every_group_by_one_std():
  rewards = np.array([[0.0, 1.0], [0.0, 10.0]])
  found = group_advantages(rewards, AdvantageConfig(scale='batch', epsilon=0.0))
  np.testing.assert_allclose(found, [[-0.5, 0.5], [-5, 5]] / np.std(rewards, ddof=1), rtol=1e-6)


def test_scale_none_only_centres():
  np.testing.assert_allclose(
    group_advantages([[1.0, 4.0]], AdvantageConfig(scale='none')), [[-1.5, 1.5]]
  )


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
@pytest.mark.parametrize('G', [1, 2, 8])
def test_an_equal_group_has_advantage_exactly_zero(scale, G):
  # 0.1 + 0.2 is not a number that centring in floating point surely removes
  rewards = np.full((3, G), 0.1 + 0.2)
  assert (group_advantages(rewards, AdvantageConfig(scale=scale)) == 0).all()


@pytest.mark.parametrize('scale', ['group', 'batch', 'none'])
def test_group_advantages_sum_to_zero(scale):
  rewards = np.random.default_rng(0).normal(size=(5, 8))
  found = group_advantages(rewards, AdvantageConfig(scale=scale))
  np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)


def test_rescaling_rewards_leaves_group_scale_unchanged_and_none_linear():
  rewards = np.random.default_rng(1).normal(size=(4, 6))
  same = AdvantageConfig(epsilon=0.0)
  np.testing.assert_allclose(
    group_advantages(7 * rewards, same), group_advantages(rewards, same), rtol=1e-5
  )
  none = AdvantageConfig(scale='none')
  np.testing.assert_allclose(
    group_advantages(7 * rewards, none), 7 * group_advantages(rewards, none), rtol=1e-5
  )


# ------------------------------------------------------------------ policy loss


def _clip(logprobs, old_logprobs, advantages, *, clip_low=0.2, clip_high=0.28):
  """The loss, and where its lower and its upper bound bind; every token counts."""
  weights = jnp.ones_like(advantages)
  ratio = LEVELS['token'](logprobs, old_logprobs, weights)
  loss, bounds = clip(
    logprobs,
    old_logprobs,
    ratio,
    advantages,
    weights,
    config=PolicyLossConfig(clip_low=clip_low, clip_high=clip_high),
  )
  return loss, bounds['clip_ratio/low_mean'], bounds['clip_ratio/high_mean']


@pytest.mark.parametrize('jit', [False, True])
def test_clip_golden(jit):
  # r = 1.5 with A = 1 is held at 1.2; r = 0.5 with A = -1 at 0.8; r = 0.5 with A = 1 is not.
  ratio = jnp.array([[1.5, 0.5, 0.5, 1.5]])
  advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])
  function = functools.partial(_clip, clip_low=0.2, clip_high=0.2)
  loss, low, high = (jax.jit(function) if jit else function)(
    jnp.log(ratio), jnp.zeros((1, 4)), advantages
  )
  np.testing.assert_allclose(loss, [[-1.2, 0.8, -0.5, 1.5]], rtol=1e-6)
  assert low.tolist() == [[False, True, False, False]]
  assert high.tolist() == [[True, False, False, False]]


def test_gradient_stops_where_a_bound_binds_and_only_there():
  ratio = jnp.array([1.5, 0.5, 0.5, 1.5])
  advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
  gradient = jax.grad(lambda x: _clip(x, jnp.zeros(4), advantages)[0].sum())(jnp.log(ratio))
  np.testing.assert_allclose(gradient, [0, 0, -0.5, 1.5], rtol=1e-6)


def test_on_policy_gradient_is_minus_advantage():
  logprobs, advantages = jnp.array([-1.0, -2.0]), jnp.array([0.3, -0.7])
  gradient = jax.grad(lambda x: _clip(x, jax.lax.stop_gradient(x), advantages)[0].sum())(logprobs)
  np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)


def test_a_huge_log_ratio_does_not_overflow():
  loss, _, _ = _clip(jnp.array([0.0]), jnp.array([-500.0]), jnp.array([-1.0]))
  assert np.isfinite(loss).all()


def test_importance_weights_make_the_sampler_s_mean_the_trainer_s():
  p, q = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.3, 0.1])
  values = np.array([1.0, -2.0, 5.0])
  weights = truncated_importance(jnp.log(p), jnp.log(q), cap=10.0)
  np.testing.assert_allclose((q * weights * values).sum(), (p * values).sum(), rtol=1e-6)
  np.testing.assert_allclose(
    truncated_importance(jnp.log(p), jnp.log(q), cap=1.5), [5 / 6, 1.0, 1.5], rtol=1e-6
  )
  gradient = jax.grad(lambda x: truncated_importance(x, jnp.log(q), cap=2.0).sum())(jnp.log(p))
  assert not gradient.any()


def test_shapes_that_differ_are_refused():
  with pytest.raises(ValueError, match=r'\(2,\).*\(3,\)'):
    _clip(jnp.zeros(2), jnp.zeros(3), jnp.zeros(2))


# ------------------------------------------------------------------ KL


def _categorical_kl(estimator, power):
  """Exact expectation over a 5-way categorical of estimator, or of its gradient."""
  q = jax.nn.log_softmax(jnp.array([0.3, -0.2, 1.0, 0.0, -1.0]))

  def value(theta, weights_of):
    p = jax.nn.log_softmax(theta)
    weights = jax.lax.stop_gradient(jnp.exp(jax.nn.log_softmax(weights_of)))
    return (weights * estimator(p, q)).sum()

  theta = jnp.array([0.5, 0.1, -0.4, 0.9, 0.0])
  exact = lambda t: (jnp.exp(jax.nn.log_softmax(t)) * (jax.nn.log_softmax(t) - q)).sum()
  if power == 0:
    return value(theta, theta), exact(theta)
  return jax.grad(lambda t: value(t, theta))(theta), jax.grad(exact)(theta)


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_k1_and_k3_are_unbiased(name):
  found, exact = _categorical_kl(kl.ESTIMATORS[name], 0)
  np.testing.assert_allclose(found, exact, rtol=1e-5)


def test_k2_in_the_loss_has_the_gradient_of_the_reverse_kl():
  found, exact = _categorical_kl(kl.k2, 1)
  np.testing.assert_allclose(found, exact, atol=1e-6)


def test_k1_in_the_loss_has_no_expected_gradient():
  found, _ = _categorical_kl(kl.k1, 1)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_k3_is_never_negative():
  x = jnp.linspace(-15, 15, 301)
  assert (kl.k3(x, jnp.zeros_like(x)) >= 0).all()


# ------------------------------------------------------------------ masked sums


def test_the_three_aggregations_by_hand():
  values = jnp.array([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
  weights = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])
  assert masked.over_tokens(values, weights) == (8.0, 3.0)
  assert masked.over_sequences(values, weights) == (1.5 + 5.0, 2.0)
  assert masked.over_constant(values, weights, length=10) == (8.0, 20.0)


def test_masked_positions_may_be_nan():
  values, weights = jnp.array([[1.0, jnp.nan]]), jnp.array([[1.0, 0.0]])
  for aggregate in (masked.over_tokens, masked.over_sequences):
    assert float(aggregate(values, weights).total) == 1.0


def test_token_mean_equals_sequence_mean_for_equal_lengths():
  values = jax.random.normal(jax.random.key(0), (4, 6))
  weights = jnp.ones((4, 6))
  sums = {'a': masked.over_tokens(values, weights), 'b': masked.over_sequences(values, weights)}
  found = masked.means(sums)
  np.testing.assert_allclose(found['a'], found['b'], rtol=1e-6)


# ------------------------------------------------------------------ log-probs


def _inputs(B=3, T=7, D=8, V=13):
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
  hidden, head, targets = _inputs()
  valid = head.shape[1] - 2

  def plain(hidden, head):
    table = jax.nn.log_softmax((hidden @ head / temperature)[..., :valid])
    return jnp.take_along_axis(table, targets[..., None], -1)[..., 0], table

  chunked = lambda h, w: token_statistics(h, w, targets, temperature=temperature, valid_vocab=valid)
  found, (expected, table) = chunked(hidden, head), plain(hidden, head)
  np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)
  np.testing.assert_allclose(found.entropy, -(jnp.exp(table) * table).sum(-1), atol=1e-5)
  assert (found.greedy == (table.argmax(-1) == targets)).all()
  weights = jax.random.normal(jax.random.key(3), targets.shape)
  ours = jax.grad(lambda h, w: (chunked(h, w).logprobs * weights).sum(), (0, 1))(hidden, head)
  theirs = jax.grad(lambda h, w: (plain(h, w)[0] * weights).sum(), (0, 1))(hidden, head)
  for a, b in zip(ours, theirs):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_no_array_over_tokens_and_vocabulary_is_made(monkeypatch):
  monkeypatch.setattr('rft_jax.objectives.logprobs.CHUNK_ELEMENTS', {'cpu': 2 * 64})
  hidden, head, targets = _inputs(B=2, T=40, V=64)
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
