"""Model families: config.json to DecoderConfig and back, errors, and the names of weights."""

import dataclasses

import jax
import pytest
import transformers

from rft_jax import models
from rft_jax.sharding import name_of

HF = {
  'llama': dict(
    model_type='llama',
    vocab_size=512,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
  )
}
HF['qwen2'] = HF['llama'] | dict(model_type='qwen2', tie_word_embeddings=True)
HF['qwen3'] = HF['llama'] | dict(model_type='qwen3', head_dim=32)
SCALING = dict(
  factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


def read(**changes):
  hf = HF[changes.get('model_type', 'llama')] | changes
  return models.family_of(hf).config(hf)


def without(family, *fields):
  hf = {name: value for name, value in HF[family].items() if name not in fields}
  return models.family_of(hf).config(hf)


# --- reading --------------------------------------------------------------------------------------
def test_both_spellings_of_the_rope_give_one_config():
  old = read(rope_scaling={'rope_type': 'llama3', **SCALING})
  older = read(rope_scaling={'type': 'llama3', **SCALING})
  new = without('llama', 'rope_theta')
  new = models.FAMILIES['llama'].config(
    {k: v for k, v in HF['llama'].items() if k != 'rope_theta'}
    | {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 500000.0, **SCALING}}
  )
  assert old == older == new
  assert old.rope_scaling == models.Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=64
  )
  assert old.rope_theta == 500000.0 and without('llama', 'rope_theta').rope_theta == 10000.0
  assert read(rope_scaling=None) == read(rope_scaling={'rope_type': 'default'})


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'qwen3'])
def test_absent_fields_mean_what_transformers_means(family):
  absent = (
    'head_dim',
    'rope_theta',
    'rms_norm_eps',
    'tie_word_embeddings',
    'max_position_embeddings',
  )
  hf = {k: v for k, v in HF[family].items() if k not in absent}
  ours = models.FAMILIES[family].config(hf)
  theirs = transformers.AutoConfig.for_model(**hf)
  head_dim = getattr(theirs, 'head_dim', None) or theirs.hidden_size // theirs.num_attention_heads
  assert ours.head_dim == head_dim
  assert ours.norm_epsilon == theirs.rms_norm_eps
  assert ours.rope_theta == theirs.rope_parameters['rope_theta']
  assert ours.tied_head == theirs.tie_word_embeddings
  assert ours.max_positions == theirs.max_position_embeddings
  assert ours.bos_id == theirs.bos_token_id and ours.pad_id == theirs.pad_token_id
  assert ours.eos_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


def test_null_key_value_heads_are_as_many_as_query_heads():
  assert read(num_key_value_heads=None).kv_heads == 4
  assert without('llama', 'num_key_value_heads').kv_heads == 4
  assert read(model_type='qwen2', num_key_value_heads=None).kv_heads == 4
  with pytest.raises(ValueError, match='num_key_value_heads=None'):
    without('qwen2', 'num_key_value_heads')


def test_end_of_sequence_may_be_one_id_or_several():
  assert read(eos_token_id=7).eos_ids == (7,)
  assert read(eos_token_id=[7, 9, 11]).eos_ids == (7, 9, 11)
  assert read(eos_token_id=None).eos_ids == ()
  assert read(pad_token_id=-1).pad_id is None
  assert read().valid_vocab == read().vocab_size == 512
  hash(read(eos_token_id=[7, 9], rope_scaling={'rope_type': 'llama3', **SCALING}))


def test_biases_and_norms_depend_on_the_family():
  flags = lambda c: (c.qkv_bias, c.output_bias, c.mlp_bias, c.qk_norm)
  assert flags(read()) == (False, False, False, False)
  assert flags(read(attention_bias=True, mlp_bias=True)) == (True, True, True, False)
  assert flags(read(model_type='qwen2')) == (True, False, False, False)
  assert flags(read(model_type='qwen3')) == (False, False, False, True)
  assert flags(read(model_type='qwen3', attention_bias=True)) == (True, True, False, True)


# --- errors ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(hidden_act='gelu'), "hidden_act='gelu', expected 'silu'"),
    (dict(model_type='qwen2', use_sliding_window=True), 'use_sliding_window=True, expected false'),
    (
      dict(model_type='qwen3', layer_types=['full_attention', 'sliding_attention']),
      "layer_types=['sliding_attention'], expected 'full_attention' only",
    ),
    (
      dict(rope_scaling={'rope_type': 'yarn', 'factor': 4.0}),
      "rope_scaling.rope_type='yarn', expected 'default' or 'llama3'",
    ),
    (
      dict(rope_parameters={'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0}),
      'rope_parameters.high_freq_factor=None, expected a number > 0',
    ),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5, expected 1.0'),
    (dict(quantization_config={'quant_method': 'gptq'}), 'quantization_config='),
    (dict(hidden_size='64'), "hidden_size='64', expected an integer >= 1"),
    (dict(num_key_value_heads=3), 'kv_heads=3, need a divisor of heads=4'),
    (dict(eos_token_id=512), 'eos_ids=(512,), need ids below vocab_size=512'),
  ],
)
def test_an_unsupported_field_is_named_with_what_is_expected(changes, message):
  with pytest.raises(ValueError) as caught:
    read(**changes)
  assert message in str(caught.value)


