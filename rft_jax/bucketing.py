"""Bucketing: array sizes rounded up to a few values, so that a run compiles few programs."""


def round_up(size: int, multiple: int) -> int:
  return -(-size // multiple) * multiple


def bucket(length: int) -> int:
  """Returns the array length that holds `length` tokens: four sizes an octave, at least 8 apart.

      8 16 24 32 40 48 56 64 80 96 112 128 160 192 224 256 320 ...

  At most a quarter of an array is padding (beyond 32), and lengths up to 8192 need 36 sizes.
  """
  octave = max(length - 1, 1).bit_length()
  return round_up(max(length, 1), max(8, 2**octave // 8))


def coarse_bucket(size: int) -> int:
  """Returns the smallest of 1 2 3 4 6 8 12 16 24 32 48 64 ... that is at least `size`."""
  power = power_of_two(max(size, 1))
  return power * 3 // 4 if power >= 4 and power * 3 // 4 >= size else power


def power_of_two(count: int) -> int:
  """Returns the smallest power of two that is at least `count`."""
  return 1 << max(count - 1, 0).bit_length()
