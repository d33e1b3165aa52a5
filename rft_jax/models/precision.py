"""Precision of matrix products: float32 operands are multiplied in float32 on every backend."""

import jax
import jax.numpy as jnp


def precision_for(dtype):
  """Returns the jax.lax.Precision of products of operands of a dtype.

  float32 means float32, also where the hardware's default for float32 operands is coarser (TF32 on
  GPUs, bfloat16 on TPUs).
  """
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT
