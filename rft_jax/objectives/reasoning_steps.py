"""Credit by steps: each step of a completion has a reward of its own. Ragged lists and numpy.

A step is a run of tokens that ends at a known token: a line of the reasoning, or a turn. Row b has
the ends e_1 < e_2 < ... (places in the completion, from 0) and as many rewards. A token belongs to
the first step that does not end before it, and what follows the last end to none. All tokens of
a step have one advantage; tool tokens, of weight 0, have none.

    steps = normalised_sums(rewards, group)              # or baseline_sums, or differences
    advantages = to_tokens(steps, ends, weights)         # f32[B, T]
    advantages = blend(outcome, advantages, weights, outcome_weight=..., process_weight=...)
"""

import numpy as np


def turn_ends(weights) -> list[list[int]]:
  """Returns the last token of each run of trainable tokens, row by row: turns as steps.

  Args:
    weights: f32[B, T], 0 on tool tokens and padding.
  """
  trainable = np.pad(np.asarray(weights) > 0, ((0, 0), (0, 1)))
  return [np.flatnonzero(row[:-1] & ~row[1:]).tolist() for row in trainable]


def normalised_sums(rewards, group, *, epsilon=1e-4, ddof=1) -> list[np.ndarray]:
  """Returns for each step the sum of the normalised rewards from it to the last.

      z = (r - mean) / (std + epsilon),  A_j = z_j + z_{j+1} + ... + z_J

  with mean and std over all steps of all samples of the group: process supervision of GRPO,
  https://arxiv.org/abs/2402.03300, section 4.1.3. A long chain sums more terms, so a good one is
  paid for length: bound the number of steps, or use baseline_sums. Equal rewards give exactly 0.

  Args:
    rewards: B lists of finite numbers, one for each step; a list may be empty.
    group: i[B], which rows are samples of one prompt.
  Returns:
    B arrays f64[J].
  """
  rewards, group = _checked(rewards, group)
  normalised = list(rewards)
  for rows in _groups(group):
    pool = np.concatenate([rewards[b] for b in rows])
    equal = not pool.size or pool.max() == pool.min()
    std = 1.0 if equal else pool.std(ddof=ddof)
    for b in rows:
      normalised[b] = (
        np.zeros_like(rewards[b]) if equal else (rewards[b] - pool.mean()) / (std + epsilon)
      )
  return [_sums_to_go(row) for row in normalised]


def baseline_sums(rewards, group) -> list[np.ndarray]:
  """Returns for each step the sum, from it to the last, of rewards less the mean of their step.

      z_j = r_j - mean of r_j over the samples of the group with a step j
      A_j = z_j + z_{j+1} + ... + z_J

  No std, and a chain is not paid for being long. A step that no other sample has, and a step of
  equal rewards, has z = 0.

  Args and returns: as normalised_sums.
  """
  rewards, group = _checked(rewards, group)
  centred = [row.copy() for row in rewards]
  for rows in _groups(group):
    for j in range(max(len(rewards[b]) for b in rows)):
      having = [b for b in rows if len(rewards[b]) > j]
      step = np.array([rewards[b][j] for b in having])
      less = np.zeros_like(step) if step.max() == step.min() else step - step.mean()
      for b, value in zip(having, less):
        centred[b][j] = value
  return [_sums_to_go(row) for row in centred]


def differences(potentials) -> list[np.ndarray]:
  """Returns what each step adds to the potential, r_j = F(s_j) - F(s_{j-1}).

  As rewards they leave the best policy what it was (Ng, Harada and Russell 1999, potential-based
  shaping), for they sum to F(s_J) - F(s_0). Taken as advantages, without any sum, and with F the
  mean grade of completions sampled anew from each state, they are those of VinePPO,
  https://arxiv.org/abs/2410.01679.

  Args:
    potentials: B lists of J + 1 numbers, from the prompt alone to the end of the last step.
  """
  potentials = [np.asarray(row, np.float64) for row in potentials]
  for b, row in enumerate(potentials):
    if row.ndim != 1 or not len(row) or not np.isfinite(row).all():
      raise ValueError(f'row {b}: potentials {row}, need 1 finite number or more')
  return [np.diff(row) for row in potentials]


