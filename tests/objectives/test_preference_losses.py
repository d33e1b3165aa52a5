"""Preference losses against a float64 reference in plain loops, and facts that hold for all."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies

from rft_jax.objectives import preference_losses, preference_pairs, unpaired_losses
from rft_jax.objectives.masked import Weighted, means
from rft_jax.objectives.preference_losses import LOSSES, NEEDS, PreferenceConfig, preference
from rft_jax.objectives.preference_pairs import chosen_nll, over_pairs, pair, sequence_sums
from rft_jax.objectives.unpaired_losses import KtoConfig

SETTINGS = {
  'cdpo': dict(loss='dpo', label_smoothing=0.2),
  'robust': dict(label_smoothing=0.1),
  'exo': dict(label_smoothing=1e-3),
  'simpo': dict(beta=2.0, gamma=0.7),
  'cpo': dict(label_smoothing=0.1, nll_coef=1.0),
  'orpo': dict(beta=0.3, nll_coef=1.0),
  'dpo_mean': dict(beta=3.0),
  'forward_kl': dict(loss='dpo', divergence='forward_kl'),
  'js': dict(loss='hinge', divergence='js'),
  'alpha': dict(loss='dpo_mean', divergence='alpha', alpha=0.3),
}
CASES = {
  name: PreferenceConfig(**{'loss': name, **SETTINGS.get(name, {})})
  for name in (*LOSSES, *SETTINGS)
}


# ------------------------------------------------------------------ the reference


def log_sigma(z):
  return -math.log1p(math.exp(-z)) if z > 0 else z - math.log1p(math.exp(z))


def sigma(z):
  return math.exp(log_sigma(z))


def reference_score(logprobs, reference, weights, row, config):
  """x of one row, by a loop over its tokens."""
  free = config.loss in ('simpo', 'cpo', 'orpo')
  total = length = 0.0
  for t in range(weights.shape[1]):
    if weights[row, t]:
      total += logprobs[row, t] - (0 if free else reference[row, t])
      length += 1
  a = config.alpha
  total = {
    'reverse_kl': lambda x: x,
    'forward_kl': lambda x: 1 - math.exp(-x),
    'js': lambda x: math.log(2 * math.exp(x) / (1 + math.exp(x))),
    'alpha': lambda x: (math.exp(x) ** (a - 1) - 1) / (a - 1),
  }[config.divergence](total)
  by_mean = config.loss in ('dpo_mean', 'ipo_mean', 'simpo', 'orpo')
  return total / length if by_mean else total


def reference_loss(w, r, config):
  """The table of formulas, one pair at a time."""
  b, e, h = config.beta, config.label_smoothing, config.beta * (w - r)
  odds = lambda x: math.exp(x) / (1 - math.exp(x))
  mu = sigma(h / config.tau)
  return {
    'dpo': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'dpo_mean': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'hinge': lambda: max(0.0, 1 - h),
    'ipo': lambda: (w - r - 1 / (2 * b)) ** 2,
    'ipo_mean': lambda: (w - r - 1 / (2 * b)) ** 2,
    'robust': lambda: (-(1 - e) * log_sigma(h) + e * log_sigma(-h)) / (1 - 2 * e),
    'exo': lambda: (
      sigma(h) * (log_sigma(h) - math.log(1 - e)) + sigma(-h) * (log_sigma(-h) - math.log(e))
    ),
    'nca': lambda: -log_sigma(b * w) - log_sigma(-b * w) / 2 - log_sigma(-b * r) / 2,
    'bco': lambda: -log_sigma(b * w) - log_sigma(-b * r),
    'sppo': lambda: (w - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
    'apo_zero': lambda: 1 - sigma(b * w) + sigma(b * r),
    'apo_down': lambda: sigma(b * w) + 1 - sigma(h),
    'discopop': lambda: (1 - mu) * -log_sigma(h) + mu * math.exp(-h),
    'simpo': lambda: -log_sigma(h - config.gamma),
    'cpo': lambda: -(1 - e) * log_sigma(h) - e * log_sigma(-h),
    'orpo': lambda: -b * log_sigma(math.log(odds(w)) - math.log(odds(r))),
  }[config.loss]()


def reference_sum(logprobs, reference, weights, chosen, rejected, config):
  score = lambda row: reference_score(logprobs, reference, weights, row, config)
  return sum(reference_loss(score(w), score(r), config) for w, r in zip(chosen, rejected))


def slopes(function, x, step=1e-5):
  """The gradient of a function of a float64 array, by central differences."""
  found = np.zeros_like(x)
  for place in np.ndindex(x.shape):
    up, down = x.copy(), x.copy()
    up[place] += step
    down[place] -= step
    found[place] = (function(up) - function(down)) / (2 * step)
  return found


def inputs(seed=0, B=5, T=4):
  """Log-probs, those of the reference, 0/1 weights; padding holds NaN."""
  rng = np.random.default_rng(seed)
  weights = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(float)
  poison = lambda x: np.where(weights > 0, x, np.nan)
  logprobs = -rng.exponential(1.5, (B, T)) - 0.05
  return poison(logprobs), poison(logprobs + 0.7 * rng.normal(size=(B, T))), weights


CHOSEN, REJECTED = np.array([0, 3, 0]), np.array([1, 2, 4])


# ------------------------------------------------------------------ golden values


@pytest.mark.parametrize('case', CASES)
def test_loss_and_gradient_are_those_of_the_formula(case):
  config = CASES[case]
  logprobs, reference, weights = inputs()
  total = lambda x: reference_sum(x, reference, weights, CHOSEN, REJECTED, config)
  with jax.enable_x64(True):

    def loss(x):
      return preference(
        x,
        jnp.array(reference),
        jnp.array(weights),
        jnp.array(CHOSEN),
        jnp.array(REJECTED),
        config=config,
      ).losses.sum()

    found, gradient = jax.value_and_grad(loss)(jnp.array(logprobs))
  np.testing.assert_allclose(found, total(logprobs), rtol=1e-12)
  np.testing.assert_allclose(gradient, slopes(total, np.nan_to_num(logprobs)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('case', CASES)
def test_float32_is_near_the_formula(case):
  logprobs, reference, weights = inputs(seed=1)
  found = preference(
    *map(jnp.float32, (logprobs, reference, weights)), CHOSEN, REJECTED, config=CASES[case]
  ).losses
  expected = reference_sum(logprobs, reference, weights, CHOSEN, REJECTED, CASES[case])
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found.sum(), expected, rtol=1e-5)


def test_every_loss_is_of_the_table_and_says_what_it_needs():
  assert set(LOSSES) == set(NEEDS)
  assert not [problem for config in CASES.values() for problem in config.validate()]


def test_chosen_nll_by_hand():
  logprobs = jnp.array([[-1.0, -2.0], [-5.0, jnp.nan], [-7.0, -7.0]])
  weights = jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
  assert chosen_nll(logprobs, weights, jnp.array([0, 1, 0, -1])) == (8.0, 3.0)


def test_kto_golden_with_its_gradient():
  config = KtoConfig(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
  x, good = np.array([1.0, -2.0, 3.0, 0.0]), np.array([True, True, False, False])
  z = 0.4

  def total(x):
    value = 0.0
    for one, is_good in zip(x, good):
      value += 1.5 * (1 - sigma(0.2 * (one - z))) if is_good else 0.5 * (1 - sigma(0.2 * (z - one)))
    return value

  with jax.enable_x64(True):
    loss = lambda x, z: unpaired_losses.kto(x, good, z, config=config).sum()
    found, (of_x, of_z) = jax.value_and_grad(loss, (0, 1))(jnp.array(x), jnp.array(z))
  np.testing.assert_allclose(found, total(x), rtol=1e-12)
  np.testing.assert_allclose(of_x, slopes(total, x), rtol=1e-6)
  assert float(of_z) == 0


def test_the_reference_point_of_kto_is_never_negative_and_needs_other_prompts():
  def point(*sums):
    return float(unpaired_losses.kto_reference_point(Weighted(*map(jnp.float32, sums))))

  assert [point(6, 3), point(-6, 3), point(0, 0)] == [2.0, 0.0, 0.0]
  assert (unpaired_losses.mismatched_prompts(3) != np.arange(3)).all()
  with pytest.raises(ValueError, match='need 2'):
    unpaired_losses.mismatched_prompts(1)


def test_aot_compares_quantiles_and_forgets_absent_pairs():
  better, worse = np.array([3.0, np.nan, -1.0, 0.5]), np.array([0.0, np.nan, 2.0, -4.0])
  present = np.array([1.0, 0.0, 1.0, 1.0])

  def total(better):
    better, low = sorted(better[present > 0]), sorted(worse[present > 0])
    return sum(
      -0.9 * log_sigma(0.3 * (b - a)) - 0.1 * log_sigma(0.3 * (a - b)) for b, a in zip(better, low)
    )

  def loss(x):
    return over_pairs(
      *unpaired_losses.aot(x, jnp.array(worse), jnp.array(present), beta=0.3, label_smoothing=0.1)
    )

  with jax.enable_x64(True):
    found = loss(jnp.array(better))
    gradient = jax.grad(lambda x: loss(x).total)(jnp.array(better))
  np.testing.assert_allclose(found, (total(better), 3.0), rtol=1e-12)
  np.testing.assert_allclose(gradient, slopes(total, np.nan_to_num(better)), rtol=1e-6)


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize('eps', [0.0, 0.2])
def test_dpo_at_the_reference_is_log_2_with_a_known_gradient(eps):
  logprobs, _, weights = inputs(seed=2)
  logprobs = jnp.float32(np.nan_to_num(logprobs))
  config = PreferenceConfig(beta=0.3, label_smoothing=eps)
  loss = lambda x: preference(
    x, logprobs, jnp.float32(weights), np.array([0]), np.array([1]), config=config
  ).losses.sum()
  found, gradient = jax.value_and_grad(loss)(logprobs)
  expected = np.zeros_like(weights)
  expected[0], expected[1] = -0.15 * (1 - 2 * eps) * weights[0], 0.15 * (1 - 2 * eps) * weights[1]
  np.testing.assert_allclose(found, math.log(2), rtol=1e-6)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_robust_undoes_flipped_labels_on_average():
  # with share eps of the labels flipped, the expected robust loss is the clean DPO loss
  x_w, x_l, eps = jnp.float32(1.3), jnp.float32(-0.4), 0.2
  config = PreferenceConfig(loss='robust', label_smoothing=eps)
  mean = (1 - eps) * LOSSES['robust'](x_w, x_l, config=config) + eps * LOSSES['robust'](
    x_l, x_w, config=config
  )
  np.testing.assert_allclose(mean, LOSSES['dpo'](x_w, x_l, config=PreferenceConfig()), rtol=1e-6)


@pytest.mark.parametrize('divergence', preference_losses.DIVERGENCES)
def test_every_divergence_is_0_with_slope_known_at_the_reference(divergence):
  function = lambda x: preference_losses.DIVERGENCES[divergence](x, 0.5)
  slope = 0.5 if divergence == 'js' else 1.0
  np.testing.assert_allclose(function(jnp.float32(0.0)), 0.0, atol=1e-7)
  np.testing.assert_allclose(jax.grad(function)(jnp.float32(0.0)), slope, rtol=1e-6)


def test_alpha_near_1_is_reverse_kl_and_0_is_forward_kl():
  x = jnp.linspace(-3, 3, 13)
  at = lambda name, alpha: preference_losses.DIVERGENCES[name](x, alpha)
  np.testing.assert_allclose(at('alpha', 0.999), x, atol=6e-3)
  np.testing.assert_allclose(at('alpha', 0.0), at('forward_kl', None), rtol=1e-6)


def test_log_odds_keep_their_digits_at_both_ends():
  x = np.array([-1e-7, -1e-3, -0.5, -0.6931, -0.6932, -5.0, -80.0])
  expected = [one - math.log(-math.expm1(one)) for one in x]
  np.testing.assert_allclose(
    preference_losses.log_odds(jnp.float32(x)), expected, rtol=2e-6, atol=1e-6
  )


def test_metrics_have_the_usual_names():
  logprobs, reference, weights = inputs(seed=3)
  found = preference(logprobs, reference, weights, CHOSEN, REJECTED, config=PreferenceConfig())
  x = [np.nansum(logprobs[row] - reference[row]) for row in range(5)]
  seen = means(preference_losses.reward_metrics(found))
  w, r = 0.1 * np.take(x, CHOSEN), 0.1 * np.take(x, REJECTED)
  for name, expected in {'chosen': w, 'rejected': r, 'margins': w - r, 'accuracies': w > r}.items():
    np.testing.assert_allclose(seen[f'rewards/{name}'], expected.mean(), rtol=1e-5)


# ------------------------------------------------------------------ invariances


def sums_of(case, logprobs, reference, weights, chosen, rejected):
  """Sum and number of pairs with the gradient, float64."""

  def loss(x):
    found = preference(
      x,
      jnp.array(reference),
      jnp.array(weights),
      jnp.array(chosen, int),
      jnp.array(rejected, int),
      config=CASES[case],
    )
    both = over_pairs(found.losses, found.present)
    return both.total, both.weight

  with jax.enable_x64(True):
    (total, weight), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array(logprobs))
    return float(total), float(weight), np.asarray(gradient)


@settings(max_examples=10, deadline=None)
@given(strategies.integers(0, 10**6), strategies.sampled_from(sorted(CASES)))
def test_padding_order_and_cuts_change_nothing(seed, case):
  rng = np.random.default_rng(seed)
  logprobs, reference, weights = inputs(seed)
  chosen, rejected = CHOSEN, REJECTED
  total, count, gradient = sums_of(case, logprobs, reference, weights, chosen, rejected)
  # columns and a row of padding, and pairs of it
  pad = lambda x, value: np.pad(x, [(0, 1), (0, 1)], constant_values=value)
  padded = sums_of(
    case,
    pad(logprobs, np.nan),
    pad(reference, np.nan),
    pad(weights, 0.0),
    [*chosen, -1, 5],
    [*rejected, -1, 0],
  )
  np.testing.assert_allclose(padded[:2], (total, count), rtol=1e-9)
  np.testing.assert_allclose(padded[2][:5, :4], gradient, rtol=1e-9, atol=1e-15)
  assert not padded[2][5:].any() and not padded[2][:, 4:].any()
  # rows in another order
  order = rng.permutation(5)
  place = np.argsort(order)
  moved = sums_of(
    case, logprobs[order], reference[order], weights[order], place[chosen], place[rejected]
  )
  np.testing.assert_allclose(moved[:2], (total, count), rtol=1e-9)
  np.testing.assert_allclose(moved[2][place], gradient, rtol=1e-9, atol=1e-15)
  # pairs in two parts
  parts = [
    sums_of(case, logprobs, reference, weights, chosen[cut], rejected[cut])
    for cut in (slice(0, 1), slice(1, 3))
  ]
  np.testing.assert_allclose(parts[0][0] + parts[1][0], total, rtol=1e-9)
  np.testing.assert_allclose(parts[0][2] + parts[1][2], gradient, rtol=1e-9, atol=1e-12)
  assert parts[0][1] + parts[1][1] == count == 3


# ------------------------------------------------------------------ extremes


@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('shift', [1e4, -1e4])
def test_huge_log_ratios_stay_finite(case, shift):
  # one token (T = 1), log-ratios of +-1e4 on either side, a masked row, a pair of padding
  reference = jnp.array([[-1.0], [-1.0], [jnp.nan], [-1.0]])
  logprobs = jnp.array([[shift], [-shift], [jnp.nan], [0.0]])
  weights = jnp.array([[1.0], [1.0], [0.0], [1.0]])

  def loss(x):
    found = preference(
      x, reference, weights, jnp.array([0, 2, 3, -1]), jnp.array([1, 0, 0, -1]), config=CASES[case]
    )
    assert found.present.tolist() == [1, 0, 1, 0]
    return over_pairs(found.losses, found.present).total

  found, gradient = jax.value_and_grad(loss)(logprobs)
  assert np.isfinite(found) and np.isfinite(gradient).all()
  assert gradient[2] == 0


def test_huge_values_stay_finite_in_unpaired_losses():
  x = jnp.array([1e4, -1e4, 0.0])
  kto = lambda x: unpaired_losses.kto(
    x, jnp.array([True, False, True]), 1e4, config=KtoConfig()
  ).sum()
  aot = lambda x: unpaired_losses.aot(x, -x, jnp.ones(3), beta=0.1)[0].sum()
  for loss in (kto, aot):
    found, gradient = jax.value_and_grad(loss)(x)
    assert np.isfinite(found) and np.isfinite(gradient).all()


def test_no_pairs_give_zero_over_zero_which_is_zero():
  none = np.zeros(0, np.int32)
  found = preference(*map(jnp.float32, inputs()), none, none, config=PreferenceConfig())
  seen = means(
    {'loss': over_pairs(found.losses, found.present), **preference_losses.reward_metrics(found)}
  )
  assert all(value == 0 for value in seen.values())


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(loss='dpop'), 'need one of'),
    (dict(beta=0.0), 'beta=0.0'),
    (dict(label_smoothing=0.5), 'below 0.5'),
    (dict(loss='sppo', label_smoothing=0.1), 'means nothing'),
    (dict(loss='exo'), 'need > 0'),
    (dict(divergence='kl'), 'need one of'),
    (dict(loss='bco', divergence='js'), 'leave reverse_kl'),
    (dict(divergence='alpha', alpha=1.0), 'divides by 0'),
    (dict(loss='orpo'), 'nll_coef'),
    (dict(nll_coef=-1.0), 'nll_coef'),
  ],
)
def test_meaningless_settings_are_refused_with_a_reason(changes, words):
  assert any(words in problem for problem in PreferenceConfig(**changes).validate())


def test_missing_reference_and_unequal_shapes_are_refused():
  logprobs, _, weights = map(jnp.float32, inputs())
  with pytest.raises(ValueError, match='needs reference_logprobs'):
    preference(logprobs, None, weights, CHOSEN, REJECTED, config=PreferenceConfig())
  with pytest.raises(ValueError, match='shapes differ'):
    sequence_sums(logprobs, weights[:1])
  with pytest.raises(ValueError, match='shapes differ'):
    pair(jnp.zeros(5), CHOSEN, REJECTED[:1])
  assert KtoConfig(beta=0).validate() == ['beta=0, need > 0']


def test_ranked_pairs_stay_inside_their_prompt():
  group, grades = [0, 0, 0, 1, 2, 2], [2.0, 1.0, 1.0, 9.0, np.nan, 1.0]
  chosen, rejected = preference_pairs.ranked_pairs(group, grades)
  assert list(zip(chosen, rejected)) == [(0, 1), (0, 2)]
