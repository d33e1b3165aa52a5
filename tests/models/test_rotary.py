"""RoPE: Llama 3.1's frequencies against the published rule, and relative positions."""

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import models
from rft_jax.models import rotary


def test_llama3_frequencies_follow_the_published_rule():
  """Wavelengths below old / high are unchanged, above old / low divided, interpolated between."""
  scaling = models.Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
  )
  expected = []
  for i in range(0, 128, 2):
    frequency = 500000.0 ** (-i / 128)
    wavelength = 2 * np.pi / frequency
    if wavelength < 8192 / 4.0:
      expected.append(frequency)
    elif wavelength > 8192 / 1.0:
      expected.append(frequency / 8.0)
    else:
      smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
      expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
  frequencies = rotary.frequencies(128, 500000.0, scaling)
  np.testing.assert_allclose(frequencies, expected, rtol=1e-5)
  plain = rotary.frequencies(128, 500000.0)
  ratio = plain / frequencies
  assert ratio[0] == 1 and ratio[-1] == 8 and ((ratio > 1.1) & (ratio < 7.9)).any()


def test_positions_matter_only_by_their_difference():
  table = lambda start: rotary.table(start + jnp.arange(4)[None], rotary.frequencies(8, 10000.0))
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 4, 1, 8))
  scores = lambda start: jnp.einsum(
    'btnh,bsnh->bts', rotary.rotate(q, table(start)), rotary.rotate(k, table(start))
  )
  np.testing.assert_allclose(scores(0), scores(50), atol=1e-4)
  assert np.abs(scores(0) - jnp.einsum('btnh,bsnh->bts', q, k)).max() > 0.1
