"""Stop ids: the token ids that end a completion, from the checkpoint's files and chat template."""

import pathlib

from rft_jax.data import tokenizers
from rft_jax.json_files import read_json


def find_stop_ids(tokenizer, source: pathlib.Path, turn_end: str) -> tuple[int, ...]:
  """Returns every id that ends a turn, ascending.

  These are all ids that the tokenizer, generation_config.json and config.json name as EOS, and the
  special token with which the chat template ends an assistant's turn.

  Args:
    source: the directory of the checkpoint.
    turn_end: what the chat template writes after the content of an assistant's turn.

  Raises:
    ValueError: there is none, or one of the files is not JSON.
  """
  turn_end = turn_end.lstrip()
  first_ids = tokenizers.encode(tokenizer, [turn_end])[0][:1] if turn_end else []
  special_ids = tokenizers.special_ids(tokenizer)
  ids = _eos_ids(tokenizer, source) | {token for token in first_ids if token in special_ids}
  if not ids:
    raise ValueError(
      f'{source}: no end-of-sequence token; name one as eos_token in '
      'tokenizer_config.json or as eos_token_id in generation_config.json'
    )
  return tuple(sorted(ids))


def _eos_ids(tokenizer, source) -> set[int]:
  """Returns all ids that tokenizer, generation_config.json and config.json name as EOS."""
  ids = {tokenizer.eos_token_id}
  for name in ('generation_config.json', 'config.json'):
    path = source / name
    settings = read_json(path) if path.is_file() else {}
    for part in (settings, settings.get('text_config') or {}):
      eos = part.get('eos_token_id')
      ids.update(eos if isinstance(eos, list) else [eos])
  return ids - {None}
