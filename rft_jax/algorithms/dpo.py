"""DPO and its family: from pairs of answers, without a sampler and without a grader.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290. Which of its relatives it is, is the name
of the loss: see objectives/preference_losses.py. Log-probs are of untempered logits.
"""

import dataclasses
import functools

import numpy as np

from rft_jax.algorithms import reference_logprobs
from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, over_tokens
from rft_jax.objectives.preference_losses import NEEDS, PreferenceConfig, preference, reward_metrics
from rft_jax.objectives.preference_pairs import chosen_nll, over_pairs, pair, sequence_sums


@dataclasses.dataclass(slots=True, kw_only=True)
class DpoConfig:
  """The stages that learn from pairs."""

  preference: PreferenceConfig = dataclasses.field(default_factory=PreferenceConfig)
  pairs_per_step: int = 32
  # Log-probs of the reference are kept in the workdir, so that a continued run has them at once.
  cache_reference: bool = True

  def validate(self) -> list[str]:
    found = [f'preference.{problem}' for problem in self.preference.validate()]
    if self.pairs_per_step < 1:
      found.append(f'pairs_per_step={self.pairs_per_step}, need >= 1')
    return found


REQUIREMENTS = Requirements('pairs', reference=lambda groups: NEEDS[groups['dpo'].preference.loss].reference)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm over room.examples, which all have target_ids and rejected_ids."""
  config: DpoConfig = context.groups['dpo']
  count = config.pairs_per_step
  reference_rows = functools.partial(
    _reference_rows, context, folder=context.folder if config.cache_reference else None
  )
  of_reference = reference_rows(context.examples, 'train') if REQUIREMENTS.reference(context.groups) else None

  def collect(state, step):
    start = (step - context.first_step) * count
    places = order.rows_at(context.seed, start, count, len(context.examples))
    batch = batching.from_pairs([context.examples[place] for place in places])
    if of_reference is not None:
      rows = [of_reference[2 * place + side] for place in places for side in (0, 1)]
      batch = batch._replace(
        reference_logprobs=reference_logprobs.padded(rows, batch.completions.shape[1])
      )
    tokens = int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())
    return Collected(batch, {'step_tokens': tokens, 'epoch': (start + count) / len(context.examples)})

  return Algorithm(
    collect,
    functools.partial(loss, config=config.preference),
    held_out=held_out_pairs(context, config.preference, reference_rows),
  )


def loss(statistics, batch, *, config: PreferenceConfig):
  """The mean over pairs of the loss that config names, and the NLL of the chosen if asked for."""
  chosen, rejected = pair_rows(len(batch.completions))
  found = preference(
    statistics.logprobs, batch.reference_logprobs, batch.loss_mask, chosen, rejected, config=config
  )
  terms = {'preference': Term(1.0, over_pairs(found.losses, found.present))}
  if config.nll_coef:
    terms['nll'] = Term(config.nll_coef, chosen_nll(statistics.logprobs, batch.loss_mask, chosen))
  sums = pair(sequence_sums(statistics.logprobs, batch.loss_mask), chosen, rejected)
  metrics = {
    f'logps/{name}': over_pairs(one, found.present)
    for name, one in zip(('chosen', 'rejected'), sums)
  }
  right = statistics.greedy.astype('float32')[chosen]
  return terms, metrics | reward_metrics(found) | {
    'mean_token_accuracy': over_tokens(right, batch.loss_mask[chosen])
  }


def pair_rows(B: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the (chosen, rejected) rows i32[B / 2] of a batch, or microbatch, of from_pairs."""
  return np.arange(0, B, 2, dtype=np.int32), np.arange(1, B, 2, dtype=np.int32)


# ------------------------------------------------------------------ held-out pairs


def held_out_pairs(context: StageContext, config: PreferenceConfig, reference_rows):
  """Returns state -> {metric: f64[rows]} over the held-out pairs; None if there are none.

      preference/accuracy  1 where the chosen answer has the higher implicit reward, 1/2 where the
                           two have the same: at the reference itself it is 1/2
      preference/margin    the difference of the implicit rewards, beta (x_w - x_l)

  Args:
    room: its validation examples hold pairs, or not.
    config: which loss: it says what the implicit reward is.
    reference_rows: (examples, name) -> log-probs under the reference.
  """
  examples = context.validation
  if not examples or any(example.rejected_ids is None for example in examples):
    return None
  given = reference_rows(examples, 'validation') if NEEDS[config.loss].reference else None

  def measure(state):
    rows = reference_logprobs.logprobs(
      untempered(context), state.policy, examples, batching.from_pairs
    )
    width = max(map(len, rows))
    weights = (np.arange(width) < np.array([len(row) for row in rows])[:, None]).astype(np.float32)
    found = preference(
      reference_logprobs.padded(rows, width),
      None if given is None else reference_logprobs.padded(given, width),
      weights,
      *pair_rows(len(rows)),
      config=config,
    )
    margins = np.asarray(found.chosen_rewards, float) - np.asarray(found.rejected_rewards, float)
    return {
      'preference/accuracy': (margins > 0) + 0.5 * (margins == 0),
      'preference/margin': margins,
    }

  return measure


def untempered(context: StageContext):
  """Returns (model, batch) -> log-probs f32[B, T], whatever the sampler's temperature is."""
  return lambda model, batch: context.score(model, batch, temperature=1.0).logprobs


def _reference_rows(context, examples, name, *, folder):
  """Returns the log-probs of each row of from_pairs(examples) under the stage's reference."""
  return reference_logprobs.cached(
    untempered(context),
    context.reference(),
    examples,
    batching.from_pairs,
    folder=folder,
    name=f'from_step_{context.first_step:06d}_{name}',
  )
