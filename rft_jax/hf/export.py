"""From a Decoder back to a Hugging Face directory that other programs load."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import shutil

import jax
import numpy as np
from jax.experimental import multihost_utils

import rft_jax
from rft_jax import models
from rft_jax.hf import weights
from rft_jax.hf.card import model_card
from rft_jax.hf.load import leaves, read_json, resolve, tokenizer_size

MARKER = 'rft_jax.json'  # says that a directory is an export of ours, and which files we wrote
COPIED = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  '*.model',
  'chat_template.jinja',
  'chat_template.json',
  'generation_config.json',
  'LICENSE*',
  'NOTICE*',
)
# What load() takes from elsewhere than config.json, or from its caller.
NOT_IN_CONFIG_JSON = ('dtype', 'eos_ids', 'valid_vocab', 'pad_id')


def export(
  model,
  config,
  *,
  to,
  source,
  card: dict | None = None,
  dtype: str = 'float32',
  force: bool = False,
  shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a Hugging Face directory with the weights of model, and returns its path.

  config.json is the source's, with the dtype set to what is written; tokenizer files, chat
  template, generation_config.json and licence are copied from the source. The directory appears
  by rename when it is complete. An earlier export in its place is replaced.

  Args:
    model: a Decoder, its leaves on one device or sharded; adapters merged.
    config: its DecoderConfig.
    to: the directory. Its parent is made if need be.
    source: the directory or hub id that the model began as.
    card: facts for the model card; its keys are in `card.FACTS`, others are added as they are.
    dtype: 'float32' or 'bfloat16', of the weights on disk.
    force: where `to` holds other files than an export of ours, moves that directory aside, to
      the name that is logged, instead of raising. Nothing of the user's is ever deleted.
    shard_bytes: bytes of weights to a file.

  Raises:
    FileExistsError: `to` is not empty and no export of ours, and not force.
    FileNotFoundError: no such source.
    ValueError: the model is not one that the source's config.json describes; says why.
  """
  directory = resolve(source)
  hf = read_json(directory / 'config.json')
  if hf is None:
    raise FileNotFoundError(f'{directory}: no config.json to export with')
  refuse_other_structure(config, models.family_of(hf).config(hf), directory)
  hf['torch_dtype' if 'torch_dtype' in hf else 'dtype'] = dtype

  def others(scratch):
    copy_others(directory, scratch)
    write_json(scratch / 'config.json', hf)
    text = model_card(
      card or {}, source=str(source), is_hub_id=not pathlib.Path(source).is_dir(), dtype=dtype
    )
    (scratch / 'README.md').write_text(text, encoding='utf-8')

  return write_directory(
    leaves_as_tensors(model, config), to, others, dtype=dtype, force=force, shard_bytes=shard_bytes
  )


def save_base(model, config, tokenizer, to, *, force: bool = False) -> pathlib.Path:
  """Writes a model made from scratch as a Hugging Face directory, and returns its path.

  load() and other programs read it like any checkpoint; export() can have it as its source.

  Args:
    model: a Decoder.
    config: its DecoderConfig; model_type says which family's config.json is written.
    tokenizer: of transformers (anything with save_pretrained), or a tokenizers.Tokenizer.
    to, force: as in export().

  Raises:
    FileExistsError: `to` is not empty and no export of ours, and not force.
    ValueError: the family's config.json cannot describe this model, or the tokenizer has more
      ids than the embedding has rows.
  """
  hf = models.family_of({'model_type': config.model_type}).to_hf(config)

  def others(scratch):
    if hasattr(tokenizer, 'save_pretrained'):
      tokenizer.save_pretrained(str(scratch))
    else:
      tokenizer.save(str(scratch / 'tokenizer.json'))
    ids = tokenizer_size(scratch) or 0
    if ids > config.vocab_size:
      raise ValueError(f'save_base: the tokenizer has {ids} ids, vocab_size={config.vocab_size}')
    write_json(scratch / 'config.json', hf)
    write_json(
      scratch / 'generation_config.json',
      {
        key: hf.get(key)
        for key in ('bos_token_id', 'eos_token_id', 'pad_token_id')
        if hf.get(key) is not None
      },
    )

  return write_directory(leaves_as_tensors(model, config), to, others, force=force)


