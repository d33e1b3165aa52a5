"""Policy losses against loops in float64, golden numbers, and identities between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import importance_ratios, masked
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig
from rft_jax.objectives.policy_losses import LOSSES, clip_widths

# Ratios of reasoning steps take the steps as well: see test_importance_ratios.py, and
# tests/algorithms/test_grpo.py for the whole objective.
PAIRS = [
  (loss, level)
  for loss, levels in SUPPORTED.items()
  for level in levels
  if level in importance_ratios.LEVELS
]
# Settings other than the defaults, with bounds that are active in this data.
TIGHT = [
  PolicyLossConfig(loss='clip', dual_clip=1.5),
  PolicyLossConfig(loss='clip', delta=1.4),
  PolicyLossConfig(loss='clip', clip_low=0.05, clip_high=0.1),
  PolicyLossConfig(loss='clip', ratio_level='sequence', clip_low=0.02, clip_high=0.02),
  PolicyLossConfig(loss='cispo', cispo_high_level=1.2, cispo_low_width=0.1),
  PolicyLossConfig(loss='gmpo', clip_low=0.1, clip_high=0.2),
  PolicyLossConfig(loss='sapo', sapo_tau_positive=3.0, sapo_tau_negative=0.5),
  PolicyLossConfig(
    loss='vespo', ratio_level='product', vespo_power_positive=1.0, vespo_rate_negative=0.5
  ),
  PolicyLossConfig(loss='dppo_tv', dppo_low=0.02, dppo_high=0.03),
]
CONFIGS = [PolicyLossConfig(loss=loss, ratio_level=level) for loss, level in PAIRS] + TIGHT
PLAIN = CONFIGS[: len(PAIRS)]
NAMES = [f'{config.loss}-{config.ratio_level}-{index}' for index, config in enumerate(CONFIGS)]


def example(seed, lengths=(5, 1, 0, 6, 3, 6), T=6, spread=0.4):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(1.0, (len(lengths), T)) - 0.02
  old = np.minimum(logprobs + rng.normal(0, spread, logprobs.shape), -0.01)
  advantages = rng.normal(size=logprobs.shape)
  advantages[1] = 0.0
  mask = np.arange(T) < np.array(lengths)[:, None]
  mask[3, 2] = False
  return [np.float32(x) for x in (logprobs, old, advantages, mask)]


def loss_of(config, logprobs, old, advantages, mask):
  ratio = importance_ratios.LEVELS[config.ratio_level](logprobs, old, mask)
  return LOSSES[config.loss](logprobs, old, ratio, advantages, mask, config=config)


def reference_losses(config, logprobs, constant, old, advantages, mask):
  widths = clip_widths(config)
  return reference.losses(config, logprobs, constant, old, advantages, mask, widths)


# ------------------------------------------------------------------ golden values


def test_values_compiled():
  arrays = example(0)
  every = lambda *arrays: [loss_of(config, *arrays) for config in TIGHT]
  for config, compiled, eager in zip(TIGHT, jax.jit(every)(*arrays), every(*arrays)):
    np.testing.assert_allclose(compiled[0], eager[0], rtol=2e-6, err_msg=str(config))
    for name in eager[1]:
      np.testing.assert_array_equal(compiled[1][name], eager[1][name])


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_values(config):
  arrays = example(0)
  losses, metrics = loss_of(config, *arrays)
  logprobs, old, advantages, mask = map(np.float64, arrays)
  expected = reference_losses(config, logprobs, logprobs, old, advantages, mask)
  np.testing.assert_allclose(np.where(mask > 0, losses, 0), expected, rtol=1e-5, atol=1e-7)
  for name, value in metrics.items():
    assert value.shape == mask.shape and value.dtype == bool, name
    assert not np.asarray(value)[mask == 0].any(), name


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_gradients(config):
  arrays = example(1)
  weight = np.random.default_rng(2).normal(size=arrays[0].shape)
  gradient = jax.grad(
    lambda x: (jnp.where(arrays[3] > 0, loss_of(config, x, *arrays[1:])[0], 0) * weight).sum()
  )(arrays[0])
  constant, old, advantages, mask = map(np.float64, arrays)
  expected = reference.gradient(
    lambda x: (reference_losses(config, x, constant, old, advantages, mask) * weight).sum(),
    constant,
  )
  np.testing.assert_allclose(gradient, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_only_the_log_probs_have_a_gradient(config):
  logprobs, *others = example(3)
  for index in (0, 1):

    def total(x):
      arguments = [x if i == index else other for i, other in enumerate(others)]
      return loss_of(config, logprobs, *arguments)[0].sum()

    assert not np.asarray(jax.grad(total)(others[index])).any()


@pytest.mark.parametrize(
  'config',
  [PolicyLossConfig(), *TIGHT[:4], TIGHT[5]],
  ids=lambda c: f'{c.loss}-{c.ratio_level}-{c.delta}-{c.dual_clip}',
)
def test_active_bounds_are_counted_on_their_side(config):
  logprobs, old, advantages, mask = example(4)
  _, metrics = loss_of(config, logprobs, old, advantages, mask)
  low, high = clip_widths(config)
  ratio = importance_ratios.LEVELS[config.ratio_level](logprobs, old, mask)
  if config.loss == 'gmpo':
    below, above = logprobs - old < -low, logprobs - old > high
  else:
    below, above = ratio < 1 - low, ratio > 1 + high
  expected_low = below & (advantages < 0) & (mask > 0)
  expected_high = above & (advantages > 0) & (mask > 0)
  assert expected_low.any() and expected_high.any()
  np.testing.assert_array_equal(metrics['clip_ratio/low_mean'], expected_low)
  np.testing.assert_array_equal(metrics['clip_ratio/high_mean'], expected_high)
  np.testing.assert_array_equal(metrics['clip_ratio/region_mean'], expected_low | expected_high)


def test_guards_against_large_ratios_by_hand():
  # r = 10 with A = -2: PPO 20, dual clip at 3 limits it to 6, delta at 4 to 8; A = 2 is clipped.
  logprobs, old = jnp.log(jnp.array([[10.0, 10.0]])), jnp.zeros((1, 2))
  advantages, mask = jnp.array([[-2.0, 2.0]]), jnp.ones((1, 2))
  for config, negative_loss in (
    (PolicyLossConfig(), 20),
    (PolicyLossConfig(dual_clip=3.0), 6),
    (PolicyLossConfig(delta=4.0), 8),
  ):
    losses, metrics = loss_of(config, logprobs, old, advantages, mask)
    np.testing.assert_allclose(losses, [[negative_loss, -2.56]], rtol=1e-6)
    assert metrics['clip_ratio/high_mean'].tolist() == [[False, True]]


def test_the_upper_bound_of_cispo_is_a_level():
  logprobs, old = jnp.log(jnp.array([[4.0, 6.0]])), jnp.zeros((1, 2))
  gradient = jax.grad(
    lambda x: loss_of(PolicyLossConfig(loss='cispo'), x, old, jnp.ones((1, 2)), jnp.ones((1, 2)))[
      0
    ].sum()
  )(logprobs)
  np.testing.assert_allclose(gradient, [[-4.0, -5.0]], rtol=1e-6)


# ------------------------------------------------------------------ the clipped loss by hand


def clip_loss(logprobs, old_logprobs, advantages, *, clip_low=0.2, clip_high=0.28):
  """The loss, and where its lower and its upper bound are active; every token counts."""
  config = PolicyLossConfig(clip_low=clip_low, clip_high=clip_high)
  mask = jnp.ones_like(advantages)
  loss, bounds = loss_of(config, logprobs, old_logprobs, advantages, mask)
  return loss, bounds['clip_ratio/low_mean'], bounds['clip_ratio/high_mean']


@pytest.mark.parametrize('jit', [False, True])
def test_clip_golden(jit):
  # r = 1.5 with A = 1 is clipped to 1.2; r = 0.5 with A = -1 to 0.8; r = 0.5 with A = 1 is not.
  ratio = jnp.array([[1.5, 0.5, 0.5, 1.5]])
  advantages = jnp.array([[1.0, -1.0, 1.0, -1.0]])
  function = functools.partial(clip_loss, clip_low=0.2, clip_high=0.2)
  loss, low, high = (jax.jit(function) if jit else function)(
    jnp.log(ratio), jnp.zeros((1, 4)), advantages
  )
  np.testing.assert_allclose(loss, [[-1.2, 0.8, -0.5, 1.5]], rtol=1e-6)
  assert low.tolist() == [[False, True, False, False]]
  assert high.tolist() == [[True, False, False, False]]


def test_the_gradient_is_0_where_a_bound_is_active_and_only_there():
  ratio = jnp.array([1.5, 0.5, 0.5, 1.5])
  advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
  gradient = jax.grad(lambda x: clip_loss(x, jnp.zeros(4), advantages)[0].sum())(jnp.log(ratio))
  np.testing.assert_allclose(gradient, [0, 0, -0.5, 1.5], rtol=1e-6)


def test_on_policy_gradient_is_minus_advantage():
  logprobs, advantages = jnp.array([-1.0, -2.0]), jnp.array([0.3, -0.7])
  gradient = jax.grad(lambda x: clip_loss(x, jax.lax.stop_gradient(x), advantages)[0].sum())(
    logprobs
  )
  np.testing.assert_allclose(gradient, -advantages, rtol=1e-6)


def test_a_huge_log_ratio_does_not_overflow():
  loss, _, _ = clip_loss(jnp.array([0.0]), jnp.array([-500.0]), jnp.array([-1.0]))
  assert np.isfinite(loss).all()


# ------------------------------------------------------------------ identities


ON_POLICY = [
  ('clip', 'token'),
  ('clip', 'sequence_token'),
  ('cispo', 'token'),
  ('sapo', 'token'),
  ('vespo', 'product'),
  ('dppo_tv', 'token'),
  ('policy_gradient', 'none'),
  ('unclipped', 'token'),
  ('unclipped', 'none'),
]


@pytest.mark.parametrize('loss, level', ON_POLICY)
def test_on_policy_every_token_loss_has_the_gradient_of_reinforce(loss, level):
  logprobs, _, advantages, mask = example(6)
  config = PolicyLossConfig(loss=loss, ratio_level=level)
  gradient = jax.grad(
    lambda x: masked.over_tokens(loss_of(config, x, logprobs, advantages, mask)[0], mask).total
  )(logprobs)
  np.testing.assert_allclose(gradient, -advantages * mask, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
  'loss, level, aggregation, power',
  [
    ('clip', 'sequence', 'sequence_mean', 1),
    ('gmpo', 'token', 'sequence_mean', 1),
    ('luspo', 'sequence', 'sequence_sum', 0),
  ],
)
def test_on_policy_sequence_losses_share_the_advantage_among_the_tokens(
  loss, level, aggregation, power
):
  logprobs, _, advantages, mask = example(7)
  advantages = np.broadcast_to(advantages[:, :1], mask.shape)
  config = PolicyLossConfig(loss=loss, ratio_level=level)
  gradient = jax.grad(
    lambda x: (
      masked.AGGREGATIONS[aggregation](
        loss_of(config, x, logprobs, advantages, mask)[0], mask, masked.Sizes()
      ).total
    )
  )(logprobs)
  lengths = np.maximum(mask.sum(1, keepdims=True), 1)
  np.testing.assert_allclose(gradient, -advantages * mask / lengths**power, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
@pytest.mark.parametrize('G', [2, 4])
def test_rloo_and_centred_advantages_differ_by_a_factor(aggregation, G):
  logprobs, old, _, mask = example(8, lengths=(3, 6, 2, 5, 1, 4, 6, 6))
  rewards = np.random.default_rng(0).normal(size=(8 // G, G))
  centred = rewards - rewards.mean(1, keepdims=True)
  others = (rewards.sum(1, keepdims=True) - rewards) / (G - 1)
  group = np.repeat(np.arange(8 // G), G)
  sizes = masked.Sizes(length=10, group_tokens=masked.tokens_of_groups(mask, group))

  def gradient(advantages):
    advantages = np.broadcast_to(np.float32(advantages).reshape(-1, 1), mask.shape)
    return jax.grad(
      lambda x: (
        masked.AGGREGATIONS[aggregation](
          loss_of(PolicyLossConfig(), x, old, advantages, mask)[0], mask, sizes
        ).total
      )
    )(logprobs)

  np.testing.assert_allclose(
    gradient(rewards - others), gradient(centred) * G / (G - 1), rtol=1e-5, atol=1e-7
  )


# ------------------------------------------------------------------ invariances, extremes


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_nan_outside_the_mask_is_never_read(config):
  arrays = example(10)
  mask = arrays[3]

  def total(logprobs, old, advantages):
    return masked.over_tokens(loss_of(config, logprobs, old, advantages, mask)[0], mask).total

  expected = jax.value_and_grad(total)(*arrays[:3])
  with_nan = jax.value_and_grad(total)(*(np.where(mask > 0, x, np.nan) for x in arrays[:3]))
  for a, b in zip(expected, with_nan):
    np.testing.assert_array_equal(a, b)


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(CONFIGS), st.integers(0, 1000), st.permutations(range(6)), st.sampled_from((0, 3))
)
def test_padding_and_the_order_of_rows_change_nothing(config, seed, order, extra):
  arrays = example(seed)
  order = np.array(order)
  wide = [np.pad(x[order], ((0, 0), (0, extra))) for x in arrays]
  padded = np.asarray(loss_of(config, *wide)[0])[:, : arrays[0].shape[1]]
  expected = np.asarray(loss_of(config, *arrays)[0])[order]
  np.testing.assert_allclose(padded, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.full
def test_extremes_stay_finite():
  offenders = []
  for shape, log_ratio in (((1, 1), 1e4), ((2, 5), -1e4), ((2, 5), 21.0)):
    mask = np.ones(shape, np.float32)
    mask[1:] = 0
    advantages = np.resize(np.float32([-1, 0, 1]), shape)
    logprobs = np.full(shape, -5.0, np.float32)
    old = np.full(shape, -5.0 - log_ratio, np.float32)
    for config in CONFIGS:
      value, gradient = jax.value_and_grad(
        lambda x: masked.over_tokens(loss_of(config, x, old, advantages, mask)[0], mask).total
      )(logprobs)
      if not (np.isfinite(value) and np.isfinite(gradient).all()):
        offenders.append((config, shape, log_ratio, value, gradient))
  assert not offenders


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_masked_rows_have_no_loss_and_no_gradient(config):
  logprobs, old, advantages, mask = example(11)
  value, gradient = jax.value_and_grad(
    lambda x: masked.over_tokens(loss_of(config, x, old, advantages, 0 * mask)[0], 0 * mask).total
  )(logprobs)
  assert value == 0 and not np.asarray(gradient).any()


def test_shapes_that_differ_raise():
  ones = jnp.ones((1, 2))
  with pytest.raises(ValueError, match=r'\(1, 2\).*\(1, 3\)'):
    LOSSES['clip'](ones, ones, ones, jnp.ones((1, 3)), ones, config=PolicyLossConfig())
