"""Rotary position embedding (RoPE): queries and keys are rotated by their token's position."""

import jax.numpy as jnp
import numpy as np


def frequencies(head_dim: int, theta: float, scaling=None):
  """Returns f32[H / 2] radians per token: theta ** (-2 i / H), Su et al. 2021, arXiv 2104.09864.

  With a Llama3Rope, wavelengths are stretched as in Llama 3.1 (see config.py). A constant, computed
  in NumPy: an accelerator's own power function may be coarse, and positions multiply the error.
  """
  frequencies = np.float32(1) / np.float32(theta) ** (
    np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  )
  if scaling is None:
    return frequencies
  turns = scaling.original_max_positions * frequencies / (2 * np.pi)  # in the old context length
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  # The weight of the original frequency: 0 below `low` turns, 1 above `high` turns.
  unscaled = np.clip((turns - low) / (high - low), 0.0, 1.0)
  return np.float32(frequencies * (unscaled + (1.0 - unscaled) / scaling.factor))


def table(positions, frequencies):
  """Returns (cos, sin), f32[B, T, H / 2], of positions i32[B, T]."""
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, table):
  """Rotates the pairs (x[i], x[i + H / 2]) of [B, T, heads, H] by the table's angles, in f32."""
  cos, sin = (part[:, :, None, None] for part in table)  # [B, T, 1, 1, H / 2]
  halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
  # A reversed axis, not a concatenation of the halves: it needs no separate pass over memory.
  rotated_halves = halves[..., ::-1, :] * jnp.array([[-1.0], [1.0]], jnp.float32)
  return (halves * cos + rotated_halves * sin).reshape(x.shape).astype(x.dtype)
