"""DecoderConfig of a Hugging Face directory: config.json, generation_config.json, tokenizer.json.

Of the tokenizer only the number of ids is read here; data/chat.py loads it with its chat template.
The stop ids of a run are eos_ids and the template's end of turn, see data/stop_ids.py.
"""

import dataclasses
import pathlib

import tokenizers

from rft_jax import models
from rft_jax.json_files import read_json


def read_config(directory: pathlib.Path, *, dtype: str = 'float32', attention: str = 'auto'):
  """Returns the DecoderConfig of a directory: config.json, completed from two other files.

  eos_ids: every end-of-sequence id, those of generation_config.json first, then config.json's.
  valid_vocab: the number of ids in tokenizer.json; rows of the embedding beyond them are padding.

  Raises:
    FileNotFoundError: no config.json.
    ValueError: a file is not JSON, config.json asks for something that the decoder does not
      implement, or this implementation of attention does not run here.
  """
  hf = read_optional_json(directory / 'config.json')
  if hf is None:
    raise FileNotFoundError(f'{directory}: no config.json; is it a Hugging Face model directory?')
  try:
    config = models.family_of(hf).config(hf)
  except ValueError as error:
    raise ValueError(f'{directory}: {error}') from error
  generation = read_optional_json(directory / 'generation_config.json') or {}
  eos_ids = generation.get('eos_token_id')
  eos_ids = [] if eos_ids is None else eos_ids if isinstance(eos_ids, list) else [eos_ids]
  pad_id = config.pad_id if config.pad_id is not None else generation.get('pad_token_id')
  config = dataclasses.replace(
    config,
    dtype=dtype,
    attention=attention,
    pad_id=pad_id,
    eos_ids=tuple(dict.fromkeys([*eos_ids, *config.eos_ids])),
    valid_vocab=min(tokenizer_size(directory) or config.vocab_size, config.vocab_size),
  )
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join([f'{directory}:', *problems]))
  models.attention.select_implementation(attention, dtype, config.head_dim)  # raises ValueError
  return config


def tokenizer_size(directory: pathlib.Path) -> int | None:
  """Returns the highest id of tokenizer.json, added tokens included, plus one; None without it.

  Raises:
    ValueError: the file cannot be read.
  """
  path = directory / 'tokenizer.json'
  if not path.exists():
    return None
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # tokenizers raises Exception itself
    raise ValueError(f'{path}: not a readable tokenizer ({error})') from error
  return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def read_optional_json(path: pathlib.Path):
  """Returns the value in a JSON file, None if the file is absent."""
  return read_json(path) if path.exists() else None
