"""Checkpoints: bit-exact, atomic, pruned to the best and the last."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rft_jax.records import checkpoint
from rft_jax.records.checkpoint import CheckpointConfig, Checkpoints
from rft_jax.types import TrainState

TX = optax.adam(1e-3)


class Policy(nnx.Module):
  """Two leaves, one of them bf16, and an absent one, as a partitioned tree has."""

  def __init__(self, key, dim=8):
    self.embed = nnx.Param(jax.random.normal(key, (16, dim)))
    self.scale = nnx.Param(jax.random.normal(key, (dim,)).astype(jnp.bfloat16))


def make_state(step=0, seed=0, dim=8):
  policy = Policy(jax.random.key(seed), dim)
  return TrainState(step, policy, TX.init(policy))


def shardings(tree, shape, axes=('a', 'b')):
  """Shardings that split the matrices of a tree over a mesh of the eight devices."""
  mesh = Mesh(np.asarray(jax.devices()).reshape(shape), axes)
  return jax.tree.map(lambda x: NamedSharding(mesh, P(*axes) if x.ndim == 2 else P()), tree)


def abstract(tree, shardings=None):
  shapes = jax.eval_shape(lambda: tree)
  if shardings is None:
    return shapes
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_round_trip_is_bit_exact_and_keeps_the_class(tmp_path):
  state = make_state(step=7)._replace(algorithm_state={'threshold': 0.1})
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(7, state, stage=1, metric=0.25, position={'epoch': 2})
  restored = checkpoints.restore('last', abstract(make_state(seed=1)))
  assert restored.step == 7 and isinstance(restored.policy, Policy)
  assert_same_bits(restored.policy, state.policy)
  assert_same_bits(restored.optimizer, state.optimizer)
  assert restored.algorithm_state == {'threshold': 0.1}
  assert checkpoints.metadata(7) == {
    'step': 7,
    'stage': 1,
    'metric': 0.25,
    'position': {'epoch': 2},
    'algorithm_state': {'threshold': 0.1},
  }


def test_a_sharded_state_is_restored_onto_another_mesh_bit_for_bit(tmp_path):
  state = make_state(step=3)
  trees = {'policy': state.policy, 'optimizer': state.optimizer}
  saved, restored_to = shardings(trees, (4, 2)), shardings(trees, (2, 4), ('b', 'a'))
  placed = jax.device_put(trees, saved)
  Checkpoints(tmp_path).save(3, TrainState(3, **placed), stage=0)
  target = abstract(trees, restored_to)
  restored = Checkpoints(tmp_path).restore(3, TrainState(0, **target))
  assert_same_bits(restored.policy, state.policy)
  assert_same_bits(restored.optimizer, state.optimizer)
  assert restored.policy.embed.get_value().sharding == restored_to['policy'].embed.get_value()
  assert len(restored.policy.embed.get_value().addressable_shards) == 8


def test_the_policy_alone_is_restored_without_an_optimizer(tmp_path):
  state = make_state(step=1)
  Checkpoints(tmp_path).save(1, state, stage=0)
  assert_same_bits(
    Checkpoints(tmp_path).restore_policy('best', abstract(state.policy)), state.policy
  )


def test_an_optimizer_without_state_is_saved_too(tmp_path):
  policy = Policy(jax.random.key(0))
  state = TrainState(1, policy, optax.sgd(0.1).init(policy))
  Checkpoints(tmp_path).save(1, state, stage=0)
  restored = Checkpoints(tmp_path).restore(1, abstract(state))
  assert jax.tree.structure(restored.optimizer) == jax.tree.structure(state.optimizer)


def test_the_best_and_the_last_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_best=2, keep_last=1))
  for step, metric in ((1, 0.5), (2, 0.9), (3, 0.1), (4, float('nan')), (5, 0.7), (6, None)):
    checkpoints.save(step, make_state(step), stage=0, metric=metric)
  assert checkpoints.steps() == [2, 5, 6]
  assert checkpoints.best() == 2 and checkpoints.latest() == 6
  assert checkpoints.restore('best', abstract(make_state())).step == 2


def test_best_is_the_newest_where_none_is_graded(tmp_path):
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
  for step in (1, 2):
    checkpoints.save(step, make_state(step), stage=0)
  assert checkpoints.best() == 2


def test_saving_a_step_again_replaces_it(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_state(1, seed=0), stage=0)
  checkpoints.save(1, make_state(1, seed=5), stage=0)
  assert_same_bits(
    checkpoints.restore_policy(1, abstract(make_state().policy)), make_state(seed=5).policy
  )


def test_a_reference_is_neither_pruned_nor_overwritten(tmp_path):
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_best=0, keep_last=1))
  reference = make_state(seed=3).policy
  assert not checkpoints.has_reference(1)
  checkpoints.save_reference(1, reference)
  checkpoints.save_reference(1, make_state(seed=4).policy)
  for step in (1, 2, 3):
    checkpoints.save(step, make_state(step), stage=1)
  assert checkpoints.steps() == [3] and checkpoints.has_reference(1)
  assert_same_bits(checkpoints.restore_reference(1, abstract(reference)), reference)
  with pytest.raises(
    checkpoint.MissingCheckpoint, match='no reference_stage_2; there are reference_stage_1'
  ):
    checkpoints.restore_reference(2, abstract(reference))


def test_an_interrupted_save_leaves_the_one_before_usable(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, make_state(1, seed=1), stage=0)
  save = ocp.Checkpointer.save

  def killed(self, path, *args, **kwargs):
    if path.name == 'optimizer':
      raise KeyboardInterrupt
    return save(self, path, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, 'save', killed)
  for step in (1, 2):  # while replacing, and while adding
    with pytest.raises(KeyboardInterrupt):
      checkpoints.save(step, make_state(step, seed=9), stage=0)
    assert Checkpoints(tmp_path).steps() == [1]
    assert_same_bits(
      checkpoints.restore('last', abstract(make_state())).policy, make_state(seed=1).policy
    )
  monkeypatch.undo()
  checkpoints.save(2, make_state(2), stage=0)
  assert [path.name for path in tmp_path.iterdir()] == ['step_000002']


def test_a_checkpoint_caught_between_two_renames_is_put_back(tmp_path):
  checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep_last=2))
  checkpoints.save(1, make_state(1), stage=0)
  (tmp_path / 'step_000001').rename(tmp_path / '.step_000001.replaced')
  checkpoints.save(2, make_state(2), stage=0)
  assert checkpoints.steps() == [1, 2]


def test_a_missing_step_lists_those_that_exist(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'none', CheckpointConfig(keep_last=9))
  with pytest.raises(checkpoint.MissingCheckpoint, match='holds no checkpoint'):
    checkpoints.restore('last', make_state())
  for step in (10, 20):
    checkpoints.save(step, make_state(step), stage=0)
  assert checkpoints.resolve('20') == 20
  with pytest.raises(checkpoint.MissingCheckpoint, match='step 15; there are 10, 20'):
    checkpoints.restore(15, make_state())
  with pytest.raises(checkpoint.MissingCheckpoint, match="'newest': need 'best', 'last' or a step"):
    checkpoints.resolve('newest')


def test_config_problems_are_all_listed():
  assert CheckpointConfig().validate() == []
  problems = CheckpointConfig(every=-1, keep_best=-2, keep_last=0).validate()
  assert [problem.split(',')[0] for problem in problems] == [
    'every=-1',
    'keep_best=-2',
    'keep_last=0',
  ]
