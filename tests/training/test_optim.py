"""The optimizer chain: global-norm clip, schedule, and which weights decay."""

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import sharding
from rft_jax.training import optim


def test_global_norm_clip_and_schedule():
  config = optim.OptimConfig(
    optimizer='sgd', learning_rate=0.5, schedule='linear', warmup_steps=1, clip_norm=1.0
  )
  tx = optim.make(config, steps=3)
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
  state = tx.init(params)
  steps = []
  for _ in range(3):
    change, state = tx.update({'a': jnp.array([0.0, 8.0]), 'b': jnp.array([6.0])}, state, params)
    steps.append(-float(change['a'][1]))
  # norm 10 is clipped to 1, so 8 counts 0.8; rates: half of the peak, the peak, half way to 0
  np.testing.assert_allclose(steps, [0.8 * 0.25, 0.8 * 0.5, 0.8 * 0.25], rtol=1e-6)


def test_decay_is_on_matrices_alone(model):
  decayed = {
    sharding.name_of(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(optim.decayed(model))
  }
  assert decayed['embed'] and decayed['blocks/mlp/up/kernel'] and decayed['head/kernel']
  assert not decayed['blocks/attention/q/bias'] and not decayed['final_norm/scale']
