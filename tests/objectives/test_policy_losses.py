"""Policy losses and aggregations against loops in float64, and the identities that bind them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_policy as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.objectives import importance_ratios, masked, policy_loss_config, policy_losses
from rft_jax.objectives.policy_loss_config import SUPPORTED, PolicyLossConfig, incompatibilities
from rft_jax.objectives.policy_losses import LOSSES, clip_widths

# The ratio of steps reads the steps as well: test_objectives_ratios.py, and through the objective
# test_algorithms_grpo.py.
PAIRS = [
  (loss, level)
  for loss, levels in SUPPORTED.items()
  for level in levels
  if level in importance_ratios.LEVELS
]
# Settings other than the defaults, with bounds that this data reaches.
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


def _rows(seed, lengths=(5, 1, 0, 6, 3, 6), T=6, spread=0.4):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(1.0, (len(lengths), T)) - 0.02
  old = np.minimum(logprobs + rng.normal(0, spread, logprobs.shape), -0.01)
  advantages = rng.normal(size=logprobs.shape)
  advantages[1] = 0.0
  mask = np.arange(T) < np.array(lengths)[:, None]
  mask[3, 2] = False
  return [np.float32(x) for x in (logprobs, old, advantages, mask)]


def _loss(config, logprobs, old, advantages, mask):
  ratio = importance_ratios.LEVELS[config.ratio_level](logprobs, old, mask)
  return LOSSES[config.loss](logprobs, old, ratio, advantages, mask, config=config)


def _expected(config, moving, held, old, advantages, mask):
  return reference.losses(config, moving, held, old, advantages, mask, clip_widths(config))


# ------------------------------------------------------------------ golden values


def test_values_compiled():
  arrays = _rows(0)
  every = lambda *arrays: [_loss(config, *arrays) for config in TIGHT]
  for config, found, expected in zip(TIGHT, jax.jit(every)(*arrays), every(*arrays)):
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6, err_msg=str(config))
    for name in expected[1]:
      np.testing.assert_array_equal(found[1][name], expected[1][name])


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_values(config):
  arrays = _rows(0)
  found, metrics = _loss(config, *arrays)
  logprobs, old, advantages, mask = map(np.float64, arrays)
  expected = _expected(config, logprobs, logprobs, old, advantages, mask)
  np.testing.assert_allclose(np.where(mask > 0, found, 0), expected, rtol=1e-5, atol=1e-7)
  for name, value in metrics.items():
    assert value.shape == mask.shape and value.dtype == bool, name
    assert not np.asarray(value)[mask == 0].any(), name


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
def test_gradients(config):
  arrays = _rows(1)
  weight = np.random.default_rng(2).normal(size=arrays[0].shape)
  found = jax.grad(
    lambda x: (jnp.where(arrays[3] > 0, _loss(config, x, *arrays[1:])[0], 0) * weight).sum()
  )(arrays[0])
  held, old, advantages, mask = map(np.float64, arrays)
  expected = reference.gradient(
    lambda x: (_expected(config, x, held, old, advantages, mask) * weight).sum(), held
  )
  np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_only_the_log_probs_have_a_gradient(config):
  logprobs, *others = _rows(3)
  for index in (0, 1):

    def total(x):
      given = [x if i == index else other for i, other in enumerate(others)]
      return _loss(config, logprobs, *given)[0].sum()

    assert not np.asarray(jax.grad(total)(others[index])).any()


@pytest.mark.parametrize(
  'config',
  [PolicyLossConfig(), *TIGHT[:4], TIGHT[5]],
  ids=lambda c: f'{c.loss}-{c.ratio_level}-{c.delta}-{c.dual_clip}',
)
def test_the_bounds_that_bind_are_counted_on_their_side(config):
  logprobs, old, advantages, mask = _rows(4)
  _, metrics = _loss(config, logprobs, old, advantages, mask)
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
  # r = 10 with A = -2: PPO 20, dual clip at 3 holds it at 6, delta at 4 at 8; A = 2 is clipped.
  logprobs, old = jnp.log(jnp.array([[10.0, 10.0]])), jnp.zeros((1, 2))
  advantages, mask = jnp.array([[-2.0, 2.0]]), jnp.ones((1, 2))
  for config, bad in (
    (PolicyLossConfig(), 20),
    (PolicyLossConfig(dual_clip=3.0), 6),
    (PolicyLossConfig(delta=4.0), 8),
  ):
    found, metrics = _loss(config, logprobs, old, advantages, mask)
    np.testing.assert_allclose(found, [[bad, -2.56]], rtol=1e-6)
    assert metrics['clip_ratio/high_mean'].tolist() == [[False, True]]


def test_the_upper_bound_of_cispo_is_a_level():
  logprobs, old = jnp.log(jnp.array([[4.0, 6.0]])), jnp.zeros((1, 2))
  gradient = jax.grad(
    lambda x: _loss(PolicyLossConfig(loss='cispo'), x, old, jnp.ones((1, 2)), jnp.ones((1, 2)))[
      0
    ].sum()
  )(logprobs)
  np.testing.assert_allclose(gradient, [[-4.0, -5.0]], rtol=1e-6)


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
  logprobs, _, advantages, mask = _rows(6)
  config = PolicyLossConfig(loss=loss, ratio_level=level)
  gradient = jax.grad(
    lambda x: masked.over_tokens(_loss(config, x, logprobs, advantages, mask)[0], mask).total
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
  logprobs, _, advantages, mask = _rows(7)
  advantages = np.broadcast_to(advantages[:, :1], mask.shape)
  config = PolicyLossConfig(loss=loss, ratio_level=level)
  gradient = jax.grad(
    lambda x: (
      masked.AGGREGATIONS[aggregation](
        _loss(config, x, logprobs, advantages, mask)[0], mask, masked.Sizes()
      ).total
    )
  )(logprobs)
  lengths = np.maximum(mask.sum(1, keepdims=True), 1)
  np.testing.assert_allclose(gradient, -advantages * mask / lengths**power, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
@pytest.mark.parametrize('G', [2, 4])
def test_rloo_and_centred_advantages_differ_by_a_factor(aggregation, G):
  logprobs, old, _, mask = _rows(8, lengths=(3, 6, 2, 5, 1, 4, 6, 6))
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
          _loss(PolicyLossConfig(), x, old, advantages, mask)[0], mask, sizes
        ).total
      )
    )(logprobs)

  np.testing.assert_allclose(
    gradient(rewards - others), gradient(centred) * G / (G - 1), rtol=1e-5, atol=1e-7
  )


# ------------------------------------------------------------------ aggregations


GROUP = np.array([0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize('name', masked.AGGREGATIONS)
def test_aggregations_and_their_gradients(name):
  values, _, _, mask = _rows(9)
  sizes = masked.Sizes(length=11, group_tokens=masked.tokens_of_groups(mask, GROUP))
  mean = lambda x: masked.means({'a': masked.AGGREGATIONS[name](x, mask, sizes)})['a']
  function = lambda x: reference.aggregate(name, x, mask, length=11, group=list(GROUP))
  np.testing.assert_allclose(mean(values), function(np.float64(values)), rtol=2e-6)
  np.testing.assert_allclose(
    jax.grad(mean)(values), reference.gradient(function, values), rtol=1e-5, atol=1e-8
  )


def test_the_sum_over_sequences_and_the_mean_over_prompts_by_hand():
  values = jnp.array([[1.0, 2.0, 9.0], [5.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
  weights = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
  assert masked.over_sequences_sum(values, weights) == (8.0, 2.0)
  tokens = masked.tokens_of_groups(weights, np.array([0, 0, 1]))
  assert tokens.tolist() == [3, 3, 0]
  found = masked.over_prompts(values, weights, tokens)
  np.testing.assert_allclose(found, (8 / 3, 1.0), rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(tuple(masked.AGGREGATIONS)),
  st.integers(0, 1000),
  st.lists(st.integers(0, 2), min_size=6, max_size=6),
  st.permutations(range(6)),
  st.sampled_from((0, 3)),
)
def test_a_step_cut_anyhow_has_the_same_sums(name, seed, part, order, extra):
  values, _, _, mask = _rows(seed)
  tokens = masked.tokens_of_groups(mask, GROUP)
  aggregate = lambda rows, pad: masked.AGGREGATIONS[name](
    np.pad(values[rows], ((0, 0), (0, pad)), constant_values=np.nan),
    np.pad(mask[rows], ((0, 0), (0, pad))),
    masked.Sizes(11, tokens[rows]),
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
  found = masked.means(
    {
      name: masked.AGGREGATIONS[name](values, mask, sizes)
      for name in ('token_mean', 'sequence_mean', 'constant', 'prompt_mean')
    }
  )
  np.testing.assert_allclose(list(found.values()), values.mean(), rtol=1e-5)


@pytest.mark.parametrize('name', masked.AGGREGATIONS)
def test_no_token_at_all_gives_sums_of_zero(name):
  sizes = masked.Sizes(length=4, group_tokens=np.zeros(2, np.float32))
  values, mask = np.full((2, 3), np.nan, np.float32), np.zeros((2, 3), np.float32)
  function = lambda x: masked.AGGREGATIONS[name](x, mask, sizes)
  assert tuple(map(float, function(values))) == (0, 0)
  assert not np.asarray(jax.grad(lambda x: function(x).total)(values)).any()


@pytest.mark.parametrize('name, missing', [('constant', 'length'), ('prompt_mean', 'group_tokens')])
def test_an_aggregation_says_what_it_was_not_told(name, missing):
  with pytest.raises(ValueError, match=missing):
    masked.AGGREGATIONS[name](jnp.ones((1, 2)), jnp.ones((1, 2)), masked.Sizes())


# ------------------------------------------------------------------ what must not matter, extremes


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_nan_where_nothing_counts_is_never_read(config):
  arrays = _rows(10)
  mask = arrays[3]

  def total(logprobs, old, advantages):
    return masked.over_tokens(_loss(config, logprobs, old, advantages, mask)[0], mask).total

  clean = jax.value_and_grad(total)(*arrays[:3])
  dirty = jax.value_and_grad(total)(*(np.where(mask > 0, x, np.nan) for x in arrays[:3]))
  for a, b in zip(clean, dirty):
    np.testing.assert_array_equal(a, b)


@settings(max_examples=15, deadline=None)
@given(
  st.sampled_from(CONFIGS), st.integers(0, 1000), st.permutations(range(6)), st.sampled_from((0, 3))
)
def test_padding_and_the_order_of_rows_change_nothing(config, seed, order, extra):
  arrays = _rows(seed)
  order = np.array(order)
  wide = [np.pad(x[order], ((0, 0), (0, extra))) for x in arrays]
  found = np.asarray(_loss(config, *wide)[0])[:, : arrays[0].shape[1]]
  expected = np.asarray(_loss(config, *arrays)[0])[order]
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('config', CONFIGS, ids=NAMES)
@pytest.mark.parametrize('shape, far', [((1, 1), 1e4), ((2, 5), -1e4), ((2, 5), 21.0)])
def test_extremes_stay_finite(config, shape, far):
  mask = np.ones(shape, np.float32)
  mask[1:] = 0
  advantages = np.resize(np.float32([-1, 0, 1]), shape)
  value, gradient = jax.value_and_grad(
    lambda x: (
      masked.over_tokens(
        _loss(config, x, np.full(shape, -5.0 - far, np.float32), advantages, mask)[0], mask
      ).total
    )
  )(np.full(shape, -5.0, np.float32))
  assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize('config', PLAIN, ids=NAMES[: len(PAIRS)])
def test_all_masked_rows_give_nothing(config):
  logprobs, old, advantages, mask = _rows(11)
  value, gradient = jax.value_and_grad(
    lambda x: masked.over_tokens(_loss(config, x, old, advantages, 0 * mask)[0], 0 * mask).total
  )(logprobs)
  assert value == 0 and not np.asarray(gradient).any()


def test_shapes_that_differ_are_refused():
  ones = jnp.ones((1, 2))
  with pytest.raises(ValueError, match=r'\(1, 2\).*\(1, 3\)'):
    LOSSES['clip'](ones, ones, ones, jnp.ones((1, 3)), ones, config=PolicyLossConfig())


# ------------------------------------------------------------------ choices


def test_every_loss_is_in_the_table_and_every_entry_exists():
  assert set(SUPPORTED) == set(LOSSES)
  for levels in SUPPORTED.values():
    assert levels and set(levels) <= set(importance_ratios.NAMES)
    for aggregations in levels.values():
      assert aggregations and set(aggregations) <= set(masked.AGGREGATIONS)
  assert set(policy_losses.ANCHORED_AT_SAMPLER) <= set(LOSSES)


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('level', importance_ratios.NAMES)
@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
def test_a_combination_is_meant_or_refused_with_a_reason(loss, level, aggregation):
  found = incompatibilities(loss, level, aggregation)
  assert bool(found) == (aggregation not in SUPPORTED[loss].get(level, ()))
  assert all(loss in reason and 'need one of' in reason for reason in found)


@pytest.mark.parametrize(
  'loss, level, aggregation, says',
  [
    ('clip', 'sequence', 'token_mean', 'long answers more'),
    ('gmpo', 'sequence', 'sequence_mean', 'mean over the sequence itself'),
    ('cispo', 'none', 'token_mean', 'no bound ever binds'),
    ('policy_gradient', 'token', 'token_mean', 'unclipped'),
    ('luspo', 'sequence', 'sequence_mean', '1 / length'),
  ],
)
def test_reasons(loss, level, aggregation, says):
  assert says in incompatibilities(loss, level, aggregation)[0]


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'loss': 'ppo'}, "loss='ppo'"),
    ({'ratio_level': 'word'}, "ratio_level='word'"),
    ({'clip_low': 1.5}, 'clip_low=1.5'),
    ({'clip_high': -0.1}, 'clip_high=-0.1'),
    ({'dual_clip': 1.2}, 'above 1 + clip_high=1.28'),
    ({'delta': 1.0}, 'delta=1.0'),
    ({'delta': 4.0, 'dual_clip': 3.0}, 'set one to 0'),
    ({'loss': 'cispo', 'cispo_high_level': 0.28}, 'largest weight itself'),
    ({'cispo_low_width': 2.0}, 'cispo_low_width=2.0'),
    ({'sapo_tau_positive': 0.0}, 'sapo_tau'),
    ({'dppo_low': 0.0}, 'dppo_low=0.0'),
  ],
)
def test_settings_out_of_range_are_named(changes, says):
  problems = PolicyLossConfig(**changes).validate()
  assert len(problems) == 1 and says in problems[0]


def test_published_widths_unless_given():
  assert PolicyLossConfig().validate() == []
  assert clip_widths(PolicyLossConfig()) == (0.2, 0.28)
  gspo = PolicyLossConfig(ratio_level='sequence')
  assert clip_widths(gspo) == (3e-4, 4e-4)
  assert clip_widths(dataclasses.replace(gspo, clip_low=0.1)) == (0.1, 4e-4)
  assert set(policy_losses.DEFAULT_WIDTHS) <= set(PAIRS)
  assert policy_loss_config.incompatibilities('clip', 'token', 'token_mean') == []
