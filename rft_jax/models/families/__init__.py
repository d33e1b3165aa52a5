"""Model families by the `model_type` of a Hugging Face config.json: one small table each.

A family is a module with

    MODEL_TYPE                                    its key here and in config.json
    config(hf: dict) -> DecoderConfig             reads a parsed config.json, or refuses
    to_hf(config) -> dict                         the config.json of a model made from scratch
    weights(config) -> dict[str, WeightRule]      our leaf name -> its tensor in the checkpoint

A new family is one file and one line below.
"""

from rft_jax.models.families import llama, qwen2, qwen3

FAMILIES = {family.MODEL_TYPE: family for family in (llama, qwen2, qwen3)}


def family_of(hf: dict):
  """Returns the family module of a parsed config.json; a ValueError names the ones there are."""
  found = hf.get('model_type')
  if found not in FAMILIES:
    raise ValueError(f'config.json: model_type={found!r}, supported: {sorted(FAMILIES)}')
  return FAMILIES[found]
