"""What model families have in common: reading and writing config.json, and names of weights.

A family is a small module that calls these with its own settings; see families/__init__.py. The
RoPE settings are read in both spellings: `rope_theta` next to `rope_scaling` (transformers 4) and
`rope_parameters` (transformers 5). They are written in the second.
"""

from typing import NamedTuple

from rft_jax.models.config import DecoderConfig, Llama3Rope

LLAMA3_FIELDS = ('factor', 'low_freq_factor', 'high_freq_factor')


class WeightRule(NamedTuple):
  """The tensor of a Hugging Face checkpoint that one of our leaves is read from and written to.

  The name of a leaf that is stacked along L has '{layer}' in it; each layer's tensor is one slice.
  """

  name: str  # 'model.layers.{layer}.self_attn.q_proj.weight'
  transform: str  # 'transpose' (torch stores [out, in], we store [in, out]) or 'none'


# --- reading config.json -------------------------------------------------------------------------
def read_config(
  hf: dict,
  *,
  model_type: str,
  kv_heads=None,
  head_dim=None,
  qkv_bias=False,
  output_bias=False,
  mlp_bias=False,
  qk_norm=False,
  max_positions=32768,
  bos_id=None,
  eos_id=None,
) -> DecoderConfig:
  """Returns the DecoderConfig of a parsed config.json.

  Args:
    hf: the parsed file.
    model_type: the value that its model_type must have.
    kv_heads, head_dim, max_positions, bos_id, eos_id: the family's defaults in transformers,
      for fields that are absent. head_dim None means hidden_size / num_attention_heads.
    qkv_bias, output_bias, mlp_bias, qk_norm: the family's structure.

  Raises:
    ValueError: a field is missing, or asks for something that the decoder does not implement. All
      problems at once, each with field, value and what was expected.
  """
  problems = _unsupported(hf, model_type)
  theta, scaling, rope_problems = _rope(hf, max_positions)
  problems += rope_problems
  sizes = _sizes(hf, problems, kv_heads=kv_heads, head_dim=head_dim, max_positions=max_positions)
  fields = sizes | dict(
    norm_epsilon=hf.get('rms_norm_eps') or 1e-6,
    rope_theta=theta,
    rope_scaling=scaling,
    qkv_bias=qkv_bias,
    output_bias=output_bias,
    mlp_bias=mlp_bias,
    qk_norm=qk_norm,
    tied_head=bool(hf.get('tie_word_embeddings', False)),
    model_type=model_type,
    eos_ids=_ids(hf.get('eos_token_id', eos_id)),
    pad_id=_id(hf.get('pad_token_id')),
    bos_id=_id(hf.get('bos_token_id', bos_id)),
  )
  if not problems:
    problems = DecoderConfig(**fields).validate()
  if problems:
    raise ValueError('\n'.join([f'config.json ({model_type}):', *problems]))
  return DecoderConfig(**fields)


def _unsupported(hf, model_type) -> list[str]:
  """Lists the fields, other than sizes and RoPE, whose values this decoder does not implement."""
  other_layers = sorted(set(hf.get('layer_types') or ()) - {'full_attention'})
  checks = (
    ('model_type', hf.get('model_type'), hf.get('model_type') == model_type, repr(model_type)),
    ('hidden_act', hf.get('hidden_act', 'silu'), hf.get('hidden_act', 'silu') == 'silu', "'silu'"),
    (
      'use_sliding_window',
      hf.get('use_sliding_window'),
      not hf.get('use_sliding_window'),
      'false: windows are not implemented',
    ),
    ('layer_types', other_layers, not other_layers, "'full_attention' only"),
    (
      'quantization_config',
      '{...}',
      not hf.get('quantization_config'),
      'absent: load the unquantized checkpoint',
    ),
  )
  return [
    f'{field}={value!r}, expected {expected}'
    for field, value, supported, expected in checks
    if not supported
  ]


def _sizes(hf, problems, *, kv_heads, head_dim, max_positions) -> dict:
  """Returns the sizes among the fields of DecoderConfig; adds to problems what is no size."""

  def size(name, default=None):
    value = hf.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      problems.append(f'{name}={value!r}, expected an integer >= 1')
      return 1
    return value

  dim, heads = size('hidden_size'), size('num_attention_heads')
  if 'head_dim' in hf or head_dim is None:
    head_dim = hf.get('head_dim') or dim // heads
  # null, unlike an absent field, means as many as query heads.
  kv_heads_is_null = 'num_key_value_heads' in hf and hf['num_key_value_heads'] is None
  return dict(
    vocab_size=size('vocab_size'),
    dim=dim,
    layers=size('num_hidden_layers'),
    heads=heads,
    kv_heads=heads if kv_heads_is_null else size('num_key_value_heads', kv_heads),
    head_dim=head_dim,
    mlp_dim=size('intermediate_size'),
    max_positions=size('max_position_embeddings', max_positions),
  )


