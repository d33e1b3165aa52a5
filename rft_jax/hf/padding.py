"""Padding token of an exported reward model: never one that ends an answer.

transformers takes the score of a row at its last token that is not pad_token_id. Where padding has
the id that ends an answer, as in many checkpoints, it would score the token before the end. So an
export pads with another id, in config.json and in the tokenizer's files alike.
"""

import json

import tokenizers

from rft_jax.hf.config import read_optional_json


def pad_id_for(config, stop_ids, directory) -> int:
  """Returns the id to pad with: the checkpoint's own unless it ends answers, else another.

  Args:
    config: the DecoderConfig.
    stop_ids: every id that ends an answer.
    directory: of the checkpoint, with its tokenizer.json.

  Raises:
    ValueError: every special token ends an answer.
  """
  for token in (config.pad_id, config.bos_id, *_special_ids(directory)):
    if token is not None and token not in stop_ids and token < config.vocab_size:
      return token
  raise ValueError(
    f'{directory}: every special token ends an answer ({sorted(stop_ids)}), and '
    'transformers needs another one for padding; add one to the tokenizer'
  )


def set_pad_token(directory, pad_id):
  """Sets the padding token in the tokenizer's files of a directory."""
  tokenizer = _tokenizer(directory)
  token = tokenizer.id_to_token(pad_id) if tokenizer else None
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    settings = read_optional_json(directory / name)
    if token is not None and settings is not None:
      (directory / name).write_text(
        json.dumps(settings | {'pad_token': token}, indent=2, ensure_ascii=False) + '\n',
        encoding='utf-8',
      )


def _special_ids(directory) -> list[int]:
  tokenizer = _tokenizer(directory)
  return (
    sorted(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    if tokenizer
    else []
  )


def _tokenizer(directory):
  path = directory / 'tokenizer.json'
  return tokenizers.Tokenizer.from_file(str(path)) if path.exists() else None
