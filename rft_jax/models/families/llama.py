"""Llama 2, 3, 3.1, 3.2 and what copies them: the base table, which other families vary.

Both spellings of the rotary settings are read: `rope_theta` beside `rope_scaling` (transformers 4)
and `rope_parameters` (transformers 5).
"""

from rft_jax.models.config import DecoderConfig, Llama3Rope, WeightRule

MODEL_TYPE = 'llama'
LLAMA3_FIELDS = ('factor', 'low_freq_factor', 'high_freq_factor')


# --- config.json ---------------------------------------------------------------------------------
def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field the decoder cannot honour."""
  return read(
    hf,
    model_type=MODEL_TYPE,
    kv_heads=hf.get('num_attention_heads'),
    qkv_bias=hf.get('attention_bias', False),
    output_bias=hf.get('attention_bias', False),
    mlp_bias=hf.get('mlp_bias', False),
    max_positions=2048,
    bos_id=1,
    eos_id=2,
  )


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return write(
    config,
    MODEL_TYPE,
    'LlamaForCausalLM',
    {'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias},
    qkv_bias=config.output_bias,
    qk_norm=False,
  )


def read(
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
    model_type: what its model_type must be.
    kv_heads, head_dim, max_positions, bos_id, eos_id: the family's defaults in transformers,
      for fields that are absent. head_dim None means hidden_size / num_attention_heads.
    qkv_bias, output_bias, mlp_bias, qk_norm: the family's structure.

  Raises:
    ValueError: a field is missing, or asks for what the decoder does not do. All problems at
      once, each with field, what was found, what was expected.
  """
  problems = _refusals(hf, model_type)
  theta, scaling, rope_problems = _rope(hf, max_positions)
  problems += rope_problems

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
  made = dict(
    vocab_size=size('vocab_size'),
    dim=dim,
    layers=size('num_hidden_layers'),
    heads=heads,
    kv_heads=heads
    if _is_null(hf, 'num_key_value_heads')
    else size('num_key_value_heads', kv_heads),
    head_dim=head_dim,
    mlp_dim=size('intermediate_size'),
    norm_epsilon=hf.get('rms_norm_eps') or 1e-6,
    rope_theta=theta,
    rope_scaling=scaling,
    qkv_bias=qkv_bias,
    output_bias=output_bias,
    mlp_bias=mlp_bias,
    qk_norm=qk_norm,
    tied_head=bool(hf.get('tie_word_embeddings', False)),
    max_positions=size('max_position_embeddings', max_positions),
    model_type=model_type,
    eos_ids=_ids(hf.get('eos_token_id', eos_id)),
    pad_id=_id(hf.get('pad_token_id')),
    bos_id=_id(hf.get('bos_token_id', bos_id)),
  )
  if not problems:
    problems = DecoderConfig(**made).validate()
  if problems:
    raise ValueError('\n'.join([f'config.json ({model_type}):', *problems]))
  return DecoderConfig(**made)


def write(config: DecoderConfig, model_type: str, architecture: str, extra: dict, **needed) -> dict:
  """Returns a config.json with a family's extra fields.

  Raises:
    ValueError: config differs from what the family's config.json can say (`needed`, field to
      value), or is itself not valid.
  """
  problems = config.validate() + [
    f'{field}={getattr(config, field)}, a {model_type} model has {value}'
    for field, value in needed.items()
    if getattr(config, field) != value
  ]
  if problems:
    raise ValueError('\n'.join([f'no {model_type} config.json can say this:', *problems]))
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


def _refusals(hf, model_type):
  """Lists the fields, other than sizes, whose values this decoder does not implement."""
  sliding = sorted(set(hf.get('layer_types') or ()) - {'full_attention'})
  checks = (
    ('model_type', hf.get('model_type'), hf.get('model_type') == model_type, repr(model_type)),
    ('hidden_act', hf.get('hidden_act', 'silu'), hf.get('hidden_act', 'silu') == 'silu', "'silu'"),
    (
      'use_sliding_window',
      hf.get('use_sliding_window'),
      not hf.get('use_sliding_window'),
      'false: windows are not implemented',
    ),
    ('layer_types', sliding, not sliding, "'full_attention' only"),
    (
      'quantization_config',
      '{...}',
      not hf.get('quantization_config'),
      'absent: load the unquantized checkpoint',
    ),
  )
  return [f'{field}={found!r}, expected {need}' for field, found, good, need in checks if not good]


def _rope(hf, max_positions):
  """Returns (theta, Llama3Rope or None, problems). rope_scaling goes before rope_parameters,
  and a theta inside before one beside it, as in transformers."""
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
  found = {name: rope.get(name) for name in LLAMA3_FIELDS}
  found['original_max_position_embeddings'] = original = (
    rope.get('original_max_position_embeddings')
    or hf.get('original_max_position_embeddings')
    or hf.get('max_position_embeddings', max_positions)
  )
  bad = [
    f'{field}.{name}={value!r}, expected a number > 0'
    for name, value in found.items()
    if not isinstance(value, (int, float)) or value <= 0
  ]
  if bad:
    return theta, None, problems + bad
  scaling = Llama3Rope(
    **{name: float(found[name]) for name in LLAMA3_FIELDS}, original_max_positions=int(original)
  )
  return theta, scaling, problems


def _is_null(hf, name):
  return name in hf and hf[name] is None


def _id(value):
  """A token id or None; some files spell None as -1."""
  return None if value is None or value < 0 else value


def _ids(value):
  """eos_token_id is an id, a list of ids or null."""
  if value is None:
    return ()
  return tuple(value) if isinstance(value, (list, tuple)) else (value,)


# --- weights -------------------------------------------------------------------------------------
def weights(config: DecoderConfig) -> dict[str, WeightRule]:
  """Returns, for every leaf a Decoder of this config has, its tensor in the checkpoint."""
  layer = 'model.layers.{layer}.'
  table = {
    'embed': WeightRule('model.embed_tokens.weight', 'none'),
    'blocks/attention_norm/scale': WeightRule(layer + 'input_layernorm.weight', 'none'),
    'blocks/mlp_norm/scale': WeightRule(layer + 'post_attention_layernorm.weight', 'none'),
    'final_norm/scale': WeightRule('model.norm.weight', 'none'),
  }
  linears = [('attention', name, 'self_attn', config.qkv_bias) for name in 'qkv']
  linears += [('attention', 'o', 'self_attn', config.output_bias)]
  linears += [('mlp', name, 'mlp', config.mlp_bias) for name in ('gate', 'up', 'down')]
  for group, name, theirs, has_bias in linears:
    table[f'blocks/{group}/{name}/kernel'] = WeightRule(
      f'{layer}{theirs}.{name}_proj.weight', 'transpose'
    )
    if has_bias:
      table[f'blocks/{group}/{name}/bias'] = WeightRule(f'{layer}{theirs}.{name}_proj.bias', 'none')
  if config.qk_norm:
    for name in ('q_norm', 'k_norm'):
      table[f'blocks/attention/{name}/scale'] = WeightRule(
        f'{layer}self_attn.{name}.weight', 'none'
      )
  if not config.tied_head:
    table['head/kernel'] = WeightRule('lm_head.weight', 'transpose')
  return table
