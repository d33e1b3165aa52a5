"""Batching: pads examples and episodes to a Batch."""

import numpy as np

from rft_jax.types import Batch, Episode, Example

# The fields of a Batch, besides the completions, that have one row for each completion.
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
  """Returns a supervised Batch: each example is a prompt with one target.

  The loss mask is 1 on every token of a target, and covers no prompt (completion-only loss).
  """
  targets = [example.target_ids for example in examples]
  completions, lengths = _pad(targets)
  prompts, prompt_lengths = _pad([example.prompt_ids for example in examples])
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    np.arange(len(examples), dtype=np.int32),
    _length_mask(completions, lengths),
  )


def from_pairs(examples: list[Example]) -> Batch:
  """Returns the Batch of N preference pairs: prompt n has row 2n, chosen, and 2n + 1, rejected.

  grades are 1 and 0. The loss mask is 1 on every token of both completions.
  """
  pair_ids = [ids for example in examples for ids in (example.target_ids, example.rejected_ids)]
  completions, lengths = _pad(pair_ids)
  prompts, prompt_lengths = _pad([example.prompt_ids for example in examples])
  N = len(examples)
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    np.repeat(np.arange(N, dtype=np.int32), 2),
    _length_mask(completions, lengths),
    grades=np.tile(np.array([1, 0], np.float32), N),
  )


def from_completions(completions_of: dict[tuple[int, ...], list]) -> Batch:
  """Returns the Batch of {prompt ids: completions, each a sequence of ids}; loss mask 1 on all."""
  groups = list(completions_of.values())
  completions, lengths = _pad([ids for group in groups for ids in group])
  prompts, prompt_lengths = _pad(list(completions_of))
  group = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
  mask = _length_mask(completions, lengths)
  return Batch(prompts, prompt_lengths, completions, lengths, group, mask)


def from_groups(groups: list[list[Episode]], advantages=None, *, width: int = 0) -> Batch:
  """Returns the Batch of P groups of G graded samples.

  Args:
    groups: a list for each occurrence of a prompt, with its episodes.
    advantages: f32[P, G], one for each sample, written to all its tokens. None: the field stays
      None, to be filled in later.
    width: lower bound of T; batches of equal shapes need fewer compilations.
  """
  episodes = [episode for group in groups for episode in group]
  completions, lengths = _pad([episode.sample.tokens for episode in episodes], width=width)
  prompts, prompt_lengths = _pad([group[0].prompt_ids for group in groups])
  mask = _length_mask(completions, lengths)
  logprobs, _ = _pad([episode.sample.logprobs for episode in episodes], np.float32, width)
  group = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
  if advantages is not None:
    advantages = np.asarray(advantages, np.float32).reshape(-1, 1) * mask
  return Batch(
    prompts,
    prompt_lengths,
    completions,
    lengths,
    group,
    mask,
    advantages,
    sampler_logprobs=logprobs,
  )


def with_score_positions(batch: Batch) -> Batch:
  """Returns the Batch with one position appended to each completion, the only one in the loss mask.

  Its hidden state is the one after the last token, from which a reward model scores a completion;
  its token id, 0, is not read. For batches whose only per-token field is the loss mask.
  """
  lengths = batch.completion_lengths + 1
  completions = np.pad(batch.completions, ((0, 0), (0, 1)))
  is_last = np.arange(completions.shape[1]) == lengths[:, None] - 1
  return batch._replace(
    completions=completions, completion_lengths=lengths, loss_mask=is_last.astype(np.float32)
  )


def split(batch: Batch, parts: int) -> list[Batch]:
  """Splits a Batch into `parts` Batches of whole groups, of sizes as equal as possible.

  Raises:
    ValueError: more parts than groups.
  """
  P = len(batch.prompt_lengths)
  if parts > P:
    raise ValueError(f'updates_per_batch={parts} from {P} groups; need at least one group each')
  return [select(batch, groups) for groups in np.array_split(np.arange(P), parts)]


def select(batch: Batch, groups) -> Batch:
  """Returns the Batch of the groups with these numbers, in this order."""
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


def _length_mask(array, lengths):
  """Returns f32 of the array's shape [N, T]: 1 at the first lengths[n] positions of each row."""
  return (np.arange(array.shape[1]) < lengths[:, None]).astype(np.float32)
