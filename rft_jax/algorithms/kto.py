"""KTO: from single answers, each marked good or bad.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306. An answer is compared with the usual one:
the mean log-ratio z of completions set behind the prompts of others, an estimate of how far the
policy is from its reference. z is of the whole step, by the policy before its update.
"""

import dataclasses
import functools

import numpy as np

from rft_jax.algorithms import dpo, reference_logprobs
from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, Weighted
from rft_jax.objectives.preference_losses import PreferenceConfig
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
  """The stages that learn from single answers."""

  preference: KtoConfig = dataclasses.field(default_factory=KtoConfig)
  rows_per_step: int = 64  # the reference point is a mean over as many: not too few
  # Log-probs of the reference are kept in the workdir, so that a continued run has them at once.
  cache_reference: bool = True

  def validate(self) -> list[str]:
    found = [f'preference.{problem}' for problem in self.preference.validate()]
    if self.rows_per_step < 2:
      found.append(f'rows_per_step={self.rows_per_step}, need >= 2')
    return found


REQUIREMENTS = Requirements('answers', reference=lambda groups: True)


def make(context: StageContext) -> Algorithm:
  """Returns the KTO Algorithm over room.examples, which all have target_ids and desirable.

  Raises:
    ValueError: all rows have the same prompt, or all are good, or all are bad.
  """
  config: KtoStageConfig = context.groups['kto']
  count, score = config.rows_per_step, dpo.untempered(context)
  examples, others = context.examples, mismatched(context.examples)
  if len({example.desirable for example in examples}) < 2:
    raise ValueError(
      f'kto: all {len(examples)} rows have label={examples[0].desirable}; need good '
      'and bad answers, or the algorithm sft for good ones alone'
    )

  def reference_rows(some, name, make_batch=batching.from_pairs):
    return reference_logprobs.cached(
      score,
      context.reference(),
      some,
      make_batch,
      folder=context.folder if config.cache_reference else None,
      name=f'from_step_{context.first_step:06d}_{name}',
    )

  of_examples = reference_rows(examples, 'train', batching.from_examples)
  of_others = reference_rows(others, 'mismatched', batching.from_examples)

  def collect(state, step):
    start = (step - context.first_step) * count
    places = order.rows_at(context.seed, start, count, len(examples))
    batch = batching.from_examples([examples[place] for place in places])
    other = batching.from_examples([others[place] for place in places])
    z = reference_point(score(state.policy, other), [of_others[place] for place in places], other)
    good = np.array([examples[place].desirable for place in places], np.float32)
    batch = batch._replace(
      grades=good,
      reference_point=np.full(count, z, np.float32),
      reference_logprobs=reference_logprobs.padded(
        [of_examples[place] for place in places], batch.completions.shape[1]
      ),
    )
    tokens = int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())
    return Collected(
      batch, {'step_tokens': tokens, 'kl': float(z), 'epoch': (start + count) / len(examples)}
    )

  held_out = dpo.held_out_pairs(context, PreferenceConfig(beta=config.preference.beta), reference_rows)
  if held_out is None:
    held_out = held_out_answers(context, reference_rows)
  return Algorithm(collect, functools.partial(loss, config=config.preference), held_out=held_out)


def loss(statistics, batch, *, config: KtoConfig):
  """The mean of the loss over answers; grades 1 are good, 0 bad."""
  x = sequence_sums(statistics.logprobs - batch.reference_logprobs, batch.loss_mask)
  there = (batch.loss_mask > 0).any(-1).astype('float32')
  good = batch.grades > 0.5
  losses = kto(x, good, batch.reference_point, config=config)
  logps = sequence_sums(statistics.logprobs, batch.loss_mask)
  metrics = {}
  for name, kind in (('chosen', there * good), ('rejected', there * ~good)):
    metrics[f'rewards/{name}'] = over_pairs(config.beta * x, kind)
    metrics[f'logps/{name}'] = over_pairs(logps, kind)
  return {'kto': Term(1.0, over_pairs(losses, there))}, metrics


def reference_point(logprobs, of_reference, batch) -> float:
  """Returns z of a step: the mean log-ratio of mismatched completions, no less than 0.

  Args:
    logprobs: f32[B, T] of the policy, of the mismatched batch.
    of_reference: f32[length] of each row.
    batch: the mismatched batch.
  """
  ratios = logprobs - reference_logprobs.padded(of_reference, logprobs.shape[1])
  sums = sequence_sums(ratios, batch.loss_mask)
  return float(kto_reference_point(Weighted(sums.sum(), np.float32(len(sums)))))


def mismatched(examples: list[Example]) -> list[Example]:
  """Returns each example with the completion of another prompt: the same one in every epoch.

  Raises:
    ValueError: there is but one prompt.
  """
  rows: dict[tuple, list[int]] = {}
  for number, example in enumerate(examples):
    rows.setdefault(tuple(example.prompt_ids), []).append(number)
  groups = list(rows.values())
  made = list(examples)
  for group, other in zip(groups, mismatched_prompts(len(groups))):
    for place, number in enumerate(group):
      taken = examples[groups[other][place % len(groups[other])]]
      made[number] = examples[number]._replace(target_ids=taken.target_ids)
  return made


def held_out_answers(context: StageContext, reference_rows):
  """Returns state -> {'preference/accuracy': f64[rows]} over held-out single answers; or None.

  The share of answers of the other kind that an answer is on the right side of, by implicit
  reward; half for equal ones. Its mean is the area under the ROC curve.
  """
  examples = context.validation
  if len({example.desirable for example in examples} - {None}) < 2:
    return None
  given = reference_rows(examples, 'validation', batching.from_examples)
  good = np.array([example.desirable for example in examples])

  def measure(state):
    rows = reference_logprobs.logprobs(
      dpo.untempered(context), state.policy, examples, batching.from_examples
    )
    x = np.array([(one - other).sum(dtype=np.float64) for one, other in zip(rows, given)])
    above = (np.sign(x[good][:, None] - x[~good][None, :]) + 1) / 2
    shares = np.empty(len(x))
    shares[good], shares[~good] = above.mean(1), above.mean(0)
    return {'preference/accuracy': shares}

  return measure
