"""Tokenizers: loads the one of a Hugging Face directory, through transformers and without torch."""

import hashlib
import pathlib


def load(source: pathlib.Path):
  """Returns the fast tokenizer of a directory.

  Raises:
    ValueError: not a directory, or transformers can load no tokenizer from it.
  """
  if not source.is_dir():
    raise ValueError(
      f'{source}: not a directory; need a Hugging Face directory with a tokenizer.json'
    )
  import transformers  # slow to import, and only needed here

  # tokenizer.json defines the tokenizer. For some model types (such as qwen2) AutoTokenizer builds
  # a different one, with another pre-tokenizer and other special tokens, so it is used only where
  # that file is missing.
  reader = (
    transformers.PreTrainedTokenizerFast
    if (source / 'tokenizer.json').is_file()
    else transformers.AutoTokenizer
  )
  try:
    tokenizer = reader.from_pretrained(source)
  except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
    files = ', '.join(sorted(path.name for path in source.iterdir())) or 'nothing'
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f'{source}: no tokenizer that transformers can load ({reason}); need a '
      f'tokenizer.json and tokenizer_config.json, found {files}'
    ) from error
  if not tokenizer.is_fast:
    raise ValueError(
      f'{source}: {type(tokenizer).__name__} is not a fast tokenizer; need a tokenizer.json'
    )
  return tokenizer


def encode(tokenizer, texts: list[str]) -> list[list[int]]:
  """Returns the ids of each text. No special tokens are added: a text contains its own BOS."""
  if not texts:
    return []
  return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
    'input_ids'
  ]


def special_ids(tokenizer) -> set[int]:
  """Returns the ids of all special tokens."""
  added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
  return added | set(tokenizer.all_special_ids)


def sha256(tokenizer, source: pathlib.Path) -> str:
  """Returns the digest of tokenizer.json, or of its equivalent where the directory has none."""
  path = source / 'tokenizer.json'
  data = path.read_bytes() if path.is_file() else tokenizer.backend_tokenizer.to_str().encode()
  return hashlib.sha256(data).hexdigest()


def differences(first, second) -> list[str]:
  """Returns where two tokenizers give tokens different ids, one text per token; [] if nowhere.

  The padding ids may differ: nothing reads them.
  """
  first_ids, second_ids = first.get_vocab(), second.get_vocab()
  id_or_none = lambda token_id: 'none' if token_id is None else token_id
  special = [
    f'{name} is {id_or_none(getattr(first, name))} in the first, '
    f'{id_or_none(getattr(second, name))} in the second'
    for name in ('bos_token_id', 'eos_token_id', 'unk_token_id')
    if getattr(first, name) != getattr(second, name)
  ]
  differing = [
    token
    for token in first_ids.keys() | second_ids.keys()
    if first_ids.get(token) != second_ids.get(token)
  ]
  rank = lambda token: (min(ids[token] for ids in (first_ids, second_ids) if token in ids), token)
  return special + [
    f'{token!r} is {id_or_none(first_ids.get(token))} in the first, '
    f'{id_or_none(second_ids.get(token))} in the second'
    for token in sorted(differing, key=rank)
  ]


def adds_space(tokenizer) -> bool:
  """Returns whether texts are encoded with an extra leading space, as sentencepiece may do."""
  newline, word = '\n', 'word'
  ids = [
    tokenizer.encode(text, add_special_tokens=False) for text in (newline, newline + word, word)
  ]
  return ids[1] != ids[0] + ids[2]
