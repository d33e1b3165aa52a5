"""Load and export: what goes in comes out, and what is wrong is named."""

import json
import re

import hf_forward
import jax
import ml_dtypes
import numpy as np
import pytest
from hf_forward import assert_same_weights, write_tokenizer
from safetensors.numpy import load_file, save_file

from rft_jax import hf, sharding
from rft_jax.hf import weights
from rft_jax.hf.load import leaves

record_oracles = hf_forward.record_oracles()


def rewrite(directory, change):
  """Applies change to the dict of a checkpoint's tensors."""
  tensors = load_file(directory / 'model.safetensors')
  change(tensors)
  save_file(tensors, directory / 'model.safetensors')


# --- load and export -----------------------------------------------------------------------------
@pytest.mark.parametrize('family', sorted(record_oracles.FAMILIES))
@pytest.mark.parametrize('shard_bytes', [10**9, 20_000])
def test_export_inverts_load_bit_for_bit(base, tmp_path, family, shard_bytes):
  directory = base(family)
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, shard_bytes=shard_bytes)
  again, config_again = hf.load(out)
  assert_same_weights(model, again)
  assert config_again == config
  files = sorted(out.glob('*.safetensors'))
  assert (len(files) > 1) == (shard_bytes == 20_000) == (out / weights.INDEX).exists()
  original = load_file(directory / 'model.safetensors')
  exported = {name: value for file in files for name, value in load_file(file).items()}
  assert original.keys() == exported.keys()  # a tied head is not written twice
  for name, value in original.items():
    np.testing.assert_array_equal(value, exported[name])


def test_files_stay_below_the_shard_size(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, shard_bytes=20_000)
  for file in out.glob('*.safetensors'):
    assert sum(value.nbytes for value in load_file(file).values()) <= 20_000
  index = json.loads((out / weights.INDEX).read_text())
  assert index['metadata']['total_size'] == sum(4 * x.size for x in jax.tree.leaves(model))


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
  kept = load_file(directory / 'model.safetensors')
  model, _ = hf.load(directory)
  found = leaves(model)
  wanted = kept['model.layers.1.mlp.up_proj.weight'].T.astype(np.float32)
  np.testing.assert_array_equal(found['blocks/mlp/up/kernel'][1], wanted)
  assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}


def test_bfloat16_export_says_so_and_rounds(base, tmp_path):
  directory = base('llama')
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, dtype='bfloat16')
  assert json.loads((out / 'config.json').read_text())['torch_dtype'] == 'bfloat16'
  rounded = jax.tree.map(lambda x: x.astype('bfloat16').astype('float32'), model)
  assert_same_weights(rounded, hf.load(out)[0])


def test_float32_export_of_a_bfloat16_source_declares_float32(base, tmp_path):
  directory = base('qwen2', dtype='bfloat16')
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory)
  found = json.loads((out / 'config.json').read_text())
  assert found == json.loads((directory / 'config.json').read_text()) | {'dtype': 'float32'}


def test_compute_dtype_does_not_change_the_weights(base):
  directory = base()
  model, config = hf.load(directory, dtype='bfloat16')
  assert config.dtype == 'bfloat16'
  assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(np.float32)}


# --- weights that do not fit ---------------------------------------------------------------------
def test_missing_extra_and_misshaped_weights_are_named_together(base):
  directory = base('llama')

  def spoil(tensors):
    del tensors['model.layers.1.mlp.up_proj.weight'], tensors['lm_head.weight']
    tensors['model.layers.2.mlp.up_proj.weight'] = np.zeros((48, 32), np.float32)
    tensors['model.norm.weight'] = np.zeros((33,), np.float32)
    tensors['model.layers.0.self_attn.q_proj.weight'] = np.zeros((32, 32), np.int8)

  rewrite(directory, spoil)
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


def test_a_tied_head_may_be_stored_if_it_is_equal(base):
  directory = base('qwen2')
  wanted, _ = hf.load(directory)
  rewrite(
    directory,
    lambda tensors: tensors.update({'lm_head.weight': tensors['model.embed_tokens.weight'].copy()}),
  )
  assert_same_weights(wanted, hf.load(directory)[0])
  rewrite(directory, lambda tensors: tensors['lm_head.weight'].__imul__(2))
  with pytest.raises(ValueError, match='tied: lm_head.weight .*tie_word_embeddings'):
    hf.load(directory)


def test_absent_shards_and_duplicate_tensors_are_named(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, shard_bytes=20_000)
  second, third = sorted(out.glob('*.safetensors'))[1:3]
  save_file(load_file(second) | load_file(third), third)
  with pytest.raises(ValueError, match=f'there twice:\n.* in {second.name} and {third.name}'):
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


# --- config --------------------------------------------------------------------------------------
def test_unknown_model_type_lists_the_known_ones(base):
  with pytest.raises(ValueError, match=r"(?s)model_type='mamba'.*'llama', 'qwen2', 'qwen3'"):
    hf.load(base(model_type='mamba'))


def test_unknown_source_says_what_was_tried():
  with pytest.raises(FileNotFoundError, match="(?s)'nobody/nothing' is no directory.*as a hub id"):
    hf.load('nobody/nothing')
  with pytest.raises(FileNotFoundError, match='no hub id'):
    hf.load('/not/there/at/all')


def test_a_hub_id_may_carry_a_revision(monkeypatch, tmp_path):
  asked = {}

  def snapshot_download(name, **settings):
    asked.update(settings, name=name)
    return str(tmp_path)

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
  assert hf.resolve('owner/name@abc123') == tmp_path
  assert (asked['name'], asked['revision']) == ('owner/name', 'abc123')
  hf.resolve('owner/name')
  assert asked['revision'] is None


def test_every_eos_id_of_the_checkpoint_is_taken(base):
  directory = base(eos_token_id=2)
  assert hf.load(directory)[1].eos_ids == (2,)
  (directory / 'generation_config.json').write_text('{"eos_token_id": [7, 5], "pad_token_id": 5}')
  assert hf.load(directory)[1].eos_ids == (7, 5, 2)
  (directory / 'generation_config.json').write_text('{"eos_token_id": 2}')
  assert hf.load(directory)[1].eos_ids == (2,)


def test_padded_vocabulary_is_known_from_the_tokenizer(base):
  directory = base()
  assert hf.load(directory)[1].valid_vocab == 80
  write_tokenizer(directory, 70)
  config = hf.load(directory)[1]
  assert (config.vocab_size, config.valid_vocab) == (80, 70)
  write_tokenizer(directory, 90)
  assert hf.load(directory)[1].valid_vocab == 80
