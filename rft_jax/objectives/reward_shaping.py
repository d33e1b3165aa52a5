"""What is added to a grade for length and repetition. Host arrays, numpy; lengths in tokens."""

import numpy as np


def weighted_total(components, weights) -> np.ndarray:
  """Returns sum(w_k r_k) over the components that apply; NaN for a sample of which none does.

  Args:
    components: f64[..., K], NaN where one does not apply.
    weights: f64[K].
  """
  components, weights = np.asarray(components, np.float64), np.asarray(weights, np.float64)
  if weights.shape != components.shape[-1:]:
    raise ValueError(f'weights {weights.shape}, need {components.shape[-1:]}')
  present = ~np.isnan(components)
  total = (np.where(present, components, 0.0) * weights).sum(-1)
  return np.where(present.any(-1), total, np.nan)


def gated(reward, passed) -> np.ndarray:
  """Returns reward where passed, else 0: a format counts only in an answer that is right.

  Added instead, it would pay for wrong answers in the right format.
  """
  return np.where(np.asarray(passed, bool), np.asarray(reward, np.float64), 0.0)


def soft_overlong(lengths, *, limit: int, buffer: int) -> np.ndarray:
  """Returns DAPO's punishment of length n, from 0 down to -1.

      0                              n <= limit - buffer
      ((limit - buffer) - n) / buffer  n <= limit
      -1                             beyond

  https://arxiv.org/abs/2503.14476, eq. 13; there limit is 20480 and buffer 4096.

  Args:
    lengths: [...] tokens.
  """
  if not 0 < buffer <= limit:
    raise ValueError(f'buffer={buffer}, limit={limit}, need 0 < buffer <= limit')
  lengths = np.asarray(lengths, np.float64)
  return np.where(lengths > limit, -1.0, np.minimum((limit - buffer - lengths) / buffer, 0.0))


def cosine_length(
  lengths, correct, *, limit: int, right=(1.0, 0.5), wrong=(-1.0, -0.5)
) -> np.ndarray:
  """Returns a reward that falls with the length of right answers and rises with that of wrong ones.

      long + (short - long) (1 + cos(pi min(n / limit, 1))) / 2

  Yeo et al. 2025, https://arxiv.org/abs/2502.03373. Wrong answers are paid for length: watch it.

  Args:
    lengths: [...] tokens.
    correct: bool[...].
    limit: the length from which the reward stays what it is.
    right, wrong: (short, long), the rewards at length 0 and from limit on.
  """
  if limit <= 0:
    raise ValueError(f'limit={limit}, need > 0')
  lengths, correct = np.asarray(lengths, np.float64), np.asarray(correct, bool)
  short, long = (np.where(correct, *pair) for pair in zip(right, wrong))
  return long + (short - long) * (1 + np.cos(np.pi * np.minimum(lengths / limit, 1.0))) / 2


def repetition(tokens, *, n: int = 4, worst: float = -1.0) -> float:
  """Returns (1 - different n-grams / n-grams) * worst; 0 for what is too short to have one.

  Args:
    tokens: the ids of one completion.
    worst: the limit that a loop comes near, <= 0.
  """
  if n < 1 or worst > 0:
    raise ValueError(f'n={n}, worst={worst}, need n >= 1 and worst <= 0')
  total = len(tokens) - n + 1
  if total < 1:
    return 0.0
  different = len({tuple(tokens[start : start + n]) for start in range(total)})
  return (1 - different / total) * worst
