"""From examples and episodes to a Batch."""

import numpy as np

from rft_jax.types import Batch, Episode, Example

ROW_FIELDS = (
  'loss_mask',
  'advantages',
  'old_logprobs',
  'reference_logprobs',
  'sampler_logprobs',
  'group_tokens',
  'reasoning_steps',
  'grades',
  'margins',
  'token_loss_weights',
  'kl_cov_mask',
  'entropy_coef',
  'old_values',
  'returns',
  'reference_point',
)


def from_examples(examples: list[Example]) -> Batch:
  """Returns a supervised Batch: each example is a prompt with its one target, all learnt."""
  targets = [example.target_ids for example in examples]
  completions, lengths = _pad(targets)
  prompts, prompt_lengths = _pad([example.prompt_ids for example in examples])
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    np.arange(len(examples), dtype=np.int32),
    _inside(completions, lengths),
  )


def from_pairs(examples: list[Example]) -> Batch:
  """Returns the Batch of N pairs: prompt n with row 2n, the chosen completion, and 2n + 1.

  grades are 1 and 0. All tokens of both completions have weight 1.
  """
  answers = [ids for example in examples for ids in (example.target_ids, example.rejected_ids)]
  completions, lengths = _pad(answers)
  prompts, prompt_lengths = _pad([example.prompt_ids for example in examples])
  N = len(examples)
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    np.repeat(np.arange(N, dtype=np.int32), 2),
    _inside(completions, lengths),
    grades=np.tile(np.array([1, 0], np.float32), N),
  )


def from_answers(answers: dict[tuple[int, ...], list]) -> Batch:
  """Returns the Batch of {prompt ids: completions, each a sequence of ids}, all of weight 1."""
  completions, lengths = _pad([ids for some in answers.values() for ids in some])
  prompts, prompt_lengths = _pad(list(answers))
  group = np.repeat(np.arange(len(answers), dtype=np.int32), [len(x) for x in answers.values()])
  return Batch(prompts, prompt_lengths, completions, lengths, group, _inside(completions, lengths))


def from_groups(groups: list[list[Episode]], advantages=None, *, width: int = 0) -> Batch:
  """Returns the Batch of P groups of G graded samples.

  Args:
    groups: the episodes of one prompt occurrence stand together.
    advantages: f32[P, G], one for each sample; every token of a sample gets its sample's. None:
      they are still to come.
    width: T is at least that; batches of equal shapes compile less.
  """
  episodes = [episode for group in groups for episode in group]
  completions, lengths = _pad([episode.sample.tokens for episode in episodes], width=width)
  prompts, prompt_lengths = _pad([group[0].prompt_ids for group in groups])
  weights = _inside(completions, lengths)
  sampler, _ = _pad([episode.sample.logprobs for episode in episodes], np.float32, width)
  group = np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups])
  if advantages is not None:
    advantages = np.asarray(advantages, np.float32).reshape(-1, 1) * weights
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    group,
    weights,
    advantages,
    sampler_logprobs=sampler,
  )


def with_last_places(batch: Batch) -> Batch:
  """Returns the Batch with one place behind each completion, the only one of weight 1.

  There stands the state after the last token, from which an answer is scored; its id, 0, is not
  read. For batches without anything per token but weights.
  """
  lengths = batch.completion_lengths + 1
  completions = np.pad(batch.completions, ((0, 0), (0, 1)))
  last = np.arange(completions.shape[1]) == lengths[:, None] - 1
  return batch._replace(
    completions=completions, completion_lengths=lengths, loss_mask=last.astype(np.float32)
  )


def split(batch: Batch, parts: int) -> list[Batch]:
  """Splits a Batch into `parts` Batches of whole groups, of sizes as equal as can be.

  Raises:
    ValueError: more parts than groups.
  """
  P = len(batch.prompt_lengths)
  if parts > P:
    raise ValueError(f'updates_per_batch={parts} from {P} groups; need at least one group each')
  return [select(batch, chosen) for chosen in np.array_split(np.arange(P), parts)]


def select(batch: Batch, groups) -> Batch:
  """Returns the Batch of some groups, by number, in that order."""
  rows = [np.flatnonzero(batch.group == group) for group in groups]
  order = np.concatenate(rows)
  fields = {
    name: None if getattr(batch, name) is None else getattr(batch, name)[order]
    for name in ('completions', 'completion_lengths', *ROW_FIELDS)
  }
  return Batch(
    prompts=batch.prompts[groups],
    prompt_lengths=batch.prompt_lengths[groups],
    group=np.repeat(np.arange(len(groups), dtype=np.int32), [len(r) for r in rows]),
    **fields,
  )


def _pad(lists, dtype=np.int32, width=1):
  """Returns (array [N, longest, or width] padded with 0 on the right, lengths i32[N])."""
  lengths = np.array([len(values) for values in lists], np.int32)
  array = np.zeros((len(lists), max(int(lengths.max()), width, 1)), dtype)
  for row, values in enumerate(lists):
    array[row, : len(values)] = values
  return array, lengths


def _inside(array, lengths):
  return (np.arange(array.shape[1]) < lengths[:, None]).astype(np.float32)
