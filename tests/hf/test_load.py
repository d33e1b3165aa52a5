"""Loading checkpoints: sharded, other dtypes, tied heads, and weights that do not fit."""

import re

import hf_forward
import jax
import ml_dtypes
import numpy as np
import pytest
from hf_forward import assert_same_weights
from safetensors.numpy import load_file, save_file

from rft_jax import hf, sharding
from rft_jax.hf.load import leaves

record_oracles = hf_forward.record_oracles()


def rewrite(directory, change):
  """Applies change to the dict of a checkpoint's tensors."""
  tensors = load_file(directory / 'model.safetensors')
  change(tensors)
  save_file(tensors, directory / 'model.safetensors')


def test_sharded_load_and_export_equal_those_on_one_device(base, tmp_path):
  directory = base('llama')
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  alone, config = hf.load(directory)
  model, _ = hf.load(directory, mesh=mesh)
  shardings = sharding.shardings_for(model, mesh)
  jax.tree.map(lambda x, s: np.testing.assert_(x.sharding == s), model, shardings)
  assert_same_weights(alone, model)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory)
  assert_same_weights(alone, hf.load(out)[0])


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_other_float_dtypes_become_float32_without_change(base, dtype):
  directory = base()
  number = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
  rewrite(
    directory,
    lambda tensors: tensors.update({name: value.astype(number) for name, value in tensors.items()}),
  )
  stored = load_file(directory / 'model.safetensors')
  model, _ = hf.load(directory)
  arrays = leaves(model)
  expected = stored['model.layers.1.mlp.up_proj.weight'].T.astype(np.float32)
  np.testing.assert_array_equal(arrays['blocks/mlp/up/kernel'][1], expected)
  assert {leaf.dtype for leaf in arrays.values()} == {np.dtype(np.float32)}


def test_compute_dtype_does_not_change_the_weights(base):
  directory = base()
  model, config = hf.load(directory, dtype='bfloat16')
  assert config.dtype == 'bfloat16'
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(np.float32)}


# --- weights that do not fit ---------------------------------------------------------------------
def test_missing_extra_and_misshaped_weights_are_named_together(base):
  directory = base('llama')

  def corrupt(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight'], tensors['lm_head.weight']
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((48, 32), np.float32)
    tensors['model.norm.weight'] = np.zeros((33,), np.float32)
    tensors['model.layers.0.self_attn.q_proj.weight'] = np.zeros((32, 32), np.int8)

  rewrite(directory, corrupt)
  with pytest.raises(ValueError) as caught:
    hf.load(directory)
  for line in (
    r'missing: model\.layers\.1\.mlp\.up_proj\.weight, expected \[48, 32\]',
    r'missing: lm_head\.weight, expected \[80, 32\]',
    r'extra: model\.layers\.2\.mlp\.up_proj\.weight \[48, 32\] in model\.safetensors',
    r'shape: model\.norm\.weight \[33\] in model\.safetensors, expected \[32\]',
    r'dtype: model\.layers\.0\.self_attn\.q_proj\.weight \[32, 32\] .* is I8',
  ):
    assert re.search(line, str(caught.value)), line
  assert str(caught.value).count('\n') == 6  # a heading, the five and the remedy


def test_computed_buffers_are_tolerated(base):
  directory = base('llama')
  rewrite(
    directory,
    lambda tensors: tensors.update(
      {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32)}
    ),
  )
  hf.load(directory)


def test_a_stored_tied_head_must_equal_the_embedding(base):
  directory = base('qwen2')
  expected, _ = hf.load(directory)
  rewrite(
    directory,
    lambda tensors: tensors.update({'lm_head.weight': tensors['model.embed_tokens.weight'].copy()}),
  )
  assert_same_weights(expected, hf.load(directory)[0])
  rewrite(directory, lambda tensors: tensors['lm_head.weight'].__imul__(2))
  with pytest.raises(ValueError, match='tied: lm_head.weight .*tie_word_embeddings'):
    hf.load(directory)


def test_absent_shards_and_duplicate_tensors_are_named(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, shard_bytes=20_000)
  second, third = sorted(out.glob('*.safetensors'))[1:3]
  save_file(load_file(second) | load_file(third), third)
  with pytest.raises(ValueError, match=f'in two files:\n.* in {second.name} and {third.name}'):
    hf.load(out)
  second.unlink()
  with pytest.raises(FileNotFoundError, match=second.name):
    hf.load(out)


def test_a_truncated_file_is_named(base):
  file = base() / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:5000])
  with pytest.raises(ValueError, match='model.safetensors: not a readable safetensors'):
    hf.load(file.parent)


def test_torch_pickles_are_refused_with_the_remedy(base):
  file = base() / 'model.safetensors'
  file.rename(file.with_name('pytorch_model.bin'))
  with pytest.raises(FileNotFoundError, match='pytorch_model.bin: save it again'):
    hf.load(file.parent)
