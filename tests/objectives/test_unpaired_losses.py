"""KTO and AOT against float64 references in plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_policy import gradient as numeric_gradient
from reference_policy import log_sigma, sigma

from rft_jax.objectives import unpaired_losses
from rft_jax.objectives.masked import Weighted
from rft_jax.objectives.preference_pairs import over_pairs
from rft_jax.objectives.unpaired_losses import KtoConfig


def test_kto_golden_with_its_gradient():
  config = KtoConfig(beta=0.2, desirable_weight=1.5, undesirable_weight=0.5)
  x, good = np.array([1.0, -2.0, 3.0, 0.0]), np.array([True, True, False, False])
  z = 0.4

  def total(x):
    value = 0.0
    for log_ratio, is_good in zip(x, good):
      if is_good:
        value += 1.5 * (1 - sigma(0.2 * (log_ratio - z)))
      else:
        value += 0.5 * (1 - sigma(0.2 * (z - log_ratio)))
    return value

  with jax.enable_x64(True):
    loss = lambda x, z: unpaired_losses.kto(x, good, z, config=config).sum()
    value, (x_gradient, z_gradient) = jax.value_and_grad(loss, (0, 1))(jnp.array(x), jnp.array(z))
  np.testing.assert_allclose(value, total(x), rtol=1e-12)
  np.testing.assert_allclose(x_gradient, numeric_gradient(total, x, step=1e-5), rtol=1e-6)
  assert float(z_gradient) == 0


def test_the_reference_point_of_kto_is_never_negative_and_needs_other_prompts():
  def point(*sums):
    return float(unpaired_losses.kto_reference_point(Weighted(*map(jnp.float32, sums))))

  assert [point(6, 3), point(-6, 3), point(0, 0)] == [2.0, 0.0, 0.0]
  assert (unpaired_losses.mismatched_prompts(3) != np.arange(3)).all()
  with pytest.raises(ValueError, match='need 2'):
    unpaired_losses.mismatched_prompts(1)


def test_aot_compares_quantiles_and_ignores_absent_pairs():
  better, worse = np.array([3.0, np.nan, -1.0, 0.5]), np.array([0.0, np.nan, 2.0, -4.0])
  present = np.array([1.0, 0.0, 1.0, 1.0])

  def total(better):
    quantiles = zip(sorted(better[present > 0]), sorted(worse[present > 0]))
    return sum(
      -0.9 * log_sigma(0.3 * (b - w)) - 0.1 * log_sigma(0.3 * (w - b)) for b, w in quantiles
    )

  def loss(x):
    return over_pairs(
      *unpaired_losses.aot(x, jnp.array(worse), jnp.array(present), beta=0.3, label_smoothing=0.1)
    )

  with jax.enable_x64(True):
    sums = loss(jnp.array(better))
    gradient = jax.grad(lambda x: loss(x).total)(jnp.array(better))
  np.testing.assert_allclose(sums, (total(better), 3.0), rtol=1e-12)
  expected = numeric_gradient(total, np.nan_to_num(better), step=1e-5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_huge_log_ratios_stay_finite():
  x = jnp.array([1e4, -1e4, 0.0])
  kto = lambda x: unpaired_losses.kto(
    x, jnp.array([True, False, True]), 1e4, config=KtoConfig()
  ).sum()
  aot = lambda x: unpaired_losses.aot(x, -x, jnp.ones(3), beta=0.1)[0].sum()
  for loss in (kto, aot):
    value, gradient = jax.value_and_grad(loss)(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_settings_out_of_range_are_named():
  assert KtoConfig(beta=0).validate() == ['beta=0, need > 0']
