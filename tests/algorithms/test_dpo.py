"""DPO: loss and gradient of the update against plain loops, and held-out pairs."""

import jax
import numpy as np
import pytest
from preference_examples import examples, model, norm, plain_logprobs, sgd_update, stage_context

from rft_jax.algorithms import dpo
from rft_jax.bootstrap import intervals
from rft_jax.objectives.preference_objective import PreferenceConfig
from rft_jax.types import TrainState

# {name: (config, formula of the log-ratios (or log-probs) and lengths of chosen and rejected)}
LOSSES = {
  'dpo': (
    PreferenceConfig(beta=0.3),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-0.3 * (x_w - x_l))),
  ),
  'ipo_mean': (
    PreferenceConfig(loss='ipo_mean', beta=0.3),
    lambda x_w, x_l, n_w, n_l: (x_w / n_w - x_l / n_l - 1 / 0.6) ** 2,
  ),
  'hinge': (
    PreferenceConfig(loss='hinge', beta=0.3),
    lambda x_w, x_l, n_w, n_l: max(0.0, 1 - 0.3 * (x_w - x_l)),
  ),
  'simpo': (
    PreferenceConfig(loss='simpo', beta=2.0, gamma=0.7),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-(2.0 * (x_w / n_w - x_l / n_l) - 0.7))),
  ),
  'cpo': (
    PreferenceConfig(loss='cpo', beta=0.05, nll_coef=0.5),
    lambda x_w, x_l, n_w, n_l: np.log1p(np.exp(-0.05 * (x_w - x_l))),
  ),
}


def plain_loss(decoder, config, formula):
  """Returns (the loss of the step, its accuracy), computed pair by pair."""
  losses, correct, nll = [], [], []
  for example in examples():
    answers = (example.target_ids, example.rejected_ids)
    logprobs = [plain_logprobs(decoder, example.prompt_ids, answer) for answer in answers]
    sums = [token_logprobs.sum() for token_logprobs in logprobs]
    if config.loss not in ('simpo', 'cpo'):
      reference = [plain_logprobs(model(2), example.prompt_ids, answer).sum() for answer in answers]
      sums = [x - y for x, y in zip(sums, reference)]
    losses.append(formula(*sums, *map(len, answers)))
    lengths = map(len, answers) if config.loss in ('simpo', 'ipo_mean') else (1, 1)
    correct.append(np.subtract(*[x / n for x, n in zip(sums, lengths)]) > 0)
    nll += list(-logprobs[0])
  return np.mean(losses) + config.nll_coef * np.mean(nll), np.mean(correct)


@pytest.mark.full
@pytest.mark.parametrize('name', LOSSES)
def test_loss_and_gradient_are_those_of_a_plain_loop_in_any_microbatches(name):
  config, formula = LOSSES[name]
  needs_reference = dpo.REQUIREMENTS.reference({'dpo': dpo.DpoConfig(preference=config)})
  assert needs_reference == (name not in ('simpo', 'cpo'))
  algorithm = dpo.make(
    stage_context(
      dpo=dpo.DpoConfig(preference=config, pairs_per_step=7),
      reference_model=model(2) if needs_reference else None,
    )
  )
  batch = algorithm.collect(TrainState(0, model(), None), 0).batch
  assert (batch.reference_logprobs is not None) == needs_reference
  gradient, metrics = sgd_update(algorithm.loss, batch)
  expected, accuracy = plain_loss(model(), config, formula)
  assert metrics['loss'] == pytest.approx(expected, rel=2e-5)
  assert metrics['rewards/accuracies'] == pytest.approx(accuracy)
  assert metrics['rewards/margins'] == pytest.approx(
    metrics['rewards/chosen'] - metrics['rewards/rejected'], rel=1e-4, abs=1e-5
  )
  size, distance = norm(gradient), 3e-3
  loss_along_gradient = lambda sign: plain_loss(
    jax.tree.map(
      lambda w, g: w + np.float32(sign * distance / size) * g.astype(np.float32), model(), gradient
    ),
    config,
    formula,
  )[0]
  slope = (loss_along_gradient(1) - loss_along_gradient(-1)) / (2 * distance)
  assert slope == pytest.approx(size, rel=5e-3)
  in_parts, metrics_in_parts = sgd_update(algorithm.loss, batch, microbatch_tokens=1)
  assert metrics_in_parts['loss'] == pytest.approx(metrics['loss'], rel=1e-5)
  for a, b in zip(jax.tree.leaves(in_parts), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, atol=2e-5 * size)


def test_held_out_accuracy_is_a_half_for_the_reference_and_has_an_interval():
  algorithm = dpo.make(stage_context(dpo=dpo.DpoConfig(), reference_model=model(2)))
  columns = algorithm.held_out_metrics(TrainState(0, model(2), None))
  assert columns['preference/accuracy'].tolist() == [0.5] * 5
  columns = algorithm.held_out_metrics(TrainState(0, model(1), None))
  margins = []
  for e in examples(5, seed=9):
    log_ratio = lambda ids: (
      plain_logprobs(model(1), e.prompt_ids, ids) - plain_logprobs(model(2), e.prompt_ids, ids)
    ).sum()
    margins.append(0.1 * (log_ratio(e.target_ids) - log_ratio(e.rejected_ids)))
  np.testing.assert_allclose(columns['preference/margin'], margins, atol=1e-4)
  assert columns['preference/accuracy'].tolist() == [float(margin > 0) for margin in margins]
  accuracy = intervals(columns)['preference/accuracy']
  assert accuracy['low'] < accuracy['mean'] == np.mean(np.array(margins) > 0) < accuracy['high']
