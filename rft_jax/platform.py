"""The backend that JAX computes on: its name, and the compute capability of a GPU.

The one module that asks JAX which hardware it runs on; what depends on it asks here.
"""

import jax


def backend() -> str:
  """Returns the name of JAX's default backend: 'cpu', 'gpu' or 'tpu'."""
  return jax.default_backend()


def is_cpu() -> bool:
  return backend() == 'cpu'


def device_capability() -> float | None:
  """Returns the CUDA compute capability of the first device, such as 8.0 for an A100.

  None where the device has none: a CPU, a TPU, or a GPU of AMD (which names 'gfx942').
  """
  capability = str(getattr(jax.devices()[0], 'compute_capability', ''))
  return float(capability) if capability.replace('.', '').isdigit() else None
