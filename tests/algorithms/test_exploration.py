"""The gradient of the entropy, the bonus on it, and the tokens that exploration chooses."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.objectives import entropy, masked
from rft_jax.objectives.entropy import EntropyConfig, exploration
from rft_jax.objectives.logprobs import TokenStatistics, token_statistics
from rft_jax.objectives.off_policy import CorrectionConfig
from rft_jax.objectives.policy_loss_config import PolicyLossConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.types import Batch

# ------------------------------------------------------------------ the gradient


def _inputs(B=2, T=5, D=6, V=11):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(B, T, D)),
    2 * rng.normal(size=(D, V)),
    rng.integers(0, V - 2, (B, T)),
    rng.normal(size=(2, B, T)),
  )


def _plain(hidden, head, targets, by, temperature, valid):
  """The weighted sum of log-probs and entropies, as one writes it, in any precision."""
  table = jax.nn.log_softmax((hidden @ head)[..., :valid] / temperature)
  chosen = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
  return (by[0] * chosen - by[1] * (jnp.exp(table) * table).sum(-1)).sum()


@pytest.mark.parametrize('which', [(0, 1), (1, 1)])  # a loss of entropy alone, and of both
@pytest.mark.parametrize('temperature', [1.0, 0.6])
@pytest.mark.parametrize('chunk_elements', [40, 2**22])
def test_entropy_has_its_gradient(monkeypatch, chunk_elements, temperature, which):
  monkeypatch.setattr('rft_jax.objectives.logprobs.CHUNK_ELEMENTS', {'cpu': chunk_elements})
  hidden, head, targets, by = _inputs()
  by, valid = by * np.array(which)[:, None, None], head.shape[1] - 2

  def ours(hidden, head):
    found = token_statistics(
      hidden, head, jnp.int32(targets), temperature=jnp.float32(temperature), valid_vocab=valid
    )
    both = zip(which, by, (found.logprobs, found.entropy))
    return sum((weights * values).sum() for wanted, weights, values in both if wanted)

  with jax.enable_x64(True):
    exact = jax.grad(_plain, (0, 1))(hidden, head, targets, by, temperature, valid)
  found = jax.jit(jax.grad(ours, (0, 1)))(jnp.float32(hidden), jnp.float32(head))
  for a, b in zip(found, exact):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
  assert not np.asarray(found[1])[:, valid:].any()  # ids ruled out


def test_entropy_of_a_certain_policy_has_a_finite_gradient():
  hidden, head = jnp.ones((1, 1, 1)), jnp.float32([[300.0, 0.0, -300.0]])
  gradient = jax.grad(
    lambda w: token_statistics(
      hidden, w, jnp.zeros((1, 1), jnp.int32), temperature=0.1, valid_vocab=2
    ).entropy.sum()
  )
  assert (np.asarray(gradient(head)) == 0).all()


def test_a_loss_without_entropy_does_not_pay_for_its_gradient():
  hidden, head, targets, _ = _inputs()

  def flops(coefficient):
    def loss(hidden):
      found = token_statistics(
        hidden, jnp.float32(head), jnp.int32(targets), temperature=1.0, valid_vocab=11
      )
      value = found.logprobs.sum()
      if coefficient:
        value += coefficient * found.entropy.sum()
      return value, found.entropy.sum()  # as a metric, entropy is there in both

    return (
      jax.jit(jax.grad(loss, has_aux=True))
      .lower(jnp.float32(hidden))
      .compile()
      .cost_analysis()['flops']
    )

  per_logit = 10 * 11
  assert flops(0.1) >= flops(0.0) + 2 * per_logit


# ------------------------------------------------------------------ what a step is given


def _step(seed=0, B=40, T=50):
  rng = np.random.default_rng(seed)
  weights = np.float32(np.arange(T) < rng.integers(1, T + 1, B)[:, None])
  draw = lambda x: np.where(weights > 0, x, np.nan).astype(np.float32)  # padding is never read
  batch = Batch(
    None,
    np.ones(B // 4),
    np.zeros((B, T), np.int32),
    weights.sum(1),
    np.arange(B) // 4,
    weights,
    advantages=draw(rng.normal(size=(B, T))),
  )
  return batch, SimpleNamespace(
    logprobs=draw(-rng.exponential(2, (B, T))), entropy=draw(rng.exponential(1, (B, T)))
  )


def test_nothing_is_asked_for_by_default():
  batch, scored = _step()
  config = EntropyConfig()
  assert not (config.bonus or config.needs_scores or config.leaves_out_tokens)
  unchanged, coefficient, metrics = exploration(batch, scored, config, 0.5, None)
  assert unchanged is batch and coefficient == 0.5 and metrics == {}


def test_the_coefficient_of_a_target_is_carried_from_step_to_step():
  batch, scored = _step()
  H = float(np.nanmean(scored.entropy.astype(np.float64)))
  coefficient, applied = 0.0, []
  for target in (H + 1, H + 1, H + 1, H - 0.1, H + 1):
    result, coefficient, metrics = exploration(
      batch, scored, EntropyConfig(target=target, target_step=0.01), coefficient, None
    )
    assert (result.entropy_coef == np.float32(metrics['entropy_coef'])).all()
    applied.append(metrics['entropy_coef'])
  np.testing.assert_allclose(applied, [0, 0.01, 0.02, 0, 0.02], atol=1e-12)


def test_the_policy_loss_is_on_the_tokens_of_most_entropy():
  batch, scored = _step()
  given, _, metrics = exploration(batch, scored, EntropyConfig(top_share=0.2), 0.0, None)
  tokens = batch.loss_mask > 0
  chosen = np.sort(scored.entropy[tokens])[-int(np.ceil(0.2 * tokens.sum())) :]
  np.testing.assert_array_equal(np.sort(scored.entropy[given.token_loss_weights > 0]), chosen)
  np.testing.assert_allclose(metrics['policy_loss_share'], len(chosen) / tokens.sum(), rtol=1e-6)
  assert (given.loss_mask == batch.loss_mask).all()  # the denominators stay


def test_clip_cov_draws_from_seed_and_step_and_keeps_weights_there_are():
  batch, scored = _step()
  half = 0.5 * batch.loss_mask
  config = EntropyConfig(covariance='clip_cov', clip_cov_share=0.02)
  draw = lambda step: (
    exploration(
      batch._replace(token_loss_weights=half), scored, config, 0.0, np.random.default_rng([7, step])
    )[0].token_loss_weights
  )
  covariance = entropy.covariances(batch.advantages, scored.logprobs, batch.loss_mask)
  dropped = (draw(3) == 0) & (batch.loss_mask > 0)
  assert dropped.sum() == np.ceil(0.02 * batch.loss_mask.sum())
  assert ((covariance[dropped] > 1) & (covariance[dropped] < 5)).all()
  assert (draw(3)[~dropped] == half[~dropped]).all()
  assert (draw(3) == draw(3)).all() and (draw(3) != draw(4)).any()


def test_kl_cov_holds_the_largest():
  batch, scored = _step()
  given, _, metrics = exploration(
    batch, scored, EntropyConfig(covariance='kl_cov', kl_cov_share=0.01), 0.0, None
  )
  covariance = entropy.covariances(batch.advantages, scored.logprobs, batch.loss_mask)
  tokens = batch.loss_mask > 0
  assert given.kl_cov_mask.sum() == np.ceil(0.01 * tokens.sum()) and given.token_loss_weights is None
  assert covariance[given.kl_cov_mask > 0].min() >= covariance[tokens & (given.kl_cov_mask == 0)].max()
  np.testing.assert_allclose(metrics['entropy_covariance'], covariance[tokens].mean())


def test_a_step_without_tokens_is_left_alone():
  batch, scored = _step()
  empty = batch._replace(loss_mask=0 * batch.loss_mask)
  config = EntropyConfig(target=0.3, top_share=0.2, covariance='clip_cov')
  assert exploration(empty, scored, config, 0.5, None) == (empty, 0.5, {})


# ------------------------------------------------------------------ in the loss


def _terms(config, batch, logprobs, entropies):
  statistics = TokenStatistics(logprobs, entropies, logprobs > 0)
  return policy_objective(statistics, batch, config=config, max_new_tokens=50)


def _value(config, batch, logprobs, entropies):
  terms, _ = _terms(config, batch, logprobs, entropies)
  return sum(term.coefficient * term.sum.total / term.sum.weight for term in terms.values())


def test_the_bonus_is_the_coefficient_times_the_mean_entropy():
  batch, scored = _step()
  clean = jnp.nan_to_num(scored.entropy)
  config = ObjectiveConfig(entropy=EntropyConfig(coef=0.03))
  value = functools.partial(_value, config, batch, scored.logprobs)
  plain = _value(ObjectiveConfig(), batch, scored.logprobs, clean)
  np.testing.assert_allclose(
    value(scored.entropy), plain - 0.03 * np.nanmean(scored.entropy), rtol=1e-5
  )
  gradient = jax.grad(value)(clean)
  np.testing.assert_allclose(gradient, -0.03 * batch.loss_mask / batch.loss_mask.sum(), rtol=1e-5)
  adapted = ObjectiveConfig(entropy=EntropyConfig(target=1.0))
  same = batch._replace(entropy_coef=np.full(len(batch.loss_mask), 0.03, np.float32))
  np.testing.assert_allclose(_value(adapted, same, scored.logprobs, clean), value(clean), rtol=1e-6)


def test_held_tokens_are_pulled_back_and_left_out_tokens_have_no_gradient():
  batch, scored = _step(B=4, T=6)
  old = jnp.nan_to_num(scored.logprobs)
  held = np.zeros_like(batch.loss_mask)
  held[0, 0] = 1
  batch = batch._replace(old_logprobs=old, held=held, advantages=0 * batch.loss_mask)
  config = ObjectiveConfig(entropy=EntropyConfig(covariance='kl_cov', kl_cov_coef=2.0))
  gradient = jax.grad(lambda x: _value(config, batch, x, 0 * old))(old + 0.25)
  expected = 2.0 * held / batch.loss_mask.sum()
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)
  keep = batch.loss_mask.copy()
  keep[1] = 0
  left = batch._replace(kl_cov_mask=None, token_loss_weights=keep, advantages=batch.loss_mask)
  gradient = jax.grad(lambda x: _value(ObjectiveConfig(), left, x, 0 * old))(old)
  np.testing.assert_allclose(gradient, -keep / batch.loss_mask.sum(), rtol=1e-6)


def test_answers_that_the_policy_has_left_are_masked_where_they_are_bad():
  sampler = np.full((3, 4), -1.0, np.float32)
  weights = np.ones_like(sampler)
  advantages = np.float32([[-1] * 4, [1] * 4, [-1] * 4])
  logprobs = jnp.float32(sampler - np.array([[0.9], [0.9], [0.1]]))
  batch = Batch(
    None,
    None,
    np.zeros((3, 4)),
    None,
    np.arange(3),
    weights,
    advantages=advantages,
    old_logprobs=sampler,
    sampler_logprobs=sampler,
  )
  limit = lambda value: ObjectiveConfig(correction=CorrectionConfig(stale_limit=value))
  gradient = lambda config: jax.grad(lambda x: _value(config, batch, x, 0 * x))(logprobs)
  off, on = gradient(limit(0.0)), gradient(limit(0.5))
  np.testing.assert_array_equal(on[0], 0)
  np.testing.assert_array_equal(on[1:], off[1:])
  metrics = masked.means(_terms(limit(0.5), batch, logprobs, 0 * logprobs)[1])
  np.testing.assert_allclose(metrics['sampling/stale_share'], 1 / 3)
  assert 'sampling/stale_share' not in _terms(limit(0.0), batch, logprobs, 0 * logprobs)[1]


def test_a_maximum_is_compared_and_not_added():
  parts = [
    {'a': masked.Weighted(1.0, 2.0), 'b': masked.Maximum(value)} for value in (3.0, 5.0, 4.0)
  ]
  assert masked.means(masked.add_sums(parts)) == {'a': 0.5, 'b': 5.0}


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'coef': 0.1, 'target': 0.2}, 'the coefficient is adapted'),
    ({'coef': -0.1}, 'punishes exploring'),
    ({'top_share': 0.0}, 'top_share=0.0'),
    ({'top_share': 1.2}, 'top_share=1.2'),
    ({'covariance': 'cov'}, "covariance='cov'"),
    ({'target': -1.0}, 'target=-1.0'),
    ({'clip_cov_low': 6.0}, 'low < high'),
    ({'kl_cov_share': 0.0}, 'kl_cov_share=0.0'),
    ({'kl_cov_coef': 0.0}, 'kl_cov_coef=0.0'),
    ({'target_step': 0.0}, 'target_step=0.0'),
  ],
)
def test_settings_are_refused_with_the_reason(changes, words):
  (problem,) = ObjectiveConfig(entropy=EntropyConfig(**changes)).validate()
  assert problem.startswith('entropy.') and words in problem


@pytest.mark.parametrize(
  'loss, level',
  [('clip', 'sequence'), ('gmpo', 'token'), ('luspo', 'sequence'), ('clip', 'product')],
)
def test_leaving_out_tokens_goes_with_losses_of_tokens(loss, level):
  aggregation = 'sequence_sum' if loss == 'luspo' else 'sequence_mean'
  make = lambda given: ObjectiveConfig(
    policy_loss=PolicyLossConfig(loss=loss, ratio_level=level),
    aggregation=aggregation,
    entropy=EntropyConfig(**given),
  )
  (problem,) = make({'top_share': 0.2}).validate()
  assert 'has a gradient by all tokens of its completion' in problem
  assert not make({'covariance': 'kl_cov'}).validate()


@pytest.mark.parametrize(
  'given, idle',
  [
    ({}, True),
    ({'kl_coef': 0.1}, False),
    ({'entropy': EntropyConfig(coef=0.1)}, False),
    ({'entropy': EntropyConfig(target=0.1)}, False),
    ({'entropy': EntropyConfig(covariance='kl_cov')}, False),
    ({'entropy': EntropyConfig(covariance='clip_cov', top_share=0.5)}, True),
  ],
)
def test_groups_without_advantage_are_idle_only_where_no_term_reads_them(given, idle):
  assert ObjectiveConfig(**given).skip_zero_advantages == idle
