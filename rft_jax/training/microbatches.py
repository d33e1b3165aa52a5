"""The microbatches of a batch: how many tokens they hold here, and their place on the mesh."""

import jax

from rft_jax import platform, sharding
from rft_jax.data import packing

CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 16384  # a CPU is faster with what fits into its caches


def plan(batch, config, mesh):
  """Returns the (Microbatch, its place in the batch) pairs of packing.pack, as host arrays.

  Args:
    config: an UpdateConfig; microbatch_tokens=0 takes the default of this platform.
  """
  default = CPU_TOKENS if platform.is_cpu() else ACCELERATOR_TOKENS
  return packing.pack(
    batch, tokens=config.microbatch_tokens or default, shards=sharding.batch_shards(mesh)
  )


def put(microbatch, mesh):
  """Returns a microbatch on the mesh, its rows split over the batch axes."""
  return jax.device_put(microbatch, sharding.batch_sharding(mesh))
