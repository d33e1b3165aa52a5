"""The tokenizer of a Hugging Face directory, through transformers and without torch."""

import hashlib
import json
import pathlib


def load(source: pathlib.Path):
  """Returns the fast tokenizer of a directory.

  Raises:
    ValueError: it is no directory, or transformers finds no tokenizer in it that it can load.
  """
  if not source.is_dir():
    raise ValueError(
      f'{source}: not a directory; need a Hugging Face directory with a tokenizer.json'
    )
  import transformers  # slow to import, and not needed by those who only want the nouns

  # tokenizer.json is the tokenizer. AutoTokenizer builds another one for some model types (for
  # qwen2 a pre-tokenizer and special tokens of its own), so it serves only where there is none.
  reader = (
    transformers.PreTrainedTokenizerFast
    if (source / 'tokenizer.json').is_file()
    else transformers.AutoTokenizer
  )
  try:
    tokenizer = reader.from_pretrained(source)
  except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
    found = ', '.join(sorted(path.name for path in source.iterdir())) or 'nothing'
    reason = str(error).strip().splitlines()[0]
    raise ValueError(
      f'{source}: no tokenizer that transformers can load ({reason}); need a '
      f'tokenizer.json and tokenizer_config.json, found {found}'
    ) from error
  if not tokenizer.is_fast:
    raise ValueError(
      f'{source}: {type(tokenizer).__name__} is not a fast tokenizer; need a tokenizer.json'
    )
  return tokenizer


def sha256(tokenizer, source: pathlib.Path) -> str:
  """Returns the digest of tokenizer.json, or of what it would be where the directory has none."""
  path = source / 'tokenizer.json'
  data = path.read_bytes() if path.is_file() else tokenizer.backend_tokenizer.to_str().encode()
  return hashlib.sha256(data).hexdigest()


def differences(ours, theirs) -> list[str]:
  """Returns in what two tokenizers do not mean the same ids, token by token; [] if they do.

  The id of padding may differ: nothing here reads it.
  """
  first, second = ours.get_vocab(), theirs.get_vocab()
  tell = lambda token_id: 'none' if token_id is None else token_id
  found = [
    f'{name} is {tell(getattr(ours, name))} in the first, {tell(getattr(theirs, name))} in '
    'the second'
    for name in ('bos_token_id', 'eos_token_id', 'unk_token_id')
    if getattr(ours, name) != getattr(theirs, name)
  ]
  unlike = [
    token for token in first.keys() | second.keys() if first.get(token) != second.get(token)
  ]
  rank = lambda token: (min(v[token] for v in (first, second) if token in v), token)
  return found + [
    f'{token!r} is {tell(first.get(token))} in the first, {tell(second.get(token))} in the second'
    for token in sorted(unlike, key=rank)
  ]


def eos_ids(tokenizer, source: pathlib.Path) -> set[int]:
  """Returns all that tokenizer, generation_config.json and config.json call end of sequence."""
  ids = {tokenizer.eos_token_id}
  for name in ('generation_config.json', 'config.json'):
    path = source / name
    settings = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
    for part in (settings, settings.get('text_config') or {}):
      eos = part.get('eos_token_id')
      ids.update(eos if isinstance(eos, list) else [eos])
  return ids - {None}


def adds_space(tokenizer) -> bool:
  """Returns whether a text is encoded as if a space stood before it, as sentencepiece may."""
  border, word = '\n', 'word'
  ids = [tokenizer.encode(text, add_special_tokens=False) for text in (border, border + word, word)]
  return ids[1] != ids[0] + ids[2]
