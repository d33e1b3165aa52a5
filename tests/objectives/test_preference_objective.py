"""The preference objective: settings, reward metrics, and missing arguments."""

import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives.masked import means
from rft_jax.objectives.preference_objective import PreferenceConfig, pair_losses, reward_metrics
from rft_jax.objectives.preference_pairs import over_pairs

CHOSEN, REJECTED = np.array([0, 3, 0]), np.array([1, 2, 4])


def inputs(seed=0, B=5, T=4):
  """Log-probs of the policy and of the reference, and loss mask; NaN on padding."""
  rng = np.random.default_rng(seed)
  loss_mask = (np.arange(T) < rng.integers(1, T + 1, (B, 1))).astype(float)
  logprobs = -rng.exponential(1.5, (2, B, T)) - 0.05
  return *np.where(loss_mask > 0, logprobs, np.nan), loss_mask


def test_reward_metrics_have_the_names_of_trl():
  logprobs, reference, loss_mask = inputs(seed=3)
  pairs = pair_losses(logprobs, reference, loss_mask, CHOSEN, REJECTED, config=PreferenceConfig())
  x = [np.nansum(logprobs[row] - reference[row]) for row in range(5)]
  metrics = means(reward_metrics(pairs))
  w, r = 0.1 * np.take(x, CHOSEN), 0.1 * np.take(x, REJECTED)
  for name, expected in {'chosen': w, 'rejected': r, 'margins': w - r, 'accuracies': w > r}.items():
    np.testing.assert_allclose(metrics[f'rewards/{name}'], expected.mean(), rtol=1e-5)


def test_without_pairs_loss_and_metrics_are_0():
  empty = np.zeros(0, np.int32)
  pairs = pair_losses(*map(jnp.float32, inputs()), empty, empty, config=PreferenceConfig())
  metrics = means({'loss': over_pairs(pairs.losses, pairs.present), **reward_metrics(pairs)})
  assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(loss='dpop'), 'need one of'),
    (dict(beta=0.0), 'beta=0.0'),
    (dict(label_smoothing=0.5), 'below 0.5'),
    (dict(loss='sppo', label_smoothing=0.1), 'has no effect'),
    (dict(loss='exo'), 'need > 0'),
    (dict(divergence='kl'), 'need one of'),
    (dict(loss='bco', divergence='js'), 'leave reverse_kl'),
    (dict(divergence='alpha', alpha=1.0), 'divides by 0'),
    (dict(loss='orpo'), 'nll_coef'),
    (dict(nll_coef=-1.0), 'nll_coef'),
  ],
)
def test_invalid_settings_are_refused_with_a_reason(changes, message):
  assert any(message in problem for problem in PreferenceConfig(**changes).validate())


def test_a_missing_reference_raises():
  logprobs, _, loss_mask = map(jnp.float32, inputs())
  with pytest.raises(ValueError, match='needs reference_logprobs'):
    pair_losses(logprobs, None, loss_mask, CHOSEN, REJECTED, config=PreferenceConfig())
