"""The decoder's layers arranged for decoding: names and dtypes of their arrays."""

import dataclasses

import jax
from tiny_decoders import RICH, make

from rft_jax.models import decoding_layers
from rft_jax.sharding import name_of


def test_only_kernels_and_biases_have_the_compute_dtype():
  config = dataclasses.replace(RICH, dtype='bfloat16')
  layers = decoding_layers.layers_of(make(config))
  assert len(layers) == config.layers
  kinds = {
    (name_of(p).rsplit('/')[-1], str(x.dtype))
    for p, x in jax.tree_util.tree_leaves_with_path(layers)
  }
  assert kinds == {('weight', 'bfloat16'), ('bias', 'bfloat16'), ('scale', 'float32')}