def _rope(hf, max_positions):
  """Returns (theta, Llama3Rope or None, problems).

  As in transformers, rope_scaling has precedence over rope_parameters, and a rope_theta inside them
  over one next to them.
  """
  field = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  rope = hf.get(field) or {}
  theta = rope.get('rope_theta', hf.get('rope_theta'))
  theta = 10000.0 if theta is None else float(theta)
  kind = rope.get('rope_type', rope.get('type')) or 'default'
  partial = rope.get('partial_rotary_factor', hf.get('partial_rotary_factor'))
  problems = []
  if partial not in (None, 1, 1.0):
    problems.append(f'partial_rotary_factor={partial!r}, expected 1.0 or absent')
  if kind == 'default':
    return theta, None, problems
  if kind != 'llama3':
    problems.append(f"{field}.rope_type={kind!r}, expected 'default' or 'llama3'")
    return theta, None, problems
  values = {name: rope.get(name) for name in LLAMA3_FIELDS}
  values['original_max_position_embeddings'] = original = (
    rope.get('original_max_position_embeddings')
    or hf.get('original_max_position_embeddings')
    or hf.get('max_position_embeddings', max_positions)
  )
  invalid = [
    f'{field}.{name}={value!r}, expected a number > 0'
    for name, value in values.items()
    if not isinstance(value, (int, float)) or value <= 0
  ]
  if invalid:
    return theta, None, problems + invalid
  scaling = Llama3Rope(
    **{name: float(values[name]) for name in LLAMA3_FIELDS}, original_max_positions=int(original)
  )
  return theta, scaling, problems


def _id(value):
  """Returns a token id or None; some files spell None as -1."""
  return None if value is None or value < 0 else value


def _ids(value):
  """Returns the ids of eos_token_id, which is an id, a list of ids or null, as a tuple."""
  if value is None:
    return ()
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# --- writing config.json -------------------------------------------------------------------------
def write_config(
  config: DecoderConfig, model_type: str, architecture: str, extra: dict, **required
) -> dict:
  """Returns a config.json, as transformers 5 writes it.

  Args:
    config: of the model.
    model_type, architecture: of the family.
    extra: the fields that only this family has.
    required: field of config -> the only value that the family's config.json can describe.

  Raises:
    ValueError: config has another value in a required field, or is itself not valid.
  """
  problems = config.validate() + [
    f'{field}={getattr(config, field)}, a {model_type} model has {value}'
    for field, value in required.items()
    if getattr(config, field) != value
  ]
  if problems:
    raise ValueError('\n'.join([f'a {model_type} config.json cannot describe:', *problems]))
  rope = {'rope_type': 'default', 'rope_theta': config.rope_theta}
  if config.rope_scaling is not None:
    rope['rope_type'] = 'llama3'
    rope |= {name: getattr(config.rope_scaling, name) for name in LLAMA3_FIELDS}
    rope['original_max_position_embeddings'] = config.rope_scaling.original_max_positions
  eos_ids = list(config.eos_ids)
  return {
    'architectures': [architecture],
    'model_type': model_type,
    'dtype': 'float32',
    'vocab_size': config.vocab_size,
    'hidden_size': config.dim,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'num_key_value_heads': config.kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.mlp_dim,
    'hidden_act': 'silu',
    'attention_dropout': 0.0,
    'rms_norm_eps': config.norm_epsilon,
    'rope_parameters': rope,
    'max_position_embeddings': config.max_positions,
    'tie_word_embeddings': config.tied_head,
    'bos_token_id': config.bos_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else eos_ids or None,
    'pad_token_id': config.pad_id,
    'initializer_range': 0.02,
    'use_cache': True,
  } | extra


# --- weights -------------------------------------------------------------------------------------
def weights(config: DecoderConfig) -> dict[str, WeightRule]:
  """Returns, for every leaf of a Decoder of this config, its tensor in a checkpoint.

  The names are those of Llama, which Qwen and most later families use too.
  """
  layer = 'model.layers.{layer}.'
  rules = {
    'embed': WeightRule('model.embed_tokens.weight', 'none'),
    'blocks/attention_norm/scale': WeightRule(layer + 'input_layernorm.weight', 'none'),
    'blocks/mlp_norm/scale': WeightRule(layer + 'post_attention_layernorm.weight', 'none'),
    'final_norm/scale': WeightRule('model.norm.weight', 'none'),
  }
  linears = [('attention', name, 'self_attn', config.qkv_bias) for name in 'qkv']
  linears += [('attention', 'o', 'self_attn', config.output_bias)]
  linears += [('mlp', name, 'mlp', config.mlp_bias) for name in ('gate', 'up', 'down')]
  for group, name, hf_group, has_bias in linears:
    leaf, tensor = f'blocks/{group}/{name}', f'{layer}{hf_group}.{name}_proj'
    rules[f'{leaf}/kernel'] = WeightRule(f'{tensor}.weight', 'transpose')
    if has_bias:
      rules[f'{leaf}/bias'] = WeightRule(f'{tensor}.bias', 'none')
  if config.qk_norm:
    for name in ('q_norm', 'k_norm'):
      tensor = f'{layer}self_attn.{name}.weight'
      rules[f'blocks/attention/{name}/scale'] = WeightRule(tensor, 'none')
  if not config.tied_head:
    rules['head/kernel'] = WeightRule('lm_head.weight', 'transpose')
  return rules