# --- the directory -------------------------------------------------------------------------------
def write_directory(tensors, to, others, *, dtype='float32', force=False, shard_bytes=5 * 10**9):
  """Writes tensors and what others(directory) writes; the first process alone touches files."""
  to = pathlib.Path(to).expanduser().absolute()
  if jax.process_index() != 0:
    weights.write(to, tensors, dtype=dtype, shard_bytes=shard_bytes, writes=False)
    multihost_utils.sync_global_devices('rft_jax.hf.export')
    return to
  _refuse_foreign(to, force)
  to.parent.mkdir(parents=True, exist_ok=True)
  with _scratch(to) as scratch:
    others(scratch)
    weights.write(scratch, tensors, dtype=dtype, shard_bytes=shard_bytes)
    write_json(
      scratch / MARKER,
      {
        'rft_jax': rft_jax.__version__,
        'files': {path.name: _sha256(path) for path in sorted(scratch.iterdir())},
      },
    )
    _put(scratch, to)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('rft_jax.hf.export')
  return to


def copy_others(directory, scratch):
  """Copies what a checkpoint holds beside weights and config.json."""
  for pattern in COPIED:
    for path in sorted(directory.glob(pattern)):
      shutil.copyfile(path, scratch / path.name)


def leaves_as_tensors(model, config, rules=None):
  """Returns the weights.Output of every leaf; a ValueError lists leaves that have no place.

  Args:
    rules: the WeightRule of each leaf; None: those of a Decoder of config.
  """
  rules = rules or models.FAMILIES[config.model_type].weights(config)
  found = leaves(model)
  lines = [
    f'leaf {name} {list(leaf.shape)} has no place in a {config.model_type} checkpoint; '
    'merge adapters and drop heads first'
    for name, leaf in found.items()
    if name not in rules
  ]
  lines += [
    f'the model has no leaf {name}, needed for {rule.name}'
    for name, rule in rules.items()
    if name not in found
  ]
  if lines:
    raise ValueError('\n'.join(['export:', *lines]))
  return [
    tensor
    for name, rule in rules.items()
    for tensor in weights.outputs(rule, found[name], config.layers, _to_host)
  ]


def _to_host(array) -> np.ndarray:
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def refuse_other_structure(config, described, directory):
  """Raises where config.json of the source describes another model than config."""
  lines = [
    f'{field.name}: the model has {getattr(config, field.name)!r}, the source '
    f'{getattr(described, field.name)!r}'
    for field in dataclasses.fields(config)
    if field.name not in NOT_IN_CONFIG_JSON
    and getattr(config, field.name) != getattr(described, field.name)
  ]
  if lines:
    raise ValueError(
      '\n'.join(
        [
          f'export: config.json of {directory} describes another model:',
          *lines,
          'Give the source that the model was loaded from (for a model made from scratch: '
          'save_base).',
        ]
      )
    )


@contextlib.contextmanager
def _scratch(to):
  """Yields a new directory beside `to`; removed at the end if it is still there."""
  scratch = to.parent / f'.{to.name}.unfinished-{os.getpid()}'
  shutil.rmtree(scratch, ignore_errors=True)  # of a killed process that had our id
  scratch.mkdir()
  try:
    yield scratch
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _refuse_foreign(to, force):
  if to.exists() and not to.is_dir():
    raise FileExistsError(f'{to}: a file; give the name of a directory')
  if force or not to.is_dir() or not any(to.iterdir()) or _is_untouched_export(to):
    return
  why = (
    'an export with files added or changed since'
    if (to / MARKER).exists()
    else 'not an export of ours'
  )
  raise FileExistsError(
    f'{to}: not empty, and {why}; choose another directory, or force (which moves this one aside)'
  )


def _is_untouched_export(directory):
  """True if the directory holds what one of our exports wrote, byte for byte, and nothing else."""
  try:
    ours = json.loads((directory / MARKER).read_text())['files']
    there = [path for path in directory.iterdir() if path.name != MARKER]
    return all(path.is_file() and ours.get(path.name) == _sha256(path) for path in there)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def _put(scratch, to):
  """Renames scratch to `to`. What stood there is deleted if it was ours alone, else kept aside."""
  if not to.exists():
    scratch.rename(to)
    return
  ours = not any(to.iterdir()) or _is_untouched_export(to)
  number = 1
  while (aside := to.parent / f'{to.name}.before-{number}').exists():
    number += 1
  to.rename(aside)
  scratch.rename(to)
  if ours:
    shutil.rmtree(aside)
  else:
    logging.warning('export: moved what was in %s to %s', to, aside)


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
