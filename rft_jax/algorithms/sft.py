"""Supervised fine-tuning with a completion-only loss: the warm-up of ReFT."""

import dataclasses

from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.data import batching, order
from rft_jax.objectives.masked import Term, over_tokens


@dataclasses.dataclass(slots=True, kw_only=True)
class SftConfig:
  """The supervised stages."""

  # A template over the row, such as '{{ item.solution }}'; empty: the row's last, assistant turn.
  target: str = ''
  rows_per_step: int = 64

  def validate(self) -> list[str]:
    return [] if self.rows_per_step >= 1 else [f'rows_per_step={self.rows_per_step}, need >= 1']


REQUIREMENTS = Requirements(
  'targets',
  label='fine-tuning',
  rows_per_step=lambda groups: groups['sft'].rows_per_step,
  step_summary=lambda groups: f'{groups["sft"].rows_per_step} rows a step',
)


def make(context: StageContext) -> Algorithm:
  """Returns the supervised Algorithm over context.examples, which all have target_ids."""
  config: SftConfig = context.groups['sft']

  def collect(state, step):
    start = (step - context.first_step) * config.rows_per_step
    rows = order.rows_at(context.seed, start, config.rows_per_step, len(context.examples))
    batch = batching.from_examples([context.examples[row] for row in rows])
    tokens = int(batch.prompt_lengths.sum() + batch.completion_lengths.sum())
    epoch = (start + config.rows_per_step) / len(context.examples)
    return StepBatch(batch, {'step_tokens': tokens, 'epoch': epoch})

  return Algorithm(collect, loss)


def loss(statistics, batch):
  """Returns the negative log-likelihood of the target tokens, averaged over all of the step."""
  terms = {'nll': Term(1.0, over_tokens(-statistics.logprobs, batch.loss_mask))}
  accuracy = over_tokens(statistics.greedy.astype('float32'), batch.loss_mask)
  return terms, {'mean_token_accuracy': accuracy}
