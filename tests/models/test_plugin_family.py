"""A model family from outside the package: one line registers it, and everything works with it."""

import types

import jax
import numpy as np
import pytest
from hf_forward import assert_same_weights, write_tokenizer

import rft_jax
from rft_jax import hf, models
from rft_jax.models.families import base as family_base


def _config(hf_json):
  return family_base.read_config(hf_json, model_type='toy', qk_norm=True, head_dim=8)


def _to_hf(config):
  return family_base.write_config(config, 'toy', 'ToyForCausalLM', {}, qk_norm=True)


def _weights(config):
  return {
    leaf: rule._replace(name='toy.' + rule.name)
    for leaf, rule in family_base.weights(config).items()
  }


@pytest.fixture
def toy(monkeypatch):
  """Registers the family for one test."""
  family = types.SimpleNamespace(
    MODEL_TYPE='toy', ARCHITECTURE='ToyForCausalLM', config=_config, to_hf=_to_hf, weights=_weights
  )
  with monkeypatch.context() as patch:
    patch.setitem(models.families.FAMILIES, 'toy', family)
    yield family
  assert 'toy' not in models.FAMILIES


def test_a_checkpoint_of_a_new_family_is_saved_loaded_sampled_and_exported(toy, tmp_path):
  config = models.DecoderConfig(
    model_type='toy',
    vocab_size=32,
    dim=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_dim=24,
    qk_norm=True,
    eos_ids=(29,),
    bos_id=1,
    valid_vocab=30,
  )
  model = models.make(config, seed=0)
  source = hf.save_base(model, config, write_tokenizer(tmp_path, 30), tmp_path / 'base')
  loaded, loaded_config = hf.load(source)
  assert loaded_config == config
  assert_same_weights(loaded, model)

  [[sample]] = rft_jax.generate(loaded, [[1, 2, 3]], max_new_tokens=4, temperature=0.0)
  assert 0 < len(sample.tokens) <= 4

  out = hf.export(loaded, loaded_config, to=tmp_path / 'export', source=source)
  assert_same_weights(hf.load(out)[0], model)

  critic = models.make_critic(model, 'head')
  critic.score.kernel[...] = jax.random.normal(jax.random.key(0), (config.dim, 1))
  reward_model = hf.export_reward_model(
    critic, config, trunk=model, to=tmp_path / 'reward_model', source=source
  )
  assert '"ToyForSequenceClassification"' in (reward_model / 'config.json').read_text()
  scorer, _ = hf.load_reward_model(reward_model)
  np.testing.assert_array_equal(scorer.score.kernel[...], critic.score.kernel[...])
