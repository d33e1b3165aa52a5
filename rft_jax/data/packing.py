"""From examples and episodes to a Batch, and from a Batch to microbatches of few shapes."""
import numpy as np

from rft_jax.shapes import bucket, power_of_two
from rft_jax.types import Batch, Episode, Example

_ROW_FIELDS = ('weights', 'advantages', 'old_logprobs', 'reference_logprobs', 'sampler_logprobs')


def from_examples(examples: list[Example]) -> Batch:
  """Returns a supervised Batch: each example is a prompt with its one target, all learnt."""
  targets = [example.target_ids for example in examples]
  completions, lengths = _pad(targets)
  prompts, prompt_lengths = _pad([example.prompt_ids for example in examples])
  return Batch(prompts, prompt_lengths, completions, lengths,
               np.arange(len(examples), dtype=np.int32), _inside(completions, lengths))


def from_groups(groups: list[list[Episode]], advantages) -> Batch:
  """Returns the Batch of P groups of G graded samples.

  Args:
    groups: the episodes of one prompt occurrence stand together.
    advantages: f32[P, G], one for each sample; every token of a sample gets its sample's.
  """
  episodes = [episode for group in groups for episode in group]
  completions, lengths = _pad([episode.sample.tokens for episode in episodes])
  prompts, prompt_lengths = _pad([group[0].prompt_ids for group in groups])
  weights = _inside(completions, lengths)
  sampler, _ = _pad([episode.sample.logprobs for episode in episodes], np.float32)
  group = np.repeat(np.arange(len(groups), dtype=np.int32), [len(g) for g in groups])
  return Batch(prompts, prompt_lengths, completions, lengths, group, weights,
               advantages=np.asarray(advantages, np.float32).reshape(-1, 1) * weights,
               sampler_logprobs=sampler)


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
  fields = {name: None if getattr(batch, name) is None else getattr(batch, name)[order]
            for name in ('completions', 'completion_lengths', *_ROW_FIELDS)}
  return Batch(prompts=batch.prompts[groups], prompt_lengths=batch.prompt_lengths[groups],
               group=np.repeat(np.arange(len(groups), dtype=np.int32), [len(r) for r in rows]),
               **fields)


def microbatches(batch: Batch, *, tokens: int, shards: int = 1) -> list[tuple[Batch, np.ndarray]]:
  """Cuts a Batch into pieces of at most about `tokens` tokens, padded to few shapes.

  Groups stay whole and are taken in the order of their longest completion, so that short ones
  are not padded to long ones. Each piece is regular: its P prompts have G completions each, in
  prompt order, with G the same everywhere; what is missing is filled with empty completions and
  empty prompts, whose weights are 0. P is `shards` times a power of two.

  Returns:
    (piece, rows) pairs; rows i32[B] says which row of the batch each row of the piece is, -1 for
    padding. See scatter().
  """
  P = len(batch.prompt_lengths)
  members = [np.flatnonzero(batch.group == group) for group in range(P)]
  G = max(map(len, members))
  longest = np.array([batch.completion_lengths[rows].max() for rows in members])
  pieces, start = [], 0
  order = np.lexsort((batch.prompt_lengths, longest))[::-1]  # the longest first: memory shows early
  while start < P:
    S = bucket(int(batch.prompt_lengths[order[start:]].max()))
    T = bucket(int(longest[order[start]]))
    fits = max(tokens // (S + G * T) // shards, 1)
    count = shards * min(1 << (fits.bit_length() - 1), power_of_two(-(-(P - start) // shards)))
    chosen = order[start:start + count]
    pieces.append(_piece(batch, chosen, members, (count, G, S, T)))
    start += count
  return pieces


def scatter(parts, pieces, shape) -> np.ndarray:
  """Puts per-token arrays [B', T'] of the pieces back into one array of the batch's shape."""
  whole = np.zeros(shape, np.float32)
  for part, (_, rows) in zip(parts, pieces):
    real = rows >= 0
    columns = min(shape[1], part.shape[1])
    whole[rows[real], :columns] = np.asarray(part)[real, :columns]
  return whole


def token_efficiency(pieces) -> float:
  """Returns the share of computed positions that hold a real token."""
  real = sum(int(piece.prompt_lengths[piece.prompt_lengths > 1].sum() +
                 piece.completion_lengths.sum()) for piece, _ in pieces)
  return real / sum(piece.prompts.size + piece.completions.size for piece, _ in pieces)


def _piece(batch, chosen, members, shape):
  P, G, S, T = shape
  rows = np.full((P, G), -1)
  for number, group in enumerate(chosen):
    rows[number, :len(members[group])] = members[group]
  rows = rows.reshape(-1)

  def completions_of(array):
    if array is None:
      return None
    out = np.zeros((P * G,) + ((T,) if array.ndim == 2 else ()), array.dtype)
    if array.ndim == 2:
      out[rows >= 0, :array.shape[1]] = array[rows[rows >= 0], :T]
    else:
      out[rows >= 0] = array[rows[rows >= 0]]
    return out

  prompts = np.zeros((P, S), np.int32)
  prompts[:len(chosen), :batch.prompts.shape[1]] = batch.prompts[chosen, :S]
  prompt_lengths = np.ones(P, np.int32)  # an empty prompt has one token, whatever it is
  prompt_lengths[:len(chosen)] = batch.prompt_lengths[chosen]
  piece = Batch(prompts, prompt_lengths, completions_of(batch.completions),
                completions_of(batch.completion_lengths),
                np.repeat(np.arange(P, dtype=np.int32), G),
                **{name: completions_of(getattr(batch, name)) for name in _ROW_FIELDS})
  return piece, rows


def _pad(lists, dtype=np.int32):
  """Returns (array [N, longest] padded with 0 on the right, lengths i32[N])."""
  lengths = np.array([len(values) for values in lists], np.int32)
  array = np.zeros((len(lists), max(int(lengths.max()), 1)), dtype)
  for row, values in enumerate(lists):
    array[row, :len(values)] = values
  return array, lengths


def _inside(array, lengths):
  return (np.arange(array.shape[1]) < lengths[:, None]).astype(np.float32)
