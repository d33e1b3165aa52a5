"""Advantages of reasoning steps against loops over steps and tokens, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import reasoning_steps
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages

EPSILON = 1e-4


# ------------------------------------------------------------------ the reference: plain loops


def reference(rewards, ends, group, loss_mask, kind, ddof=1):
  """A_{i,t} = sum over the steps j with e_j >= t of the normalised r_{i,j}."""
  B, T = np.shape(loss_mask)
  advantages = np.zeros((B, T))
  for b in range(B):
    group_rows = [c for c in range(B) if group[c] == group[b]]
    for t in range(T):
      for j, end in enumerate(ends[b]):
        if end < t or not loss_mask[b][t]:
          continue
        if kind == 'normalised':
          pool = [r for c in group_rows for r in rewards[c]]
          mean = sum(pool) / len(pool)
          variance = sum((r - mean) ** 2 for r in pool) / max(len(pool) - ddof, 1)
          if len(set(pool)) > 1:
            advantages[b, t] += (rewards[b][j] - mean) / (variance**0.5 + EPSILON)
        else:
          pool = [rewards[c][j] for c in group_rows if len(rewards[c]) > j]
          advantages[b, t] += rewards[b][j] - sum(pool) / len(pool)
  return advantages


KINDS = {'normalised': reasoning_steps.normalised_sums, 'baseline': reasoning_steps.baseline_sums}


def example(seed, B=6, T=12):
  """Rows of 0 to 5 steps in two groups, with tool tokens anywhere."""
  rng = np.random.default_rng(seed)
  ends = [sorted(rng.choice(T, rng.integers(0, 6), replace=False).tolist()) for _ in range(B)]
  rewards = [rng.normal(size=len(row)).tolist() for row in ends]
  loss_mask = (rng.uniform(size=(B, T)) < 0.8).astype(np.float32)
  return rewards, ends, rng.integers(0, 2, B), loss_mask


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10**6))
def test_step_advantages_equal_their_formula(kind, seed):
  rewards, ends, group, loss_mask = example(seed)
  advantages = reasoning_steps.to_tokens(KINDS[kind](rewards, group), ends, loss_mask)
  assert advantages.dtype == np.float32
  np.testing.assert_allclose(
    advantages, reference(rewards, ends, group, loss_mask, kind), rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('ddof', [0, 1])
def test_ddof_is_that_of_the_pool_of_steps(ddof):
  rewards, ends, group, loss_mask = example(3)
  advantages = reasoning_steps.to_tokens(
    reasoning_steps.normalised_sums(rewards, group, ddof=ddof), ends, loss_mask
  )
  np.testing.assert_allclose(
    advantages, reference(rewards, ends, group, loss_mask, 'normalised', ddof), rtol=1e-5, atol=1e-6
  )


# ------------------------------------------------------------------ by hand


def test_normalised_sums_by_hand():
  # the pool 1 0 | 0 1: mean 1/2, std 1/sqrt(3) with ddof 1, so z is +-0.8660254
  advantages = reasoning_steps.normalised_sums([[1, 0], [0, 1]], [0, 0], epsilon=0.0)
  np.testing.assert_allclose(advantages, [[0, -0.8660254], [0, 0.8660254]], rtol=1e-6, atol=1e-12)


def test_baseline_sums_by_hand():
  # step 1: 1, 0 of mean 1/2; step 2: 0.5, 0.1 of mean 0.3; step 3: alone
  advantages = reasoning_steps.baseline_sums([[1, 0.5, 9], [0, 0.1]], [0, 0])
  np.testing.assert_allclose(advantages[0], [0.5 + 0.2, 0.2, 0.0], atol=1e-12)
  np.testing.assert_allclose(advantages[1], [-0.5 - 0.2, -0.2], atol=1e-12)


def test_a_step_includes_its_last_token_and_tokens_after_the_last_step_have_0():
  advantages = reasoning_steps.to_tokens([[10.0, 20.0]], [[1, 4]], np.array([[1, 1, 1, 0, 1, 1]]))
  np.testing.assert_array_equal(advantages, [[10, 10, 20, 0, 20, 0]])


def test_one_step_per_sample_is_grpo():
  rewards = np.random.default_rng(0).normal(size=(3, 4))
  advantages = reasoning_steps.normalised_sums(rewards.reshape(12, 1), np.repeat(np.arange(3), 4))
  np.testing.assert_allclose(
    np.ravel(advantages), group_advantages(rewards, AdvantageConfig()).ravel(), rtol=1e-6
  )


def test_differences_of_potentials_sum_to_the_total_change():
  differences = reasoning_steps.differences([[0.25, 0.75, 0.5], [0.1]])
  np.testing.assert_array_equal(differences[0], [0.5, -0.25])
  assert len(differences[1]) == 0
  path = np.random.default_rng(0).normal(size=9)
  np.testing.assert_allclose(reasoning_steps.differences([path])[0].sum(), path[-1] - path[0])


def test_potential_based_shaping_changes_returns_by_the_potential_of_the_start_alone():
  # From each step on, shaped rewards sum to the unshaped ones plus F(end) - F(start of the step),
  # and the end of every chain has the potential 0.
  rng = np.random.default_rng(1)
  rewards, potential = rng.normal(size=4), np.append(rng.normal(size=4), 0.0)
  shaped = rewards + reasoning_steps.differences([potential])[0]
  to_go = lambda row: np.cumsum(row[::-1])[::-1]
  np.testing.assert_allclose(to_go(shaped), to_go(rewards) - potential[:-1])


def test_turns_end_where_tool_tokens_or_padding_begin():
  loss_mask = np.array(
    [[1, 1, 0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
  )
  assert reasoning_steps.turn_ends(loss_mask) == [[1, 4, 7], [], [2]]
  assert reasoning_steps.turn_ends(np.ones((1, 1))) == [[0]]


def test_a_blend_by_hand():
  blended = reasoning_steps.blend(
    [1.0, -1.0], [[1, 2], [3, np.nan]], [[1, 1], [1, 0]], outcome_weight=0.5, process_weight=2.0
  )
  np.testing.assert_allclose(blended, [[2.5, 4.5], [5.5, 0]])
  outcome = reasoning_steps.blend(
    [1.0, -1.0], np.zeros((2, 2)), np.ones((2, 2)), process_weight=0.0
  )
  np.testing.assert_array_equal(outcome, [[1, 1], [-1, -1]])


# ------------------------------------------------------------------ invariances


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10**6))
def test_order_padding_and_names_of_groups_do_not_matter(kind, seed):
  rewards, ends, group, loss_mask = example(seed)
  before = reasoning_steps.to_tokens(KINDS[kind](rewards, group), ends, loss_mask)
  order = np.random.default_rng(seed).permutation(len(rewards))
  pick = lambda rows: [rows[b] for b in order]
  padded = np.pad(loss_mask, ((0, 0), (0, 3)))[order]
  after = reasoning_steps.to_tokens(
    KINDS[kind](pick(rewards), 7 - 3 * group[order]), pick(ends), padded
  )
  np.testing.assert_allclose(after[:, : loss_mask.shape[1]], before[order], rtol=1e-5, atol=1e-6)
  assert not after[:, loss_mask.shape[1] :].any()


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 10**6))
def test_groups_are_independent(kind, seed):
  rewards, _, group, _ = example(seed)
  whole = KINDS[kind](rewards, group)
  for name in set(group):
    rows = np.flatnonzero(group == name)
    alone = KINDS[kind]([rewards[b] for b in rows], group[rows])
    for b, row in zip(rows, alone):
      np.testing.assert_array_equal(row, whole[b])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_advantage_is_constant_within_a_step(seed):
  rewards, ends, group, loss_mask = example(seed)
  advantages = reasoning_steps.to_tokens(
    reasoning_steps.normalised_sums(rewards, group), ends, np.ones_like(loss_mask)
  )
  for row, row_ends in zip(advantages, ends):
    for part in np.split(row, np.array(row_ends, int) + 1):
      assert len(set(part.tolist())) <= 1


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('kind', KINDS)
def test_equal_rewards_alone_or_no_steps_are_exactly_zero(kind):
  for rewards in ([[0.1 + 0.2] * 3] * 7, [[5.0]], [[], []], [[], [2.0]]):
    advantages = KINDS[kind](rewards, np.zeros(len(rewards), int))
    assert [len(row) for row in advantages] == [len(row) for row in rewards]
    assert not any(row.any() for row in advantages)


def test_no_rows_no_steps_and_one_token():
  assert KINDS['normalised']([], np.zeros(0, int)) == KINDS['baseline']([], np.zeros(0, int)) == []
  assert reasoning_steps.to_tokens([], [], np.zeros((0, 5))).shape == (0, 5)
  np.testing.assert_array_equal(
    reasoning_steps.to_tokens([[2.0], []], [[0], []], np.ones((2, 1))), [[2], [0]]
  )
  assert not reasoning_steps.to_tokens([[2.0]], [[3]], np.zeros((1, 4))).any()


@pytest.mark.parametrize('ends', [[3, 1], [1, 1], [-1, 2], [1, 6], [1], [0, 1, 2]])
def test_invalid_ends_raise(ends):
  with pytest.raises(ValueError, match='row 1: ends'):
    reasoning_steps.to_tokens([[1.0], [1.0, 2.0]], [[0], ends], np.ones((2, 6)))


def test_invalid_rewards_raise():
  for kind in KINDS.values():
    with pytest.raises(ValueError, match='row 1: rewards'):
      kind([[1.0], [np.nan]], [0, 0])
    with pytest.raises(ValueError, match='group'):
      kind([[1.0], [2.0]], [0])
  with pytest.raises(ValueError, match='row 0: potentials'):
    reasoning_steps.differences([[]])
  with pytest.raises(ValueError, match='rows of steps'):
    reasoning_steps.to_tokens([[1.0]], [[0], [1]], np.ones((2, 3)))
  with pytest.raises(ValueError, match='outcome'):
    reasoning_steps.blend([1.0], np.zeros((2, 3)), np.zeros((2, 3)))


def test_step_indices_by_hand():
  indices = reasoning_steps.step_indices([[1, 2, 4], [2], []], 6)
  assert indices.tolist() == [[0, 0, 1, 2, 2, 3], [0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]]


def test_sums_and_first_values_of_steps():
  values = np.array([[1.0, 2.0, 4.0, 8.0, 16.0], [3.0, 5.0, 7.0, 0.0, 0.0]])
  loss_mask = np.array([[1.0, 0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, 0.0]])
  ends = [[1, 2, 4], [2]]
  assert [row.tolist() for row in reasoning_steps.step_sums(values, ends, loss_mask)] == [
    [1, 4, 24],
    [15],
  ]
  assert [row.tolist() for row in reasoning_steps.first_values(values, ends, loss_mask)] == [
    [1, 4, 8],
    [3],
  ]
  with_tool_step = reasoning_steps.first_values(values, [[0, 1, 4], [2]], loss_mask)
  assert with_tool_step[0].tolist() == [1, 0, 4]  # a step of tool tokens has the value 0
