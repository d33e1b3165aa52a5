"""GAE, rewards on tokens and returns-to-go against float64 loops over the trainable tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import gae

B, T = 5, 9  # one shape wherever possible: every other is compiled anew
SETTINGS = [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 0.95)]


# ------------------------------------------------------------------ the reference: plain loops


def positions(loss_mask):
  return [[t for t, trained in enumerate(row) if trained > 0] for row in np.asarray(loss_mask)]


def reference_gae(rewards, values, loss_mask, discount, gae_lambda, end=None):
  """A_t = sum over l of (discount lambda)^l delta_{t+l}, over the tokens that are left."""
  advantages, returns = np.zeros(np.shape(loss_mask)), np.zeros(np.shape(loss_mask))
  for b, row in enumerate(positions(loss_mask)):
    v = [float(values[b][t]) for t in row] + [0.0 if end is None else float(end[b])]
    deltas = [float(rewards[b][t]) + discount * v[n + 1] - v[n] for n, t in enumerate(row)]
    for n, t in enumerate(row):
      advantages[b, t] = sum(
        (discount * gae_lambda) ** k * delta for k, delta in enumerate(deltas[n:])
      )
      returns[b, t] = advantages[b, t] + v[n]
  return advantages, returns


def reference_returns(rewards, loss_mask, discount):
  returns = np.zeros(np.shape(loss_mask))
  for b, row in enumerate(positions(loss_mask)):
    for n, t in enumerate(row):
      returns[b, t] = sum(discount**k * float(rewards[b][u]) for k, u in enumerate(row[n:]))
  return returns


def example(seed):
  """Rewards, values and loss mask; one row has no trainable token; NaN outside the mask."""
  rng = np.random.default_rng(seed)
  loss_mask = (rng.uniform(size=(B, T)) < 0.6).astype(np.float32)
  loss_mask[rng.integers(B)] = 0
  rewards, values = rng.normal(size=(2, B, T)).astype(np.float32)
  rewards, values = (np.where(loss_mask > 0, x, np.nan) for x in (rewards, values))
  return rewards, values, loss_mask


returns_to_go = jax.jit(gae.returns_to_go)


# ------------------------------------------------------------------ GAE and returns


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), setting=st.sampled_from(SETTINGS))
def test_gae_equals_its_formula_on_the_trainable_tokens(seed, setting):
  discount, gae_lambda = setting
  rewards, values, loss_mask = example(seed)
  estimate = gae.gae(rewards, values, loss_mask, discount=discount, gae_lambda=gae_lambda)
  advantages, returns = reference_gae(rewards, values, loss_mask, discount, gae_lambda)
  np.testing.assert_allclose(estimate.advantages, advantages, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(estimate.returns, returns, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), setting=st.sampled_from(SETTINGS))
def test_bootstrap_reads_final_values_of_truncated_rows_alone(seed, setting):
  discount, gae_lambda = setting
  rewards, values, loss_mask = example(seed)
  truncated = np.arange(B) % 2 == 0
  final = np.where(truncated, np.arange(1.0, B + 1), np.nan).astype(np.float32)
  estimate = gae.gae(
    rewards,
    values,
    loss_mask,
    discount=discount,
    gae_lambda=gae_lambda,
    bootstrap=True,
    truncated=truncated,
    final_values=final,
  )
  advantages, _ = reference_gae(
    rewards, values, loss_mask, discount, gae_lambda, np.where(truncated, final, 0.0)
  )
  np.testing.assert_allclose(estimate.advantages, advantages, rtol=1e-5, atol=1e-5)


def test_gae_by_hand():
  # tokens 0, 2, 3 with discount 0.5 and lambda 0.5, the reward 8 at the end, a tool token between
  rewards, values = np.array([[0, 99, 0, 8]]), np.array([[2, 99, 4, 6]])
  loss_mask = np.array([[1, 0, 1, 1]])
  estimate = gae.gae(rewards, values, loss_mask, discount=0.5, gae_lambda=0.5)
  # deltas: 0.5*4 - 2 = 0, 0.5*6 - 4 = -1, 8 - 6 = 2
  np.testing.assert_allclose(estimate.advantages, [[-0.125, 0, -0.5, 2]])
  np.testing.assert_allclose(estimate.returns, [[1.875, 0, 3.5, 8]])
  bootstrapped = gae.gae(
    rewards,
    values,
    loss_mask,
    discount=0.5,
    gae_lambda=0.5,
    bootstrap=True,
    truncated=np.array([True]),
    final_values=np.array([2.0]),
  )
  np.testing.assert_allclose(bootstrapped.advantages, [[-0.0625, 0, -0.25, 3]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), discount=st.sampled_from([1.0, 0.9, 0.0]))
def test_returns_to_go_equal_their_formula(seed, discount):
  rewards, _, loss_mask = example(seed)
  np.testing.assert_allclose(
    returns_to_go(rewards, loss_mask, discount=discount),
    reference_returns(rewards, loss_mask, discount),
    rtol=1e-5,
    atol=1e-5,
  )


def test_with_a_terminal_reward_alone_every_token_has_it_as_return():
  _, _, loss_mask = example(0)
  rewards = np.arange(1.0, B + 1)
  returns = gae.returns_to_go(gae.terminal_rewards(rewards, loss_mask), loss_mask)
  np.testing.assert_array_equal(returns, np.where(loss_mask > 0, rewards[:, None], 0.0))


def test_with_lambda_and_discount_1_returns_do_not_depend_on_the_critic():
  rewards, values, loss_mask = example(1)
  estimate = gae.gae(rewards, values, loss_mask, discount=1.0, gae_lambda=1.0)
  np.testing.assert_allclose(
    estimate.returns, reference_returns(rewards, loss_mask, 1.0), rtol=1e-5, atol=1e-5
  )


def test_a_perfect_critic_gives_advantages_of_0():
  rewards, _, loss_mask = example(2)
  values = reference_returns(rewards, loss_mask, 0.9)
  for gae_lambda in (0.0, 0.5, 1.0):
    estimate = gae.gae(
      rewards, values.astype(np.float32), loss_mask, discount=0.9, gae_lambda=gae_lambda
    )
    np.testing.assert_allclose(estimate.advantages, 0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_tool_tokens_padding_and_order_of_rows_do_not_matter(seed):
  rewards, values, loss_mask = example(seed)
  run = functools.partial(gae.gae, discount=0.9, gae_lambda=0.8)
  before = run(rewards, values, loss_mask)
  order = np.random.default_rng(seed).permutation(B)
  after = run(rewards[order], values[order], loss_mask[order])
  np.testing.assert_allclose(after.advantages, before.advantages[order], atol=1e-6)
  squeezed = [np.full((3, T + 2), 0.0) for _ in range(B)]
  for b, row in enumerate(positions(loss_mask)):  # left-aligned, and padded further
    squeezed[b][:, : len(row)] = rewards[b, row], values[b, row], loss_mask[b, row]
  packed = run(*np.stack(squeezed, 1).astype(np.float32))
  for b, row in enumerate(positions(loss_mask)):
    np.testing.assert_allclose(
      packed.advantages[b, : len(row)], before.advantages[b, row], atol=1e-5
    )


def test_estimates_are_constants():
  rewards, values, loss_mask = (np.nan_to_num(x) for x in example(3))

  def total(rewards, values):
    estimate = gae.gae(rewards, values, loss_mask)
    return (estimate.advantages + estimate.returns).sum()

  for gradient in jax.grad(total, (0, 1))(rewards, values):
    assert not gradient.any()


# ------------------------------------------------------------------ rewards of tokens


def test_the_reward_is_on_the_last_trainable_token():
  loss_mask = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0.5, 0, 0, 0, 0]])
  rewards = gae.terminal_rewards(np.array([2.0, np.nan, 3.0, 4.0]), loss_mask)
  np.testing.assert_array_equal(
    rewards, [[0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 3], [4, 0, 0, 0, 0]]
  )


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('shape', [(1, 1), (2, 1), (1, 6), (0, 4)])
@pytest.mark.parametrize('trained', [0.0, 1.0])
def test_one_token_and_all_masked_are_finite(shape, trained):
  loss_mask = np.full(shape, trained, np.float32)
  values = np.full(shape, 0.3, np.float32) if trained else np.full(shape, np.nan, np.float32)
  rewards = gae.terminal_rewards(np.full(shape[0], 0.1 + 0.2), loss_mask)
  estimate = gae.gae(rewards, values, loss_mask)
  assert np.isfinite(estimate.advantages).all() and np.isfinite(estimate.returns).all()


@pytest.mark.parametrize('size', [1e4, -1e4])
def test_large_rewards_and_values_stay_finite(size):
  _, _, loss_mask = example(6)
  rewards, values = np.full((2, B, T), size, np.float32)
  estimate = gae.gae(np.where(loss_mask > 0, -0.1 * rewards, 0.0), values, loss_mask)
  assert np.isfinite(estimate.advantages).all() and np.isfinite(estimate.returns).all()


def test_shapes_that_differ_raise():
  x, y = jnp.zeros((2, 3)), jnp.zeros((2, 4))
  with pytest.raises(ValueError, match=r'shapes differ: .*\(2, 3\)'):
    gae.gae(x, y, x)
  with pytest.raises(ValueError, match='rewards'):
    gae.terminal_rewards(jnp.zeros(3), x)
  with pytest.raises(ValueError, match='bootstrap needs'):
    gae.gae(x, x, x, bootstrap=True)
