"""Reward models: from pairs of answers, a number for an answer that says how much it is preferred.

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, by the likelihood of Bradley and Terry. The
policy of the stages before becomes the trunk, with a linear head that starts at 0: it is no
language model any more, so nothing is sampled in this stage, and none may follow it.

The score of an answer is what the head says once its last token, the end of the turn, has been
read. A value stands at the state before a token; so every completion gets one place more, in which
that state is, and whose id nothing reads.
"""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np

from rft_jax.algorithms import reference_logprobs
from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, Weighted
from rft_jax.objectives.preference_pairs import over_pairs, over_prompts
from rft_jax.objectives.reward_model_losses import bradley_terry, last_scores
from rft_jax.types import Example


@dataclasses.dataclass(slots=True, kw_only=True)
class RewardModelConfig:
  """The stage that makes a reward model of the policy; its optim trains trunk and head alike."""

  pairs_per_step: int = 32
  # By how much the better answer should win; a row with a number `margin` has its own.
  margin: float = 0.0
  # Weight of (s_w + s_l)^2, which holds the mean of all scores at 0; 0: off.
  centring: float = 0.01

  def validate(self) -> list[str]:
    checks = (
      (self.pairs_per_step >= 1, f'pairs_per_step={self.pairs_per_step}, need >= 1'),
      (math.isfinite(self.margin), f'margin={self.margin}, need a finite number'),
      (0 <= self.centring < math.inf, f'centring={self.centring}, need >= 0 (0: off)'),
    )
    return [problem for good, problem in checks if not good]


REQUIREMENTS = Requirements('pairs', critic=lambda groups: 'head')


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm over room.examples, which all have target_ids and rejected_ids.

  Raises:
    ValueError: rows whose `margin` is no finite number; all are named.
  """
  config: RewardModelConfig = context.groups['reward_model']
  count, margins = config.pairs_per_step, margins_of(context.examples, config.margin)

  def collect(state, step):
    start = (step - context.first_step) * count
    places = order.rows_at(context.seed, start, count, len(context.examples))
    batch = batching.with_last_places(batching.from_pairs([context.examples[n] for n in places]))
    batch = batch._replace(margins=np.repeat(margins[places], 2))
    tokens = int(batch.prompt_lengths.sum() + (batch.completion_lengths - 1).sum())
    return Collected(batch, {'step_tokens': tokens, 'epoch': (start + count) / len(context.examples)})

  return Algorithm(
    collect,
    functools.partial(loss, centring=config.centring),
    answers=False,
    trains=lambda step: ('policy', 'critic'),
    held_out=held_out(context.validation, context.values),
  )


def margins_of(examples: list[Example], default: float) -> np.ndarray:
  """Returns the margin of each pair, f32[N]: that of its row, or the default."""
  given = [example.item.row.get('margin', default) for example in examples]
  wrong = [
    f'{example.item.source}: margin={margin!r}, need a finite number'
    for example, margin in zip(examples, given)
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not math.isfinite(margin)
  ]
  if wrong:
    raise ValueError('\n'.join(['reward_model: margins, or leave the field out:', *wrong]))
  return np.array(given, np.float32)


def loss(statistics, batch, *, centring: float):
  """The mean over prompts of the loss of its pairs: all two answers that differ in their grade.

  Args:
    statistics: with values.
    batch: a microbatch of whole groups, each of as many rows; with grades, and with margins f32[B],
      by how much a row should exceed each that it is preferred to. Weights are 1 at last places.
  """
  scores, P = last_scores(statistics.values, batch.loss_mask), len(batch.prompt_lengths)
  there = (batch.loss_mask > 0).any(-1)
  of = lambda x: x.reshape(P, -1)
  grades, here = of(batch.grades), of(there)
  preferred = (grades[:, :, None] > grades[:, None, :]) & here[:, :, None] & here[:, None, :]
  every = lambda x, *shape: jnp.broadcast_to(of(x).reshape(*shape), preferred.shape).reshape(-1)
  better, worse = every(scores, P, -1, 1), every(scores, P, 1, -1)
  present = preferred.reshape(-1).astype(jnp.float32)
  losses = bradley_terry(better, worse, margin=every(batch.margins, P, -1, 1), centring=centring)
  prompt = jnp.repeat(jnp.arange(P), preferred[0].size)
  right = (better > worse) + 0.5 * (better == worse)
  metrics = {
    'accuracy': over_pairs(right, present),
    'margin': over_pairs(better - worse, present),
    'mean_reward': over_pairs(scores, there.astype(jnp.float32)),
    # Of a microbatch, as TRL's are of a device's batch; their mean over the step is logged.
    'min_reward': Weighted(jnp.where(there, scores, jnp.inf).min(), jnp.float32(1)),
    'max_reward': Weighted(jnp.where(there, scores, -jnp.inf).max(), jnp.float32(1)),
  }
  return {'bradley_terry': Term(1.0, over_prompts(losses, present, prompt, P))}, metrics


# ------------------------------------------------------------------ held-out pairs


def held_out(examples: list[Example], values):
  """Returns state -> {metric: f64[rows]} over the held-out pairs; None if there are none.

  Args:
    examples: with target_ids and rejected_ids.
    values: (state, batch) -> f32[B, T], what the head says before each token.

      preference/accuracy  1 where the chosen answer has the higher score, 1/2 where the two have
                           the same: with a head of 0 it is 1/2
      preference/margin    the difference of the scores
  """
  if not examples or any(example.rejected_ids is None for example in examples):
    return None
  make_batch = lambda some: batching.with_last_places(batching.from_pairs(some))

  def measure(state):
    rows = reference_logprobs.logprobs(values, state, examples, make_batch)
    scores = np.array([row[-1] for row in rows], np.float64).reshape(-1, 2)
    margins = scores[:, 0] - scores[:, 1]
    return {
      'preference/accuracy': (margins > 0) + 0.5 * (margins == 0),
      'preference/margin': margins,
    }

  return measure
