"""Reward model training: from pairs of answers to a model that scores one answer.

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, with the Bradley-Terry likelihood. The policy
of the stages before becomes the trunk, with a linear head initialised to 0. It is no longer a
language model, so nothing is sampled in this stage, and no stage may follow it.

The score of an answer is the head's value after its last token, the end of the turn. A value
belongs to the state before a token, so every completion is extended by one position that holds
this state; its token id is not read.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from rft_jax.algorithms import reference_logprobs
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, Weighted
from rft_jax.objectives.preference_pairs import over_pairs, over_prompts
from rft_jax.objectives.reward_model_losses import bradley_terry, last_scores
from rft_jax.types import Example


@dataclasses.dataclass(slots=True, kw_only=True)
class RewardModelConfig:
  """The stage that turns the policy into a reward model; its optim trains trunk and head."""

  pairs_per_step: int = 32
  # The least difference of the scores of a pair, in the loss; a row's own `margin` replaces it.
  margin: float = 0.0
  # Weight of (s_w + s_l)^2, which keeps the mean of all scores near 0; 0: off.
  centring: float = 0.01

  def validate(self) -> list[str]:
    checks = (
      (self.pairs_per_step >= 1, f'pairs_per_step={self.pairs_per_step}, need >= 1'),
      (math.isfinite(self.margin), f'margin={self.margin}, need a finite number'),
      (0 <= self.centring < math.inf, f'centring={self.centring}, need >= 0 (0: off)'),
    )
    return [problem for good, problem in checks if not good]


REQUIREMENTS = Requirements(
  'pairs',
  label='reward modelling',
  rows_per_step=lambda groups: groups['reward_model'].pairs_per_step,
  step_summary=lambda groups: (
    f'{groups["reward_model"].pairs_per_step} pairs a step, nothing sampled'
  ),
  passes=lambda groups: 6.0,  # a pair is two sequences
  critic=lambda groups: 'head',
  trains_reward_model=True,
)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm over context.examples, which all have target_ids and rejected_ids.

  Raises:
    ValueError: rows whose `margin` is no finite number; all are named.
  """
  config: RewardModelConfig = context.groups['reward_model']
  count, margins = config.pairs_per_step, margins_of(context.examples, config.margin)

  def collect(state, step):
    start = (step - context.first_step) * count
    rows = order.rows_at(context.seed, start, count, len(context.examples))
    batch = batching.with_score_positions(
      batching.from_pairs([context.examples[row] for row in rows])
    )
    batch = batch._replace(margins=np.repeat(margins[rows], 2))
    tokens = int(batch.prompt_lengths.sum() + (batch.completion_lengths - 1).sum())
    epoch = (start + count) / len(context.examples)
    return StepBatch(batch, {'step_tokens': tokens, 'epoch': epoch})

  return Algorithm(
    collect,
    functools.partial(loss, centring=config.centring),
    trained_models=lambda step: ('policy', 'critic'),
    held_out_metrics=held_out_pairs(context.validation, context.values),
    is_language_model=False,
  )


def margins_of(examples: list[Example], default: float) -> np.ndarray:
  """Returns the margin of each pair, f32[N]: that of its row, or the default."""
  margins = [example.item.row.get('margin', default) for example in examples]
  problems = [
    f'{example.item.source}: margin={margin!r}, need a finite number'
    for example, margin in zip(examples, margins)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin)
  ]
  if problems:
    raise ValueError('\n'.join(['reward_model: margins, or leave the field out:', *problems]))
  return np.array(margins, np.float32)


def loss(statistics, batch, *, centring: float):
  """Returns the mean over prompts of the loss of their pairs: any two answers of unequal grade.

  Args:
    statistics: with values.
    batch: a microbatch of whole groups of equal size; with grades, with margins f32[B] (the least
      difference to the rows it is preferred to), and loss_mask 1 at the score position alone.
  """
  scores, P = last_scores(statistics.values, batch.loss_mask), len(batch.prompt_lengths)
  real = (batch.loss_mask > 0).any(-1)  # not a padding row
  by_group = lambda x: x.reshape(P, -1)
  grades, real_in_group = by_group(batch.grades), by_group(real)
  preferred = grades[:, :, None] > grades[:, None, :]
  preferred = preferred & real_in_group[:, :, None] & real_in_group[:, None, :]
  to_pairs = lambda x, *shape: jnp.broadcast_to(
    by_group(x).reshape(*shape), preferred.shape
  ).reshape(-1)
  better, worse = to_pairs(scores, P, -1, 1), to_pairs(scores, P, 1, -1)
  present = preferred.reshape(-1).astype(jnp.float32)
  losses = bradley_terry(better, worse, margin=to_pairs(batch.margins, P, -1, 1), centring=centring)
  prompt = jnp.repeat(jnp.arange(P), preferred[0].size)
  correct = (better > worse) + 0.5 * (better == worse)
  metrics = {
    'accuracy': over_pairs(correct, present),
    'margin': over_pairs(better - worse, present),
    'mean_reward': over_pairs(scores, real.astype(jnp.float32)),
    # Of a microbatch, as TRL's are of a device's batch; their mean over the step is logged.
    'min_reward': Weighted(jnp.where(real, scores, jnp.inf).min(), jnp.float32(1)),
    'max_reward': Weighted(jnp.where(real, scores, -jnp.inf).max(), jnp.float32(1)),
  }
  return {'bradley_terry': Term(1.0, over_prompts(losses, present, prompt, P))}, metrics


# ------------------------------------------------------------------ held-out pairs


def held_out_pairs(examples: list[Example], values):
  """Returns state -> {metric: f64[rows]} over the held-out pairs; None if there are none.

  Args:
    examples: with target_ids and rejected_ids.
    values: (state, batch) -> f32[B, T], the value of the state before each token.

      preference/accuracy  1 where the chosen answer has the higher score, 1/2 where both have the
                           same: with a head of zeros it is 1/2
      preference/margin    the difference of the scores
  """
  if not examples or any(example.rejected_ids is None for example in examples):
    return None
  make_batch = lambda pairs: batching.with_score_positions(batching.from_pairs(pairs))

  def measure(state):
    rows = reference_logprobs.logprobs(values, state, examples, make_batch)
    scores = np.array([row[-1] for row in rows], np.float64).reshape(-1, 2)
    margins = scores[:, 0] - scores[:, 1]
    return {
      'preference/accuracy': (margins > 0) + 0.5 * (margins == 0),
      'preference/margin': margins,
    }

  return measure