def test_all_problems_of_a_config_json_are_named_at_once():
  with pytest.raises(ValueError) as caught:
    read(
      hidden_act='gelu',
      use_sliding_window=True,
      num_hidden_layers=0,
      rope_scaling={'type': 'dynamic'},
    )
  for field in ('hidden_act', 'use_sliding_window', 'num_hidden_layers', 'rope_type'):
    assert field in str(caught.value)


def test_an_unknown_model_type_is_an_error_that_lists_the_supported_ones():
  with pytest.raises(ValueError, match=r"model_type='gpt2', supported: \['llama', 'qwen2'"):
    models.family_of({'model_type': 'gpt2'})


# --- writing --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
  'changes',
  [
    dict(eos_token_id=[5, 6], bos_token_id=4, pad_token_id=0),
    dict(rope_scaling={'rope_type': 'llama3', **SCALING}, tie_word_embeddings=True),
    dict(attention_bias=True, mlp_bias=True, head_dim=24),
    dict(model_type='qwen2'),
    dict(model_type='qwen3', attention_bias=True),
  ],
)
def test_to_hf_inverts_config_and_transformers_reads_it(changes):
  config = read(**changes)
  hf = models.FAMILIES[config.model_type].to_hf(config)
  assert models.family_of(hf).config(hf) == config
  theirs = transformers.AutoConfig.for_model(**hf)
  assert type(theirs).__name__.lower().startswith(config.model_type)
  their_json = theirs.to_dict()
  assert models.family_of(their_json).config(their_json) == config
  assert hf['architectures'] == [type(theirs).__name__.replace('Config', 'ForCausalLM')]


def test_to_hf_names_fields_that_the_family_does_not_have():
  config = dataclasses.replace(read(), qk_norm=True, qkv_bias=True)
  with pytest.raises(ValueError) as caught:
    models.FAMILIES['llama'].to_hf(config)
  assert 'qk_norm=True, a llama model has False' in str(caught.value)
  assert 'qkv_bias=True, a llama model has False' in str(caught.value)  # without output_bias


# --- weights --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(attention_bias=True, mlp_bias=True),
    dict(tie_word_embeddings=True),
    dict(model_type='qwen2'),
    dict(model_type='qwen3'),
    dict(model_type='qwen3', attention_bias=True),
  ],
)
def test_the_weight_table_names_exactly_the_leaves_of_the_decoder(changes):
  config = read(**changes)
  rules = models.FAMILIES[config.model_type].weights(config)
  leaves = {name_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(models.abstract(config))}
  assert set(rules) == set(leaves)
  for name, rule in rules.items():
    assert ('{layer}' in rule.name) == name.startswith('blocks/'), name
    assert (rule.transform == 'transpose') == name.endswith('kernel'), name
  assert len({rule.name for rule in rules.values()}) == len(rules)


def test_the_leaves_have_the_documented_shapes():
  config = read(model_type='qwen3', attention_bias=True)
  V, D, F, L, NH, KH, H = 512, 64, 96, 2, 4 * 32, 2 * 32, 32
  shapes = {
    name_of(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(models.abstract(config))
  }
  assert shapes == {
    'embed': (V, D),
    'final_norm/scale': (D,),
    'head/kernel': (D, V),
    'blocks/attention_norm/scale': (L, D),
    'blocks/mlp_norm/scale': (L, D),
    'blocks/attention/q_norm/scale': (L, H),
    'blocks/attention/k_norm/scale': (L, H),
    'blocks/attention/q/kernel': (L, D, NH),
    'blocks/attention/q/bias': (L, NH),
    'blocks/attention/k/kernel': (L, D, KH),
    'blocks/attention/k/bias': (L, KH),
    'blocks/attention/v/kernel': (L, D, KH),
    'blocks/attention/v/bias': (L, KH),
    'blocks/attention/o/kernel': (L, NH, D),
    'blocks/attention/o/bias': (L, D),
    'blocks/mlp/gate/kernel': (L, D, F),
    'blocks/mlp/up/kernel': (L, D, F),
    'blocks/mlp/down/kernel': (L, F, D),
  }
