"""KTO: preference learning from single answers that are labelled good or bad.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306. The log-ratio of an answer is compared
with the reference point z: the mean log-ratio of completions paired with the prompts of other rows,
an estimate of KL(policy || reference). z is computed over the whole step, before the update.
"""

import dataclasses
import functools

import numpy as np

from rft_jax.algorithms import dpo, reference_logprobs
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, Weighted
from rft_jax.objectives.preference_objective import PreferenceConfig
from rft_jax.objectives.preference_pairs import over_pairs, sequence_sums
from rft_jax.objectives.unpaired_losses import (
  KtoConfig,
  kto,
  kto_reference_point,
  mismatched_prompts,
)
from rft_jax.types import Example


@dataclasses.dataclass(slots=True, kw_only=True)
class KtoStageConfig:
  """The stages that learn from single labelled answers."""

  preference: KtoConfig = dataclasses.field(default_factory=KtoConfig)
  rows_per_step: int = 64  # the reference point is a mean over these rows: not too few
  # Cache the reference log-probs in the workdir, so that a continued run does not score again.
  cache_reference: bool = True

  def validate(self) -> list[str]:
    problems = [f'preference.{problem}' for problem in self.preference.validate()]
    if self.rows_per_step < 2:
      problems.append(f'rows_per_step={self.rows_per_step}, need >= 2')
    return problems


REQUIREMENTS = Requirements(
  'answers',
  label='preference learning',
  rows_per_step=lambda groups: groups['kto'].rows_per_step,
  step_summary=lambda groups: f'{groups["kto"].rows_per_step} rows a step',
  passes=lambda groups: 4.0,  # an update, and the mismatched completions of the reference point
  reference=lambda groups: True,
)


def make(context: StageContext) -> Algorithm:
  """Returns the KTO Algorithm over context.examples, which all have target_ids and desirable.

  Raises:
    ValueError: all rows have the same prompt, or all are good, or all are bad.
  """
  config: KtoStageConfig = context.groups['kto']
  count, score = config.rows_per_step, dpo.untempered(context)
  examples, mismatched_examples = context.examples, mismatched(context.examples)
  if len({example.desirable for example in examples}) < 2:
    raise ValueError(
      f'kto: all {len(examples)} rows have label={examples[0].desirable}; need good '
      'and bad answers, or the algorithm sft for good ones alone'
    )

  def score_reference(examples, name, make_batch=batching.from_pairs):
    return reference_logprobs.cached(
      score,
      context.reference(),
      examples,
      make_batch,
      folder=context.workdir if config.cache_reference else None,
      name=f'from_step_{context.first_step:06d}_{name}',
    )

  reference_rows = score_reference(examples, 'train', batching.from_examples)
  mismatched_rows = score_reference(mismatched_examples, 'mismatched', batching.from_examples)

  def collect(state, step):
    start = (step - context.first_step) * count
    rows = order.rows_at(context.seed, start, count, len(examples))
    batch = batching.from_examples([examples[row] for row in rows])
    mismatched_batch = batching.from_examples([mismatched_examples[row] for row in rows])
    z = reference_point(
      score(state.policy, mismatched_batch),
      [mismatched_rows[row] for row in rows],
      mismatched_batch,
    )
    batch = batch._replace(
      grades=np.array([examples[row].desirable for row in rows], np.float32),
      reference_point=np.full(count, z, np.float32),
      reference_logprobs=reference_logprobs.padded(
        [reference_rows[row] for row in rows], batch.completions.shape[1]
      ),
    )
    tokens = int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())
    return StepBatch(
      batch, {'step_tokens': tokens, 'kl': float(z), 'epoch': (start + count) / len(examples)}
    )

  held_out_metrics = dpo.held_out_pairs(
    context, PreferenceConfig(beta=config.preference.beta), score_reference
  )
  if held_out_metrics is None:
    held_out_metrics = held_out_answers(context, score_reference)
  return Algorithm(
    collect, functools.partial(loss, config=config.preference), held_out_metrics=held_out_metrics
  )


def loss(statistics, batch, *, config: KtoConfig):
  """Returns the mean loss over the answers; grade 1 is good, 0 bad."""
  log_ratios = sequence_sums(statistics.logprobs - batch.reference_logprobs, batch.loss_mask)
  present = (batch.loss_mask > 0).any(-1).astype('float32')
  good = batch.grades > 0.5
  losses = kto(log_ratios, good, batch.reference_point, config=config)
  logps = sequence_sums(statistics.logprobs, batch.loss_mask)
  metrics = {}
  for name, rows in (('chosen', present * good), ('rejected', present * ~good)):
    metrics[f'rewards/{name}'] = over_pairs(config.beta * log_ratios, rows)
    metrics[f'logps/{name}'] = over_pairs(logps, rows)
  return {'kto': Term(1.0, over_pairs(losses, present))}, metrics


def reference_point(logprobs, reference_rows, batch) -> float:
  """Returns z of a step: the mean log-ratio of mismatched completions, at least 0.

  Args:
    logprobs: f32[B, T] of the policy, of the mismatched batch.
    reference_rows: f32[length] of each row, under the reference.
    batch: the mismatched batch.
  """
  ratios = logprobs - reference_logprobs.padded(reference_rows, logprobs.shape[1])
  sums = sequence_sums(ratios, batch.loss_mask)
  return float(kto_reference_point(Weighted(sums.sum(), np.float32(len(sums)))))


def mismatched(examples: list[Example]) -> list[Example]:
  """Returns each example with the completion of another prompt: the same one in every epoch.

  Raises:
    ValueError: there is only one prompt.
  """
  rows: dict[tuple, list[int]] = {}
  for number, example in enumerate(examples):
    rows.setdefault(tuple(example.prompt_ids), []).append(number)
  groups = list(rows.values())
  pairs = list(examples)
  for group, other in zip(groups, mismatched_prompts(len(groups))):
    for position, number in enumerate(group):
      source = examples[groups[other][position % len(groups[other])]]
      pairs[number] = examples[number]._replace(target_ids=source.target_ids)
  return pairs


def held_out_answers(context: StageContext, score_reference):
  """Returns state -> {'preference/accuracy': f64[rows]} over held-out single answers; or None.

  For each answer: the share of answers with the other label that its implicit reward is on the
  right side of, 1/2 for equal rewards. The mean is the area under the ROC curve.
  """
  examples = context.validation
  if len({example.desirable for example in examples} - {None}) < 2:
    return None
  reference_rows = score_reference(examples, 'validation', batching.from_examples)
  good = np.array([example.desirable for example in examples])

  def measure(state):
    rows = reference_logprobs.logprobs(
      dpo.untempered(context), state.policy, examples, batching.from_examples
    )
    log_ratios = np.array(
      [(row - reference).sum(dtype=np.float64) for row, reference in zip(rows, reference_rows)]
    )
    above = (np.sign(log_ratios[good][:, None] - log_ratios[~good][None, :]) + 1) / 2
    shares = np.empty(len(log_ratios))
    shares[good], shares[~good] = above.mean(1), above.mean(0)
    return {'preference/accuracy': shares}

  return measure
