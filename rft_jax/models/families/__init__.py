"""Model families by the `model_type` of a Hugging Face config.json: one small module each.

A family is a module with

    MODEL_TYPE                                    its key here and in config.json
    ARCHITECTURE                                  its class in transformers, '...ForCausalLM'
    config(hf: dict) -> DecoderConfig             reads a parsed config.json, or raises ValueError
    to_hf(config) -> dict                         the config.json of a model made from scratch
    weights(config) -> dict[str, WeightRule]      our leaf name -> its tensor in the checkpoint

most of it by calls of base.py. A new family is one file and one name below; outside this package,
FAMILIES[module.MODEL_TYPE] = module.
"""

from rft_jax.models.families import llama, qwen2, qwen3

FAMILIES = {family.MODEL_TYPE: family for family in (llama, qwen2, qwen3)}


def family_of(hf: dict):
  """Returns the family module of a parsed config.json; a ValueError lists the supported ones."""
  model_type = hf.get('model_type')
  if model_type not in FAMILIES:
    raise ValueError(f'config.json: model_type={model_type!r}, supported: {sorted(FAMILIES)}')
  return FAMILIES[model_type]
