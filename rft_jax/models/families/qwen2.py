"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, always."""

from rft_jax.models.config import DecoderConfig
from rft_jax.models.families import llama

MODEL_TYPE = 'qwen2'
weights = llama.weights


def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field the decoder cannot honour."""
  return llama.read(hf, model_type=MODEL_TYPE, qkv_bias=True)


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return llama.write(
    config,
    MODEL_TYPE,
    'Qwen2ForCausalLM',
    {'use_sliding_window': False},
    qkv_bias=True,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
  )