def numbers(ends, T: int) -> np.ndarray:
  """Returns i32[B, T], the step of each token, from 0; what follows the last is one more."""
  return np.array([np.searchsorted(places, np.arange(T)) for places in ends], np.int32)


def sums(values, ends, weights) -> list[np.ndarray]:
  """Returns the sum of the values f32[B, T] of each step's trainable tokens: B arrays f64[J]."""
  kept = np.where(np.asarray(weights) > 0, values, 0.0).astype(np.float64)
  return [
    np.diff(np.cumsum(np.append(0.0, row))[np.asarray([-1, *places]) + 1])
    for row, places in zip(kept, ends)
  ]


def first_values(values, ends, weights) -> list[np.ndarray]:
  """Returns the value f32[B, T] at the first trainable token of each step; 0 if it has none."""
  found = []
  for row, places, counts in zip(np.asarray(values), ends, np.asarray(weights) > 0):
    starts = [0, *(place + 1 for place in places)]
    inside = [start + np.flatnonzero(counts[start : end + 1]) for start, end in zip(starts, places)]
    found.append(np.array([row[at[0]] if len(at) else 0.0 for at in inside]))
  return found


def to_tokens(step_advantages, ends, weights) -> np.ndarray:
  """Returns f32[B, T]: for each trainable token the advantage of its step; 0 after the last step.

  Args:
    step_advantages: B arrays f64[J].
    ends: B lists of J places, rising, each the last token of its step.
    weights: f32[B, T].
  Raises:
    ValueError: the ends of a row do not rise, lie outside 0..T-1, or are not one for each step.
  """
  weights = np.asarray(weights)
  B, T = weights.shape
  if not len(step_advantages) == len(ends) == B:
    raise ValueError(f'{len(step_advantages)} rows of steps, {len(ends)} of ends, need {B}')
  advantages = np.zeros((B, T), np.float32)
  for b, (row, places) in enumerate(zip(step_advantages, ends)):
    places = np.asarray(places, np.int64)
    inside = not places.size or places[0] >= 0 and places[-1] < T
    if len(places) != len(row) or not inside or (np.diff(places) <= 0).any():
      raise ValueError(
        f'row {b}: ends {places.tolist()} for {len(row)} steps, need as many, rising, in 0..{T - 1}'
      )
    advantages[b] = np.append(row, 0.0)[np.searchsorted(places, np.arange(T))]
  return np.where(weights > 0, advantages, np.float32(0.0))


def blend(outcome, process, weights, *, outcome_weight=1.0, process_weight=1.0) -> np.ndarray:
  """Returns outcome_weight * A_outcome + process_weight * A_process on trainable tokens.

  Each has been normalised alone, so that the weights mean what they say; compare PRIME,
  https://arxiv.org/abs/2502.01456.

  Args:
    outcome: f32[B], the advantage of each sample's final grade.
    process: f32[B, T], from to_tokens.
    weights: f32[B, T].
  """
  outcome, process, weights = (np.asarray(x) for x in (outcome, process, weights))
  if process.shape != weights.shape or outcome.shape != weights.shape[:1]:
    raise ValueError(
      f'outcome {outcome.shape}, process {process.shape}, weights {weights.shape}, '
      'need [B], [B, T], [B, T]'
    )
  total = outcome_weight * outcome[:, None] + process_weight * process
  return np.where(weights > 0, total, 0.0).astype(np.float32)


def _checked(rewards, group):
  rewards, group = [np.asarray(row, np.float64) for row in rewards], np.asarray(group)
  if group.shape != (len(rewards),):
    raise ValueError(f'{len(rewards)} rows of rewards, group {group.shape}')
  for b, row in enumerate(rewards):
    if row.ndim != 1 or not np.isfinite(row).all():
      raise ValueError(f'row {b}: rewards {row}, need a list of finite numbers')
  return rewards, group


def _groups(group):
  return [np.flatnonzero(group == name) for name in np.unique(group)]


def _sums_to_go(row):
  return np.cumsum(row[::-1])[::-1]
