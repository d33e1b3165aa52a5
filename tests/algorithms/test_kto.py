"""KTO: loss and reference point against plain loops, mismatched pairs, held-out answers."""

import functools

import jax
import numpy as np
import pytest
from preference_examples import (
  examples,
  model,
  norm,
  plain_logprobs,
  score,
  sgd_update,
  stage_context,
)

from rft_jax.algorithms import kto
from rft_jax.objectives.unpaired_losses import KtoConfig
from rft_jax.types import Example, Item, TrainState


def log_ratio(policy, reference, prompt, answer):
  return (
    plain_logprobs(policy, prompt, answer).sum() - plain_logprobs(reference, prompt, answer).sum()
  )


@pytest.mark.full
def test_loss_and_reference_point_are_those_of_a_plain_loop_in_any_microbatches():
  config = KtoConfig(beta=0.2, desirable_weight=1.5, undesirable_weight=0.8)
  context = stage_context(
    kto=kto.KtoStageConfig(preference=config, rows_per_step=7), reference_model=model(6)
  )
  algorithm = kto.make(context)
  step = algorithm.collect(TrainState(0, model(), None), 0)
  mismatched = [
    log_ratio(model(), model(6), e.prompt_ids, e.target_ids) for e in kto.mismatched(examples())
  ]
  z = max(0.0, np.mean(mismatched))
  assert step.metrics['kl'] == pytest.approx(z, rel=1e-4) and z > 0.1
  losses = []
  for e in examples():
    x = log_ratio(model(), model(6), e.prompt_ids, e.target_ids)
    h = 0.2 * (x - z) if e.desirable else 0.2 * (z - x)
    losses.append((1.5 if e.desirable else 0.8) * (1 - 1 / (1 + np.exp(-h))))
  gradient, metrics = sgd_update(algorithm.loss, step.batch)
  assert metrics['loss'] == pytest.approx(np.mean(losses), rel=2e-5)
  score_in_parts = functools.partial(score, microbatch_tokens=1)
  step_in_parts = kto.make(context._replace(score=score_in_parts)).collect(
    TrainState(0, model(), None), 0
  )
  assert step_in_parts.metrics['kl'] == pytest.approx(step.metrics['kl'], rel=1e-5)
  in_parts, metrics_in_parts = sgd_update(algorithm.loss, step_in_parts.batch, microbatch_tokens=1)
  assert metrics_in_parts['loss'] == pytest.approx(metrics['loss'], rel=1e-5)
  for a, b in zip(jax.tree.leaves(in_parts), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, atol=2e-5 * norm(gradient))


def test_completions_are_paired_with_other_prompts_and_a_single_prompt_is_refused():
  labelled = [
    Example(Item({}, 'x:1'), [1, 2], [3], desirable=True),
    Example(Item({}, 'x:1'), [1, 2], [4], desirable=False),
  ]
  two_prompts = [*labelled, Example(Item({}, 'x:2'), [5], [6], desirable=True)]
  assert [e.target_ids for e in kto.mismatched(two_prompts)] == [[6], [6], [3]]
  assert [e.prompt_ids for e in kto.mismatched(two_prompts)] == [[1, 2], [1, 2], [5]]
  with pytest.raises(ValueError, match='1 prompts, need 2'):
    kto.mismatched(labelled)
  all_good = stage_context(kto=kto.KtoStageConfig())._replace(
    examples=[two_prompts[0], two_prompts[2]]
  )
  with pytest.raises(ValueError, match='all 2 rows have label=True'):
    kto.make(all_good)


def test_held_out_answers_are_measured_by_the_area_under_the_roc_curve():
  single_answers = [e._replace(rejected_ids=None) for e in examples(5, seed=9)]
  context = stage_context(kto=kto.KtoStageConfig(), reference_model=model(2))
  algorithm = kto.make(context._replace(validation=single_answers))
  shares = algorithm.held_out_metrics(TrainState(0, model(1), None))['preference/accuracy']
  log_ratios = {True: [], False: []}
  for e in single_answers:
    log_ratios[e.desirable].append(log_ratio(model(1), model(2), e.prompt_ids, e.target_ids))
  area = np.mean([good > bad for good in log_ratios[True] for bad in log_ratios[False]])
  assert np.mean(shares[[e.desirable for e in single_answers]]) == pytest.approx(area)
