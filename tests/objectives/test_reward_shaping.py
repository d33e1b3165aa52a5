"""The overlong penalty by hand."""

import numpy as np
import pytest

from rft_jax.objectives import reward_shaping


def test_soft_overlong_by_hand():
  penalties = reward_shaping.soft_overlong(
    [0, 16384, 17408, 20480, 20481, 10**9], limit=20480, buffer=4096
  )
  np.testing.assert_allclose(penalties, [0, 0, -0.25, -1, -1, -1])
  with pytest.raises(ValueError, match='buffer=30'):
    reward_shaping.soft_overlong([1], limit=20, buffer=30)
