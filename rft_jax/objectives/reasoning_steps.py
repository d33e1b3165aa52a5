"""Advantages of reasoning steps (process rewards), and their tokens. Ragged lists and numpy.

A step is a run of tokens that ends at a known token: a line of the reasoning, or a turn. Row b has
the ends e_1 < e_2 < ... (positions in the completion, from 0) and one reward for each. A token
belongs to the first step that does not end before it, and tokens after the last end to none. All
tokens of a step have the same advantage; tool tokens, where the loss mask is 0, have none.

    steps = normalised_sums(rewards, group)              # or baseline_sums, or differences
    advantages = to_tokens(steps, ends, loss_mask)       # f32[B, T]
    advantages = blend(outcome, advantages, loss_mask, outcome_weight=..., process_weight=...)
"""

import numpy as np


def turn_ends(loss_mask) -> list[list[int]]:
  """Returns the last token of each run of trainable tokens, row by row: turns as steps.

  Args:
    loss_mask: f32[B, T], 0 on tool tokens and padding.
  """
  trainable = np.pad(np.asarray(loss_mask) > 0, ((0, 0), (0, 1)))
  return [np.flatnonzero(row[:-1] & ~row[1:]).tolist() for row in trainable]


def normalised_sums(rewards, group, *, epsilon=1e-4, ddof=1) -> list[np.ndarray]:
  """Returns for each step the sum of the normalised rewards from it to the last.

      z = (r - mean) / (std + epsilon),  A_j = z_j + z_{j+1} + ... + z_J

  with mean and std over all steps of all samples of the group: process supervision of GRPO,
  https://arxiv.org/abs/2402.03300, section 4.1.3. A long chain sums more terms, so good chains are
  rewarded for length: bound the number of steps, or use baseline_sums. Equal rewards give exactly
  0.

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
  """Returns for each step the sum, from it to the last, of rewards minus the mean of their step.

      z_j = r_j - mean of r_j over the samples of the group with a step j
      A_j = z_j + z_{j+1} + ... + z_J

  No std, and a chain is not rewarded for being long. A step that no other sample has, and a step
  of equal rewards, has z = 0.

  Args and returns: as normalised_sums.
  """
  rewards, group = _checked(rewards, group)
  centred = [row.copy() for row in rewards]
  for rows in _groups(group):
    for j in range(max(len(rewards[b]) for b in rows)):
      rows_with_step = [b for b in rows if len(rewards[b]) > j]
      step = np.array([rewards[b][j] for b in rows_with_step])
      centred_step = np.zeros_like(step) if step.max() == step.min() else step - step.mean()
      for b, value in zip(rows_with_step, centred_step):
        centred[b][j] = value
  return [_sums_to_go(row) for row in centred]


def differences(potentials) -> list[np.ndarray]:
  """Returns what each step adds to the potential, r_j = F(s_j) - F(s_{j-1}).

  As rewards they do not change the best policy (Ng, Harada and Russell 1999, potential-based
  shaping), since they sum to F(s_J) - F(s_0). Used as advantages, without any sum, and with F the
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


def step_indices(ends, T: int) -> np.ndarray:
  """Returns i32[B, T], the step of each token, from 0; tokens after the last step have one more."""
  return np.array([np.searchsorted(row_ends, np.arange(T)) for row_ends in ends], np.int32)


def step_sums(values, ends, loss_mask) -> list[np.ndarray]:
  """Returns the sum of the values f32[B, T] of each step's trainable tokens: B arrays f64[J]."""
  masked = np.where(np.asarray(loss_mask) > 0, values, 0.0).astype(np.float64)
  return [
    np.diff(np.cumsum(np.append(0.0, row))[np.asarray([-1, *row_ends]) + 1])
    for row, row_ends in zip(masked, ends)
  ]


def first_values(values, ends, loss_mask) -> list[np.ndarray]:
  """Returns the value f32[B, T] at the first trainable token of each step; 0 if it has none."""
  values_by_row = []
  for row, row_ends, trainable in zip(np.asarray(values), ends, np.asarray(loss_mask) > 0):
    starts = [0, *(end + 1 for end in row_ends)]
    positions = [
      start + np.flatnonzero(trainable[start : end + 1]) for start, end in zip(starts, row_ends)
    ]
    values_by_row.append(np.array([row[at[0]] if len(at) else 0.0 for at in positions]))
  return values_by_row


def to_tokens(step_advantages, ends, loss_mask) -> np.ndarray:
  """Returns f32[B, T]: for each trainable token the advantage of its step; 0 after the last step.

  Args:
    step_advantages: B arrays f64[J].
    ends: B lists of J positions, rising, each the last token of its step.
    loss_mask: f32[B, T].
  Raises:
    ValueError: the ends of a row do not rise, are outside 0..T-1, or are not one for each step.
  """
  loss_mask = np.asarray(loss_mask)
  B, T = loss_mask.shape
  if not len(step_advantages) == len(ends) == B:
    raise ValueError(f'{len(step_advantages)} rows of steps, {len(ends)} of ends, need {B}')
  advantages = np.zeros((B, T), np.float32)
  for b, (row, row_ends) in enumerate(zip(step_advantages, ends)):
    row_ends = np.asarray(row_ends, np.int64)
    inside = not row_ends.size or row_ends[0] >= 0 and row_ends[-1] < T
    if len(row_ends) != len(row) or not inside or (np.diff(row_ends) <= 0).any():
      raise ValueError(
        f'row {b}: ends {row_ends.tolist()} for {len(row)} steps, need one for each step, rising, '
        f'in 0..{T - 1}'
      )
    advantages[b] = np.append(row, 0.0)[np.searchsorted(row_ends, np.arange(T))]
  return np.where(loss_mask > 0, advantages, np.float32(0.0))


def blend(outcome, process, loss_mask, *, outcome_weight=1.0, process_weight=1.0) -> np.ndarray:
  """Returns outcome_weight * A_outcome + process_weight * A_process on trainable tokens.

  Each is normalised separately beforehand, so that the two weights are relative to each other;
  compare PRIME, https://arxiv.org/abs/2502.01456.

  Args:
    outcome: f32[B], the advantage of each sample's final grade.
    process: f32[B, T], from to_tokens.
    loss_mask: f32[B, T].
  """
  outcome, process, loss_mask = (np.asarray(x) for x in (outcome, process, loss_mask))
  if process.shape != loss_mask.shape or outcome.shape != loss_mask.shape[:1]:
    raise ValueError(
      f'outcome {outcome.shape}, process {process.shape}, loss_mask {loss_mask.shape}, '
      'need [B], [B, T], [B, T]'
    )
  total = outcome_weight * outcome[:, None] + process_weight * process
  return np.where(loss_mask > 0, total, 0.0).astype(np.float32)


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
