"""Exports a Decoder as a Hugging Face directory that transformers, vLLM and others load.

Tokenizer, chat template and generation_config.json (with its end-of-sequence ids) are copied from
the source as they are; only a model made from scratch has them written, by save_base().
"""

import dataclasses
import pathlib

import numpy as np
from jax.experimental import multihost_utils

from rft_jax import models
from rft_jax.hf import weights
from rft_jax.hf.card import model_card
from rft_jax.hf.config import read_optional_json, tokenizer_size
from rft_jax.hf.directory import copy_other_files, write_directory, write_json
from rft_jax.hf.hub import resolve
from rft_jax.hf.load import leaves

# Fields that load() takes from other files than config.json, or from its caller.
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
    to: the directory. Its parent is created if need be.
    source: the directory or hub id that the model was loaded from.
    card: facts for the model card; its keys are in `card.FACTS`, others are added as they are.
    dtype: 'float32' or 'bfloat16', of the weights on disk.
    force: where `to` holds other files than an export of ours, moves that directory aside, to
      the name that is logged, instead of raising. The user's files are never deleted.
    shard_bytes: bytes of weights in a file.

  Raises:
    FileExistsError: `to` is not empty and no export of ours, and not force.
    FileNotFoundError: no such source.
    ValueError: the model is not one that the source's config.json describes; says why.
  """
  directory = resolve(source)
  hf = read_source_config(directory)
  check_structure(config, models.family_of(hf).config(hf), directory)
  hf['torch_dtype' if 'torch_dtype' in hf else 'dtype'] = dtype

  def write_other_files(scratch):
    copy_other_files(directory, scratch)
    write_json(scratch / 'config.json', hf)
    write_card(scratch, card, source=source, dtype=dtype)

  return write_directory(
    model_tensors(model, config),
    to,
    write_other_files,
    dtype=dtype,
    force=force,
    shard_bytes=shard_bytes,
  )


def save_base(model, config, tokenizer, to, *, force: bool = False) -> pathlib.Path:
  """Writes a model made from scratch as a Hugging Face directory, and returns its path.

  load() and other programs read it like any checkpoint; it can be the source of export().

  Args:
    model: a Decoder.
    config: its DecoderConfig; model_type is the family whose config.json is written.
    tokenizer: of transformers (anything with save_pretrained), or a tokenizers.Tokenizer.
    to, force: as in export().

  Raises:
    FileExistsError: `to` is not empty and no export of ours, and not force.
    ValueError: the family's config.json cannot describe this model, or the tokenizer has more
      ids than the embedding has rows.
  """
  hf = models.family_of({'model_type': config.model_type}).to_hf(config)

  def write_other_files(scratch):
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

  return write_directory(model_tensors(model, config), to, write_other_files, force=force)


# --- shared with reward_model.py -----------------------------------------------------------------
def read_source_config(directory) -> dict:
  """Returns the parsed config.json of a checkpoint; a FileNotFoundError where there is none."""
  hf = read_optional_json(directory / 'config.json')
  if hf is None:
    raise FileNotFoundError(f'{directory}: no config.json to export with')
  return hf


def check_structure(config, source_config, directory):
  """Raises ValueError where config.json of the source describes another model than config."""
  problems = [
    f'{field.name}: the model has {getattr(config, field.name)!r}, the source '
    f'{getattr(source_config, field.name)!r}'
    for field in dataclasses.fields(config)
    if field.name not in NOT_IN_CONFIG_JSON
    and getattr(config, field.name) != getattr(source_config, field.name)
  ]
  if problems:
    raise ValueError(
      '\n'.join(
        [
          f'export: config.json of {directory} describes another model:',
          *problems,
          'Give the source that the model was loaded from (for a model made from scratch: '
          'save_base).',
        ]
      )
    )


def write_card(directory, card, *, source, dtype, reward_model=False):
  """Writes README.md, see card.model_card."""
  text = model_card(
    card or {},
    source=str(source),
    is_hub_id=not pathlib.Path(source).is_dir(),
    dtype=dtype,
    reward_model=reward_model,
  )
  (directory / 'README.md').write_text(text, encoding='utf-8')


def model_tensors(model, config, rules=None) -> list[weights.OutputTensor]:
  """Returns the tensors of every leaf; a ValueError lists leaves without one.

  Args:
    model: a tree of leaves.
    config: the DecoderConfig.
    rules: the WeightRule of each leaf; None: those of a Decoder of config.
  """
  rules = rules or models.FAMILIES[config.model_type].weights(config)
  arrays = leaves(model)
  problems = [
    f'leaf {name} {list(leaf.shape)} has no place in a {config.model_type} checkpoint; '
    'merge adapters and drop heads first'
    for name, leaf in arrays.items()
    if name not in rules
  ]
  problems += [
    f'the model has no leaf {name}, needed for {rule.name}'
    for name, rule in rules.items()
    if name not in arrays
  ]
  if problems:
    raise ValueError('\n'.join(['export:', *problems]))
  return [
    tensor
    for name, rule in rules.items()
    for tensor in weights.leaf_tensors(rule, arrays[name], config.layers, _to_host)
  ]


def _to_host(array) -> np.ndarray:
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
