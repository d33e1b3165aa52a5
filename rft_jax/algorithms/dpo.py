"""DPO and its family: preference learning from pairs of answers, without sampling or grading.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290. dpo.preference.loss names the member of the
family, see objectives/preference_losses.py. Log-probs are at temperature 1.
"""

import dataclasses
import functools

import numpy as np

from rft_jax.algorithms import reference_logprobs
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, over_tokens
from rft_jax.objectives.preference_losses import NEEDS
from rft_jax.objectives.preference_objective import PreferenceConfig, pair_losses, reward_metrics
from rft_jax.objectives.preference_pairs import chosen_nll, over_pairs, pair, sequence_sums


@dataclasses.dataclass(slots=True, kw_only=True)
class DpoConfig:
  """The stages that learn from pairs of answers."""

  preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
  pairs_per_step: int = 32
  # Cache the reference log-probs in the workdir, so that a continued run does not score again.
  cache_reference: bool = True

  def validate(self) -> list[str]:
    problems = [f'preference.{problem}' for problem in self.preference.validate()]
    if self.pairs_per_step < 1:
      problems.append(f'pairs_per_step={self.pairs_per_step}, need >= 1')
    return problems


REQUIREMENTS = Requirements(
  'pairs',
  label='preference learning',
  rows_per_step=lambda groups: groups['dpo'].pairs_per_step,
  step_summary=lambda groups: (
    f'{groups["dpo"].pairs_per_step} pairs a step, loss {groups["dpo"].preference.loss!r}'
  ),
  passes=lambda groups: 6.0,  # a pair is two sequences
  reference=lambda groups: NEEDS[groups['dpo'].preference.loss].reference,
)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm over context.examples, which all have target_ids and rejected_ids."""
  config: DpoConfig = context.groups['dpo']
  count = config.pairs_per_step
  score_reference = functools.partial(
    _reference_logprobs, context, folder=context.workdir if config.cache_reference else None
  )
  reference_rows = None
  if REQUIREMENTS.reference(context.groups):
    reference_rows = score_reference(context.examples, 'train')

  def collect(state, step):
    start = (step - context.first_step) * count
    rows = order.rows_at(context.seed, start, count, len(context.examples))
    batch = batching.from_pairs([context.examples[row] for row in rows])
    if reference_rows is not None:
      logprobs = [reference_rows[2 * row + side] for row in rows for side in (0, 1)]
      batch = batch._replace(
        reference_logprobs=reference_logprobs.padded(logprobs, batch.completions.shape[1])
      )
    tokens = int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())
    epoch = (start + count) / len(context.examples)
    return StepBatch(batch, {'step_tokens': tokens, 'epoch': epoch})

  return Algorithm(
    collect,
    functools.partial(loss, config=config.preference),
    held_out_metrics=held_out_pairs(context, config.preference, score_reference),
  )


def loss(statistics, batch, *, config: PreferenceConfig):
  """Returns the mean preference loss over the pairs, and the NLL of the chosen answers if set."""
  chosen, rejected = pair_rows(len(batch.completions))
  result = pair_losses(
    statistics.logprobs, batch.reference_logprobs, batch.loss_mask, chosen, rejected, config=config
  )
  terms = {'preference': Term(1.0, over_pairs(result.losses, result.present))}
  if config.nll_coef:
    terms['nll'] = Term(config.nll_coef, chosen_nll(statistics.logprobs, batch.loss_mask, chosen))
  chosen_sums, rejected_sums = pair(
    sequence_sums(statistics.logprobs, batch.loss_mask), chosen, rejected
  )
  metrics = {
    'logps/chosen': over_pairs(chosen_sums, result.present),
    'logps/rejected': over_pairs(rejected_sums, result.present),
  }
  correct = statistics.greedy.astype('float32')[chosen]
  accuracy = {'mean_token_accuracy': over_tokens(correct, batch.loss_mask[chosen])}
  return terms, metrics | reward_metrics(result) | accuracy


def pair_rows(B: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the (chosen, rejected) rows i32[B / 2] of a batch, or microbatch, of from_pairs."""
  return np.arange(0, B, 2, dtype=np.int32), np.arange(1, B, 2, dtype=np.int32)


# ------------------------------------------------------------------ held-out pairs


def held_out_pairs(context: StageContext, config: PreferenceConfig, score_reference):
  """Returns state -> {metric: f64[rows]} over the held-out pairs; None if there are none.

      preference/accuracy  1 where the chosen answer has the higher implicit reward, 1/2 where both
                           have the same: for the reference itself it is 1/2
      preference/margin    the difference of the implicit rewards, beta (x_w - x_l)

  Args:
    context: whose validation examples may hold pairs.
    config: its loss defines the implicit reward.
    score_reference: (examples, name) -> log-probs under the reference, see reference_logprobs.
  """
  examples = context.validation
  if not examples or any(example.rejected_ids is None for example in examples):
    return None
  reference_rows = None
  if NEEDS[config.loss].reference:
    reference_rows = score_reference(examples, 'validation')

  def measure(state):
    rows = reference_logprobs.logprobs(
      untempered(context), state.policy, examples, batching.from_pairs
    )
    width = max(map(len, rows))
    lengths = np.array([len(row) for row in rows])
    loss_mask = (np.arange(width) < lengths[:, None]).astype(np.float32)
    result = pair_losses(
      reference_logprobs.padded(rows, width),
      None if reference_rows is None else reference_logprobs.padded(reference_rows, width),
      loss_mask,
      *pair_rows(len(rows)),
      config=config,
    )
    margins = np.asarray(result.chosen_rewards, float) - np.asarray(result.rejected_rewards, float)
    return {
      'preference/accuracy': (margins > 0) + 0.5 * (margins == 0),
      'preference/margin': margins,
    }

  return measure


def untempered(context: StageContext):
  """Returns (model, batch) -> log-probs f32[B, T] at temperature 1."""
  return lambda model, batch: context.score(model, batch, temperature=1.0).logprobs


def _reference_logprobs(context, examples, name, *, folder):
  """Returns the log-probs of each row of from_pairs(examples) under the stage's reference."""
  return reference_logprobs.cached(
    untempered(context),
    context.reference(),
    examples,
    batching.from_pairs,
    folder=folder,
    name=f'from_step_{context.first_step:06d}_{name}',
  )
