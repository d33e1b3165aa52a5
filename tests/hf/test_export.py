"""Exported directories: weights, copied files, model card, replacing, and models from scratch."""

import json

import hf_forward
import jax
import numpy as np
import pytest
from hf_forward import assert_same_weights, write_tokenizer
from safetensors.numpy import load_file

from rft_jax import hf, models
from rft_jax.hf import weights

record_oracles = hf_forward.record_oracles()


# --- weights -------------------------------------------------------------------------------------
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


def test_a_bfloat16_export_is_rounded_and_declared(base, tmp_path):
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
  written = json.loads((out / 'config.json').read_text())
  assert written == json.loads((directory / 'config.json').read_text()) | {'dtype': 'float32'}


# --- other files ---------------------------------------------------------------------------------
def test_tokenizer_template_and_generation_config_are_copied(base, tmp_path):
  directory = base()
  write_tokenizer(directory, 70)
  (directory / 'chat_template.jinja').write_text('{{ messages }}')
  (directory / 'generation_config.json').write_text('{"eos_token_id": [7, 5]}')
  (directory / 'notes.txt').write_text('mine')
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory)
  for name in ('tokenizer.json', 'chat_template.jinja', 'generation_config.json'):
    assert (out / name).read_bytes() == (directory / name).read_bytes()
  assert not (out / 'notes.txt').exists()
  assert not list(tmp_path.glob('.out*'))  # nothing unfinished is left


def test_an_export_replaces_an_earlier_one_but_no_other_directory(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  out = tmp_path / 'out'
  hf.export(model, config, to=out, source=directory)
  doubled = jax.tree.map(lambda x: 2 * x, model)
  hf.export(doubled, config, to=out, source=directory)
  assert_same_weights(doubled, hf.load(out)[0])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'qwen3']

  (out / 'thesis.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='out: not empty, and an export with files added'):
    hf.export(model, config, to=out, source=directory)
  with pytest.raises(FileExistsError, match='not an export of ours'):
    hf.export(model, config, to=directory, source=directory)
  assert_same_weights(doubled, hf.load(out)[0])

  hf.export(model, config, to=out, source=directory, force=True)
  assert_same_weights(model, hf.load(out)[0])
  assert (tmp_path / 'out.before-1' / 'thesis.txt').read_text() == 'mine'


def test_an_edited_export_is_not_overwritten(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory)
  (out / 'README.md').write_text('my own words')
  with pytest.raises(FileExistsError, match='added or changed'):
    hf.export(model, config, to=out, source=directory)


def test_a_failed_export_leaves_the_earlier_one(base, tmp_path, monkeypatch):
  directory = base()
  model, config = hf.load(directory)
  out = hf.export(model, config, to=tmp_path / 'out', source=directory)

  def full(*args, **settings):
    raise OSError('No space left on device')

  monkeypatch.setattr(weights, 'save_file', full)
  with pytest.raises(OSError, match='No space left'):
    hf.export(jax.tree.map(lambda x: 2 * x, model), config, to=out, source=directory)
  assert_same_weights(model, hf.load(out)[0])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'qwen3']


def test_a_source_of_another_structure_is_an_error(base, tmp_path):
  model, config = hf.load(base('qwen2'))
  with pytest.raises(ValueError, match="(?s)model_type: the model has 'qwen2', the source 'qwen3'"):
    hf.export(model, config, to=tmp_path / 'out', source=base('qwen3'))
  assert not (tmp_path / 'out').exists()


def test_the_model_card_has_figures_with_intervals_and_marks_what_is_not_known(base, tmp_path):
  directory = base()
  model, config = hf.load(directory)
  card = {
    'grader': {'type': 'string_check', 'operation': 'eq'},
    'data_sha256': 'ab12',
    'before': {'reward': {'mean': 0.125, 'low': 0.1, 'high': 0.15}},
    'after': {'reward': {'mean': 0.5, 'low': 0.4, 'high': 0.6}, 'pass@8': 0.75},
    'hardware': 'a laptop',
  }
  out = hf.export(model, config, to=tmp_path / 'out', source=directory, card=card)
  text = (out / 'README.md').read_text()
  assert '| reward | 0.125 [0.1, 0.15] | 0.5 [0.4, 0.6] |' in text
  assert '| pass@8 | not known | 0.75 (interval not known) |' in text
  assert 'SHA-256 of the training data: ab12' in text
  assert '"operation": "eq"' in text
  assert 'hardware: a laptop' in text
  assert 'Seed: not known' in text
  bare = hf.export(model, config, to=tmp_path / 'bare', source=directory)
  assert 'Held-out figures: not known.' in (bare / 'README.md').read_text()


# --- models from scratch -------------------------------------------------------------------------
SMALL = dict(
  vocab_size=80,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=16,
  mlp_dim=48,
  max_positions=64,
  eos_ids=(69, 3),
  pad_id=0,
  bos_id=1,
)


@pytest.mark.parametrize(
  'family',
  [
    dict(model_type='llama'),
    dict(
      model_type='llama',
      rope_scaling=models.Llama3Rope(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32
      ),
    ),
    dict(model_type='qwen2', qkv_bias=True, tied_head=True),
    dict(model_type='qwen3', qk_norm=True, tied_head=True),
  ],
)
def test_a_saved_base_is_a_checkpoint_like_any(tmp_path, family):
  config = models.DecoderConfig(**SMALL, **family, valid_vocab=70)
  model = models.make(config, seed=0)
  tokenizer = write_tokenizer(tmp_path, 70)
  base = hf.save_base(model, config, tokenizer, tmp_path / 'base')
  again, config_again = hf.load(base)
  assert config_again == config
  assert_same_weights(model, again)
  out = hf.export(again, config_again, to=tmp_path / 'out', source=base)
  assert_same_weights(model, hf.load(out)[0])


def test_a_tokenizer_larger_than_the_vocabulary_is_an_error(tmp_path):
  config = models.DecoderConfig(**SMALL, model_type='llama')
  with pytest.raises(ValueError, match='81 ids, vocab_size=80'):
    hf.save_base(
      models.make(config, seed=0), config, write_tokenizer(tmp_path, 81), tmp_path / 'base'
    )
  assert not (tmp_path / 'base').exists()
