"""Llama 2, 3, 3.1 and 3.2, and models of other makers with model_type 'llama'."""

from rft_jax.models.config import DecoderConfig
from rft_jax.models.families import base

MODEL_TYPE = 'llama'
ARCHITECTURE = 'LlamaForCausalLM'
weights = base.weights


def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field that is not supported."""
  bias = hf.get('attention_bias', False)
  return base.read_config(
    hf,
    model_type=MODEL_TYPE,
    kv_heads=hf.get('num_attention_heads'),
    qkv_bias=bias,
    output_bias=bias,
    mlp_bias=hf.get('mlp_bias', False),
    max_positions=2048,
    bos_id=1,
    eos_id=2,
  )


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return base.write_config(
    config,
    MODEL_TYPE,
    ARCHITECTURE,
    {'attention_bias': config.qkv_bias, 'mlp_bias': config.mlp_bias},
    qkv_bias=config.output_bias,
    qk_norm=False,
  )
