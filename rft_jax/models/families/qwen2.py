"""Qwen2 and Qwen2.5: as Llama, with biases on q, k and v in every model."""

from rft_jax.models.config import DecoderConfig
from rft_jax.models.families import base

MODEL_TYPE = 'qwen2'
ARCHITECTURE = 'Qwen2ForCausalLM'
weights = base.weights


def config(hf: dict) -> DecoderConfig:
  """Reads a parsed config.json; a ValueError lists every field that is not supported."""
  return base.read_config(hf, model_type=MODEL_TYPE, qkv_bias=True)


def to_hf(config: DecoderConfig) -> dict:
  """Returns the config.json of a model made from scratch, as transformers 5 writes it."""
  return base.write_config(
    config,
    MODEL_TYPE,
    ARCHITECTURE,
    {'use_sliding_window': False},
    qkv_bias=True,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
  )
