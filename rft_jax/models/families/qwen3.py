"""Qwen3, dense: Llama with an RMS norm on each query and key head, and a head_dim of its own."""

from rft_jax.models.config import DecoderConfig
from rft_jax.models.families import llama

MODEL_TYPE = 'qwen3'
weights = llama.weights


def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field the decoder cannot honour."""
  bias = hf.get('attention_bias', False)
  return llama.read(
    hf, model_type=MODEL_TYPE, head_dim=128, qkv_bias=bias, output_bias=bias, qk_norm=True
  )


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return llama.write(
    config,
    MODEL_TYPE,
    'Qwen3ForCausalLM',
    {'attention_bias': config.qkv_bias, 'use_sliding_window': False},
    qkv_bias=config.output_bias,
    mlp_bias=False,
    qk_norm=True,
  )
