"""Reward models as Hugging Face checkpoints: round trips, padding, and other checkpoints."""

import json

import hf_forward
import jax
import numpy as np
import pytest
import tiny
from hf_forward import assert_same_weights
from safetensors.numpy import load_file, save_file

from rft_jax import hf, models
from rft_jax.data import chat as chats

record_oracles = hf_forward.record_oracles()


def make_head(policy):
  critic = models.make_critic(policy, 'head')
  critic.score.kernel[...] = jax.random.normal(jax.random.key(7), critic.score.kernel[...].shape)
  return critic


@pytest.mark.parametrize('family', sorted(record_oracles.FAMILIES))
def test_load_inverts_export_bit_for_bit(base, tmp_path, family):
  policy, config = hf.load(base(family))
  critic = make_head(policy)
  out = hf.export_reward_model(
    critic, config, trunk=policy, to=tmp_path / 'out', source=base(family)
  )
  tensors = load_file(out / 'model.safetensors')
  config_json = json.loads((out / 'config.json').read_text())
  assert 'lm_head.weight' not in tensors and tensors['score.weight'].shape == (1, config.dim)
  assert config_json['architectures'] == [f'{family.capitalize()}ForSequenceClassification']
  assert len(config_json['id2label']) == 1 and config_json['problem_type'] is None
  loaded, loaded_config = hf.load_reward_model(out)
  assert loaded_config.tied_head and loaded_config.dim == config.dim
  np.testing.assert_array_equal(loaded.score.kernel[...], critic.score.kernel[...])
  again = hf.export_reward_model(loaded, loaded_config, to=tmp_path / 'again', source=out)
  assert_same_weights(hf.load_reward_model(again)[0], loaded)
  assert json.loads((again / 'config.json').read_text()) == config_json
  original = load_file(base(family) / 'model.safetensors')
  assert {name: value.tobytes() for name, value in tensors.items() if name != 'score.weight'} == {
    name: value.tobytes() for name, value in original.items() if name != 'lm_head.weight'
  }


def test_a_fresh_head_scores_0(base, tmp_path):
  policy, config = hf.load(base())
  out = hf.export_reward_model(
    models.make_critic(policy, 'head'), config, trunk=policy, to=tmp_path / 'out', source=base()
  )
  assert not load_file(out / 'model.safetensors')['score.weight'].any()


def test_padding_never_has_an_id_that_ends_an_answer(tmp_path):
  directory = tmp_path / 'base'
  tiny.write_base(directory)
  eos = json.loads((directory / 'config.json').read_text())['eos_token_id']
  for name in ('config.json', 'generation_config.json'):
    text = json.loads((directory / name).read_text())
    (directory / name).write_text(json.dumps(text | {'pad_token_id': eos}))
  policy, config = hf.load(directory)
  assert config.pad_id in config.eos_ids
  chat = chats.make(directory, chats.ChatConfig())
  out = hf.export_reward_model(
    make_head(policy),
    config,
    trunk=policy,
    to=tmp_path / 'out',
    source=directory,
    stop_ids=chat.stop_ids,
  )
  pad_id = json.loads((out / 'config.json').read_text())['pad_token_id']
  exported = chats.make(out, chats.ChatConfig())
  assert pad_id not in chat.stop_ids and exported.tokenizer.pad_token_id == pad_id
  assert exported.stop_ids == chat.stop_ids
  with pytest.raises(ValueError, match='every special token ends an answer'):
    hf.export_reward_model(
      make_head(policy),
      config,
      trunk=policy,
      to=tmp_path / 'none',
      source=directory,
      stop_ids=range(config.vocab_size),
    )


def _rewrite(directory, change):
  tensors = load_file(directory / 'model.safetensors')
  change(tensors)
  save_file(tensors, directory / 'model.safetensors')


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t.pop('score.weight'), ['no tensor score.weight', 'reward_model']),
    (
      lambda t: t.update({'score.weight': np.zeros((3, 32), np.float32)}),
      ['num_labels=3, expected 1'],
    ),
    (lambda t: t.update({'score.bias': np.zeros(1, np.float32)}), ['extra: score.bias']),
    (
      lambda t: t.update({'score.weight': np.zeros((1, 31), np.float32)}),
      ['shape: score.weight [1, 31]', 'expected [1, 32]'],
    ),
  ],
)
def test_a_checkpoint_that_is_no_reward_model_is_an_error(base, tmp_path, change, words):
  policy, config = hf.load(base())
  out = hf.export_reward_model(
    make_head(policy), config, trunk=policy, to=tmp_path / 'out', source=base()
  )
  assert hf.reward_model_problems(out) == []
  _rewrite(out, change)
  with pytest.raises(ValueError) as caught:
    hf.load_reward_model(out)
  assert all(word in str(caught.value) for word in words)
  if 'extra' not in words[0] and 'shape' not in words[0]:
    assert hf.reward_model_problems(out) == [str(caught.value)]
  assert 'no directory here' in hf.reward_model_problems(tmp_path / 'absent')[0]


def test_a_source_of_another_structure_is_an_error(base, tmp_path):
  policy, config = hf.load(base())
  other = base('llama')
  with pytest.raises(ValueError, match='describes another model'):
    hf.export_reward_model(
      make_head(policy), config, trunk=policy, to=tmp_path / 'out', source=other
    )
