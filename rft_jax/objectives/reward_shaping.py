"""The overlong penalty, added to the reward of long completions. Host arrays, numpy."""

import numpy as np


def soft_overlong(lengths, *, limit: int, buffer: int) -> np.ndarray:
  """Returns DAPO's penalty for a completion of n tokens, from 0 down to -1.

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
