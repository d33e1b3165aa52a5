"""Qwen3, dense: as Llama, with an RMS norm on each query and key head, and head_dim 128."""

from rft_jax.models.config import DecoderConfig
from rft_jax.models.families import base

MODEL_TYPE = 'qwen3'
ARCHITECTURE = 'Qwen3ForCausalLM'
weights = base.weights


def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field that is not supported."""
  bias = hf.get('attention_bias', False)
  return base.read_config(
    hf, model_type=MODEL_TYPE, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm=True
  )


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return base.write_config(
    config,
    MODEL_TYPE,
    ARCHITECTURE,
    {'attention_bias': config.qkv_bias, 'use_sliding_window': False},
    qkv_bias=config.output_bias,
    mlp_bias=False,
    qk_norm=True,
  )
