"""Files of a checkpoint: arrays by leaf name, and a mismatch that names every leaf."""

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from rft_jax.records import checkpoint_files


class Policy(nnx.Module):
  def __init__(self):
    self.embed = nnx.Param(jnp.ones((16, 8)))
    self.scale = nnx.Param(jnp.ones(8, jnp.bfloat16))


@pytest.fixture
def folder(tmp_path):
  checkpoint_files.write(tmp_path / 'step_000001', {'step': 1}, {'policy': Policy()})
  return tmp_path / 'step_000001'


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_leaves_are_saved_under_their_names(folder):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    saved = reader.restore(folder / 'policy')
  assert sorted(saved) == sorted(checkpoint_files.named_leaves(Policy())) == ['embed', 'scale']
  assert checkpoint_files.read_metadata(folder) == {'step': 1}


def test_leaves_of_one_name_are_refused():
  with pytest.raises(ValueError, match="leaves share a name: .'a/b'."):
    checkpoint_files.named_leaves({'a/b': 1, 'a': {'b': 2}})


def test_every_leaf_that_does_not_fit_is_named(folder):
  target = {
    'embed': jax.ShapeDtypeStruct((16, 4), jnp.float32),
    'scale': jax.ShapeDtypeStruct((8,), jnp.float32),
    'head': jax.ShapeDtypeStruct((2,), jnp.float32),
  }
  with pytest.raises(checkpoint_files.MismatchedCheckpoint) as caught:
    checkpoint_files.restore(folder, {'policy': target})
  message = str(caught.value)
  assert 'policy/embed: found float32[16, 8], expected float32[16, 4]' in message
  assert 'policy/scale: found bfloat16[8], expected float32[8]' in message
  assert 'policy/head: not in the checkpoint' in message
  target = {'embed': jax.ShapeDtypeStruct((16, 8), jnp.float32)}
  with pytest.raises(
    checkpoint_files.MismatchedCheckpoint, match='policy/scale: in the checkpoint, not expected'
  ):
    checkpoint_files.restore(folder, {'policy': target})
