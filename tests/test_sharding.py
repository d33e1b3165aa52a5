"""Sharding: every leaf of policy, optimizer and decoding layers has a rule, or is refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from rft_jax import models, sharding
from rft_jax.models import decoding_layers
from rft_jax.training import optim

CONFIG = models.DecoderConfig(
  vocab_size=64,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_dim=64,
  qkv_bias=True,
  output_bias=True,
  mlp_bias=True,
  qk_norm=True,
)


def test_every_leaf_of_policy_and_optimizer_has_a_rule():
  mesh = sharding.make_mesh(2, 2, 2)
  model = models.abstract(CONFIG)
  tx = optim.make(optim.OptimConfig(), steps=3)
  shardings = sharding.shardings_for(jax.eval_shape(tx.init, model), mesh)
  policy_specs = {
    sharding.name_of(path): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharding.shardings_for(model, mesh))
  }
  assert policy_specs['blocks/attention/q/kernel'] == P(None, 'fsdp', 'tensor')
  assert policy_specs['embed'] == P('tensor', 'fsdp')
  optimizer_specs = {
    sharding.name_of(path): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(shardings)
  }
  matched = [
    name
    for name in optimizer_specs
    for parameter in policy_specs
    if name.endswith('/' + parameter) and optimizer_specs[name] == policy_specs[parameter]
  ]
  assert len(matched) == 2 * len(policy_specs)  # Adam's moments are like their parameters


def test_an_unmatched_leaf_is_an_error_that_names_it():
  with pytest.raises(ValueError, match='no sharding rule for forgotten'):
    sharding.shardings_for({'forgotten': jnp.zeros((2, 2))}, sharding.make_mesh())


def test_decoding_layers_have_a_rule_for_every_leaf_and_refuse_others():
  mesh = sharding.make_mesh(1, 2, 4)
  layers = jax.eval_shape(decoding_layers.layers_of, models.abstract(CONFIG))
  specs = {
    sharding.name_of(path): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(sharding.decoding_shardings(layers, mesh))
  }
  assert specs['0/down/weight'] == P('tensor')
  assert specs['1/gate_up/weight'] == P(None, None, 'tensor')
  assert specs['0/qkv/weight'] == P()  # 2 key-value heads over 4 devices: replicated
  forgotten = {'down': {'weight': jnp.zeros((64, 32))}, 'forgotten': jnp.zeros((2, 3))}
  with pytest.raises(ValueError, match=r'^sharding:\nno sharding rule for forgotten \(2, 3\)$'):
    sharding.decoding_shardings(forgotten, mesh)


def test_an_axis_that_does_not_divide_is_named():
  mesh = sharding.make_mesh(1, 8, 1)
  words = r'head/kernel \(12, 64\): 12 is not a multiple of mesh.fsdp=8'
  with pytest.raises(ValueError, match=words):
    sharding.shardings_for({'head': {'kernel': jnp.zeros((12, 64))}}, mesh)


def test_a_mesh_of_another_size_is_refused():
  with pytest.raises(ValueError, match='3 devices, found 8'):
    sharding.make_mesh(3, 1, 1)
  assert dict(sharding.make_mesh(-1, 2, 2).shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_leaves_are_created_in_their_sharding():
  mesh = sharding.make_mesh(1, 4, 2)
  model = sharding.place(lambda key: models.init(CONFIG, key), mesh, jax.random.key(0))
  kernel = model.blocks.mlp.up.kernel[...]
  assert kernel.sharding.shard_shape(kernel.shape) == (2, 8, 32)
  tx = optim.make(optim.OptimConfig(), steps=3)
  state = sharding.place(tx.init, mesh, model)
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    assert leaf.sharding.mesh == mesh, sharding.name_of(path)
