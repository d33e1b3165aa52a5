"""Returns, GAE, whitening and the value loss against float64 loops over the trainable tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import gae, masked

B, T = 5, 9  # one shape wherever it will do: every other is compiled anew


# ------------------------------------------------------------------ the reference: plain loops


def _places(weights):
  return [[t for t, weight in enumerate(row) if weight > 0] for row in np.asarray(weights)]


def reference_gae(rewards, values, weights, discount, gae_lambda, end=None):
  """A_t = sum over l of (discount lambda)^l delta_{t+l}, on the tokens that are left."""
  advantages, targets = np.zeros(np.shape(weights)), np.zeros(np.shape(weights))
  for b, places in enumerate(_places(weights)):
    v = [float(values[b][t]) for t in places] + [0.0 if end is None else float(end[b])]
    deltas = [float(rewards[b][t]) + discount * v[n + 1] - v[n] for n, t in enumerate(places)]
    for n, t in enumerate(places):
      advantages[b, t] = sum(
        (discount * gae_lambda) ** k * delta for k, delta in enumerate(deltas[n:])
      )
      targets[b, t] = advantages[b, t] + v[n]
  return advantages, targets


def reference_returns(rewards, weights, discount):
  out = np.zeros(np.shape(weights))
  for b, places in enumerate(_places(weights)):
    for n, t in enumerate(places):
      out[b, t] = sum(discount**k * float(rewards[b][u]) for k, u in enumerate(places[n:]))
  return out


def reference_whiten(values, weights):
  kept = [float(values[b][t]) for b, row in enumerate(_places(weights)) for t in row]
  mean = sum(kept) / len(kept)
  std = (sum((x - mean) ** 2 for x in kept) / len(kept)) ** 0.5
  return np.where(np.asarray(weights) > 0, (np.nan_to_num(values) - mean) / (std + 1e-8), 0.0)


def reference_value_loss(values, old_values, targets, weights, clip):
  out = np.zeros(np.shape(weights))
  for b, places in enumerate(_places(weights)):
    for t in places:
      v, old, target = float(values[b, t]), float(old_values[b, t]), float(targets[b, t])
      held = min(max(v, old - clip), old + clip) if clip is not None else v
      out[b, t] = 0.5 * max((v - target) ** 2, (held - target) ** 2)
  return out


def _case(seed, poisoned=True):
  """Rewards, values and weights of rows of which one has no trainable token; NaN on weight 0."""
  rng = np.random.default_rng(seed)
  weights = (rng.uniform(size=(B, T)) < 0.6).astype(np.float32)
  weights[rng.integers(B)] = 0
  rewards, values = rng.normal(size=(2, B, T)).astype(np.float32)
  if poisoned:
    rewards, values = (np.where(weights > 0, x, np.nan) for x in (rewards, values))
  return rewards, values, weights


SETTINGS = [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 0.95)]
_value_loss = jax.jit(gae.value_loss, static_argnames='clip')
_whiten = jax.jit(gae.whiten)
_returns_to_go = jax.jit(gae.returns_to_go)


@functools.partial(jax.jit, static_argnames='clip')
def _value_gradient(values, old_values, targets, weights, clip):
  loss = lambda v: gae.value_loss(v, old_values, targets, weights, clip=clip)[0]
  return jax.grad(lambda v: masked.over_tokens(loss(v), weights).total)(values)


# ------------------------------------------------------------------ GAE and returns


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), case=st.sampled_from(SETTINGS))
def test_gae_equals_its_formula_on_the_trainable_tokens(seed, case):
  discount, gae_lambda = case
  rewards, values, weights = _case(seed)
  found = gae.gae(rewards, values, weights, discount=discount, gae_lambda=gae_lambda)
  advantages, targets = reference_gae(rewards, values, weights, discount, gae_lambda)
  np.testing.assert_allclose(found.advantages, advantages, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found.returns, targets, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), case=st.sampled_from(SETTINGS))
def test_bootstrap_goes_on_where_a_completion_was_cut_off_and_only_there(seed, case):
  discount, gae_lambda = case
  rewards, values, weights = _case(seed)
  truncated = np.arange(B) % 2 == 0
  final = np.where(truncated, np.arange(1.0, B + 1), np.nan).astype(np.float32)
  found = gae.gae(
    rewards,
    values,
    weights,
    discount=discount,
    gae_lambda=gae_lambda,
    bootstrap=True,
    truncated=truncated,
    final_values=final,
  )
  advantages, _ = reference_gae(
    rewards, values, weights, discount, gae_lambda, np.where(truncated, final, 0.0)
  )
  np.testing.assert_allclose(found.advantages, advantages, rtol=1e-5, atol=1e-5)


def test_gae_by_hand():
  # tokens 0, 2, 3 with discount 0.5 and lambda 0.5, the reward 8 at the end, a tool token between
  rewards, values = np.array([[0, 99, 0, 8]]), np.array([[2, 99, 4, 6]])
  weights = np.array([[1, 0, 1, 1]])
  found = gae.gae(rewards, values, weights, discount=0.5, gae_lambda=0.5)
  # deltas: 0.5*4 - 2 = 0, 0.5*6 - 4 = -1, 8 - 6 = 2
  np.testing.assert_allclose(found.advantages, [[-0.125, 0, -0.5, 2]])
  np.testing.assert_allclose(found.returns, [[1.875, 0, 3.5, 8]])
  cut = gae.gae(
    rewards,
    values,
    weights,
    discount=0.5,
    gae_lambda=0.5,
    bootstrap=True,
    truncated=np.array([True]),
    final_values=np.array([2.0]),
  )
  np.testing.assert_allclose(cut.advantages, [[-0.0625, 0, -0.25, 3]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), discount=st.sampled_from([1.0, 0.9, 0.0]))
def test_returns_to_go_equal_their_formula(seed, discount):
  rewards, _, weights = _case(seed)
  np.testing.assert_allclose(
    _returns_to_go(rewards, weights, discount=discount),
    reference_returns(rewards, weights, discount),
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_terminal_reward_alone_is_every_token_s_return():
  _, _, weights = _case(0)
  rewards = np.arange(1.0, B + 1)
  found = gae.returns_to_go(gae.terminal_rewards(rewards, weights), weights)
  np.testing.assert_array_equal(found, np.where(weights > 0, rewards[:, None], 0.0))


def test_with_lambda_and_discount_1_returns_do_not_depend_on_the_critic():
  rewards, values, weights = _case(1)
  found = gae.gae(rewards, values, weights, discount=1.0, gae_lambda=1.0)
  np.testing.assert_allclose(
    found.returns, reference_returns(rewards, weights, 1.0), rtol=1e-5, atol=1e-5
  )


def test_a_perfect_critic_leaves_no_advantage():
  rewards, _, weights = _case(2)
  values = reference_returns(rewards, weights, 0.9)
  for gae_lambda in (0.0, 0.5, 1.0):
    found = gae.gae(
      rewards, values.astype(np.float32), weights, discount=0.9, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(found.advantages, 0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_tool_tokens_padding_and_order_of_rows_do_not_matter(seed):
  rewards, values, weights = _case(seed)
  run = functools.partial(gae.gae, discount=0.9, gae_lambda=0.8)
  before = run(rewards, values, weights)
  order = np.random.default_rng(seed).permutation(B)
  after = run(rewards[order], values[order], weights[order])
  np.testing.assert_allclose(after.advantages, before.advantages[order], atol=1e-6)
  squeezed = [np.full((3, T + 2), 0.0) for _ in range(B)]
  for b, places in enumerate(_places(weights)):  # left-aligned, and padded further
    squeezed[b][:, : len(places)] = rewards[b, places], values[b, places], weights[b, places]
  packed = run(*np.stack(squeezed, 1).astype(np.float32))
  for b, places in enumerate(_places(weights)):
    np.testing.assert_allclose(
      packed.advantages[b, : len(places)], before.advantages[b, places], atol=1e-5
    )


def test_estimates_are_constants():
  rewards, values, weights = _case(3, poisoned=False)

  def total(rewards, values):
    found = gae.gae(rewards, values, weights)
    return (found.advantages + found.returns + gae.whiten(values, weights)).sum()

  for gradient in jax.grad(total, (0, 1))(rewards, values):
    assert not gradient.any()


# ------------------------------------------------------------------ rewards of tokens


def test_the_reward_stands_on_the_last_trainable_token():
  weights = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0.5, 0, 0, 0, 0]])
  found = gae.terminal_rewards(np.array([2.0, np.nan, 3.0, 4.0]), weights)
  np.testing.assert_array_equal(
    found, [[0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3], [4, 0, 0, 0, 0]]
  )


def test_kl_in_the_reward_is_k1_and_a_constant():
  rewards, logprobs, weights = _case(4)
  reference = np.where(weights > 0, np.random.default_rng(0).normal(size=(B, T)), np.nan)
  found = gae.subtract_kl(rewards, logprobs, reference, weights, coefficient=0.05)
  for b in range(B):
    for t in range(T):
      expected = rewards[b, t] - 0.05 * (logprobs[b, t] - reference[b, t]) if weights[b, t] else 0
      np.testing.assert_allclose(found[b, t], expected, rtol=1e-5, atol=1e-6)
  gradient = jax.grad(
    lambda x: gae.subtract_kl(rewards, x, reference, weights, coefficient=0.05).sum()
  )(jnp.asarray(logprobs))
  assert not gradient.any()


def test_the_kl_coefficient_follows_the_kl_by_a_fifth_at_most():
  adapt = functools.partial(gae.adapt_kl_coefficient, 0.2, target=6.0, samples=64, horizon=6400)
  assert adapt(6.0) == 0.2
  assert adapt(6.6) == pytest.approx(0.2 * 1.001)
  assert adapt(600.0) == adapt(float('inf')) == pytest.approx(0.2 * 1.002)
  assert adapt(-3.0) == pytest.approx(0.2 * 0.998)
  for wrong in ({'target': 0.0}, {'horizon': 1}, {'samples': -1}):
    with pytest.raises(ValueError, match='need a number'):
      adapt(6.0, **wrong)
  with pytest.raises(ValueError, match='measured=nan'):
    adapt(float('nan'))


# ------------------------------------------------------------------ whitening


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.sampled_from([0.0, 100.0]))
def test_whitening_equals_its_formula_over_trainable_tokens(seed, shift):
  _, values, weights = _case(seed)
  values = (values + shift).astype(np.float32)
  # at 100 a float32 has steps of 8e-6, of which a mean over 30 tokens keeps about one
  np.testing.assert_allclose(
    _whiten(values, weights),
    reference_whiten(values, weights),
    rtol=1e-4,
    atol=1e-4 if shift else 1e-5,
  )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, B - 1))
def test_a_batch_whitened_in_parts_is_whitened_as_a_whole(seed, cut):
  _, values, weights = _case(seed)
  whole = _whiten(values, weights)
  parts = [(values[:cut], weights[:cut]), (values[cut:], weights[cut:])]
  of = functools.reduce(gae.join, (gae.moments(*part) for part in parts))
  found = np.concatenate([gae.whiten(*part, of) for part in parts])
  np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


def test_moments_of_nothing_join_without_a_trace():
  _, values, weights = _case(5)
  some, nothing = gae.moments(values, weights), gae.moments(values, 0 * weights)
  for joined in (gae.join(some, nothing), gae.join(nothing, some)):
    np.testing.assert_allclose(joined, some, rtol=1e-6)
  assert np.isfinite(gae.join(nothing, nothing)[:3]).all()


def test_a_large_mean_does_not_hide_the_std():
  values = np.array([[4096.0, 4097.0, 4098.0, 4099.0]], np.float32)
  found = gae.whiten(values, np.ones((1, 4)))
  np.testing.assert_allclose(found, [np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25)], rtol=1e-6)


# ------------------------------------------------------------------ the critic


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), clip=st.sampled_from([0.2, 1.0, None]))
def test_the_value_loss_and_its_gradient_equal_their_formula(seed, clip):
  targets, values, weights = _case(seed)
  old_values = values + np.random.default_rng(seed).normal(size=(B, T)).astype(np.float32)
  loss, bound = _value_loss(values, old_values, targets, weights, clip=clip)
  reference = functools.partial(
    reference_value_loss, old_values=old_values, targets=targets, weights=weights, clip=clip
  )
  np.testing.assert_allclose(loss, reference(values), rtol=1e-5, atol=1e-6)
  assert not bound[weights == 0].any() and (clip is not None or not bound.any())

  found = _value_gradient(values, old_values, targets, weights, clip=clip)
  step, double = 1e-6, values.astype(np.float64)
  here = reference(double)
  sides = ((here - reference(double - step)) / step, (reference(double + step) - here) / step)
  # the two differ at a kink, where what lies between them is right
  assert (found >= np.minimum(*sides) - 1e-5).all() and (found <= np.maximum(*sides) + 1e-5).all()


def test_the_value_loss_by_hand():
  # far from the target the clipped value is worse, and stops the gradient; near it does not
  values, old, targets = np.array([[1.0, 1.0, 0.1]]), np.zeros((1, 3)), np.array([[2.0, 0.0, 3.0]])
  loss, bound = gae.value_loss(values, old, targets, np.ones((1, 3)), clip=0.2)
  np.testing.assert_allclose(loss, [[1.8**2 / 2, 0.5, 2.9**2 / 2]], rtol=1e-6)
  assert bound.tolist() == [[True, False, False]]
  gradient = jax.grad(
    lambda v: gae.value_loss(v, old, targets, np.ones((1, 3)), clip=0.2)[0].sum()
  )(jnp.asarray(values))
  np.testing.assert_allclose(gradient, [[0.0, 1.0, -2.9]], rtol=1e-6)
  at_old, _ = gae.value_loss(old, old, targets, np.ones((1, 3)), clip=0.2)
  np.testing.assert_allclose(at_old, targets**2 / 2)


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (1, 6), (0, 4)])
@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_one_token_and_all_masked_are_finite(shape, weight):
  weights = np.full(shape, weight, np.float32)
  values = np.full(shape, 0.3, np.float32) if weight else np.full(shape, np.nan, np.float32)
  rewards = gae.terminal_rewards(np.full(shape[0], 0.1 + 0.2), weights)
  found = gae.gae(rewards, values, weights)
  assert np.isfinite(found.advantages).all() and np.isfinite(found.returns).all()
  assert not gae.whiten(values, weights).any()
  loss, gradient = jax.value_and_grad(lambda v: gae.value_loss(v, v, values, weights)[0].sum())(
    jnp.asarray(values)
  )
  assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_log_ratios_of_10000_stay_finite(size):
  _, _, weights = _case(6)
  logprobs, reference = np.zeros((B, T), np.float32), np.full((B, T), -size, np.float32)
  rewards = gae.subtract_kl(np.zeros((B, T)), logprobs, reference, weights, coefficient=0.1)
  np.testing.assert_allclose(rewards, np.where(weights > 0, -0.1 * size, 0.0), rtol=1e-6)
  found = gae.gae(rewards, np.full((B, T), size, np.float32), weights)
  assert np.isfinite(found.advantages).all()
  assert np.isfinite(gae.whiten(found.advantages, weights)).all()
  loss, gradient = jax.value_and_grad(
    lambda v: gae.value_loss(v, np.zeros((B, T)), found.returns, weights)[0].sum()
  )(jnp.full((B, T), size))
  assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_equal_values_are_whitened_to_exactly_zero():
  weights = np.ones((7, 3), np.float32)
  assert not gae.whiten(np.full((7, 3), 0.1 + 0.2, np.float32), weights).any()


def test_shapes_that_differ_are_refused():
  x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
  for call in (
    lambda: gae.gae(x, y, x),
    lambda: gae.moments(x, y),
    lambda: gae.value_loss(x, x, x, y),
    lambda: gae.whiten(x, y),
    lambda: gae.subtract_kl(x, x, y, x, coefficient=1.0),
  ):
    with pytest.raises(ValueError, match=r'shapes differ: .*\(2, 3\)'):
      call()
  with pytest.raises(ValueError, match='rewards'):
    gae.terminal_rewards(jnp.zeros(3), x)
  with pytest.raises(ValueError, match='bootstrap needs'):
    gae.gae(x, x, x, bootstrap=True)
