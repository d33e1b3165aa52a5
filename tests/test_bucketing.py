"""Bucketing: sizes hold what they must, with little padding."""

from rft_jax.bucketing import bucket


def test_buckets_hold_their_length_with_little_padding():
  for length in range(1, 5000):
    size = bucket(length)
    assert length <= size and (size - length < 8 or size <= 1.25 * length)
  assert len({bucket(length) for length in range(1, 8193)}) == 36
