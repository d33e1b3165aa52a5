"""From a Hugging Face directory or hub id to a Decoder and its DecoderConfig."""

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import tokenizers

from rft_jax import models, sharding
from rft_jax.hf import weights

HUB_ID = re.compile(r'[\w.-]+(/[\w.-]+)?(@[\w./-]+)?')
WANTED = ('*.safetensors', '*.json', '*.jinja', '*.model', 'merges.txt', 'LICENSE*', 'NOTICE*')
UNWANTED = ('*/*', 'consolidated*')  # copies in other formats: original/, onnx/


def resolve(source) -> pathlib.Path:
  """Returns the local directory of a checkpoint, downloaded or from the cache if it is a hub id.

  Args:
    source: a directory, or a hub id: 'owner/name', 'owner/name@revision'.

  Raises:
    FileNotFoundError: neither works; says what was tried and what to do.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  tried = f'{str(source)!r} is ' + (
    'a file, not a directory' if path.exists() else 'no directory here'
  )
  if path.exists() or not HUB_ID.fullmatch(str(source)):
    raise FileNotFoundError(
      f'{tried}, and no hub id (owner/name); give a directory with '
      'config.json and model.safetensors'
    )
  import huggingface_hub

  name, _, revision = str(source).partition('@')
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name, revision=revision or None, allow_patterns=WANTED, ignore_patterns=UNWANTED
      )
    )
  except Exception as error:  # the hub client's errors have no common base below Exception
    reason = str(error).strip().split('\n')[0]
    raise FileNotFoundError(
      f'{tried}, and as a hub id it failed: {type(error).__name__}: {reason}\n'
      'Check the name; log in for a private or gated model (hf auth login); without a network, '
      'copy a checkpoint here and give its directory.'
    ) from error


def load(source, *, dtype: str = 'float32', attention: str = 'auto', mesh=None):
  """Returns (Decoder, DecoderConfig) of a checkpoint; the weights are float32.

  Each leaf is read, put on its devices and let go before the next, so that the host never holds
  more than one.

  Args:
    source: a directory or hub id.
    dtype: of the matrix products, 'float32' or 'bfloat16'.
    attention: how it is computed, see models.attention.IMPLEMENTATIONS.
    mesh: leaves are split over it by the rules of `sharding`; None: the default device.

  Raises:
    FileNotFoundError: no such checkpoint, or a part of it is absent.
    ValueError: an unknown model_type, a config.json that the decoder cannot honour, or weights
      that are missing, extra or mis-shaped: all of them, with file, found and expected shape.
  """
  directory = resolve(source)
  config = read_config(directory, dtype=dtype, attention=attention)
  rules = models.FAMILIES[config.model_type].weights(config)
  found = weights.index(directory)
  lines = _drop_tied_head(found, config)
  return read_tree(models.abstract(config), rules, found, config, directory, mesh, lines), config


def read_tree(model, rules, found, config, directory, mesh, lines=()):
  """Returns model, a tree of shapes, with its leaves read from a checkpoint.

  Args:
    model: its leaves' names are those of rules.
    rules: the WeightRule of each leaf.
    found: the tensors there are, see weights.index.
    config, directory, mesh: as in load.
    lines: what is already known to be wrong.

  Raises:
    ValueError: something is wrong, or tensors are missing, extra or mis-shaped: all of it.
  """
  shapes = {name: leaf.shape for name, leaf in leaves(model).items()}
  lines = [*lines, *weights.problems(found, weights.expected(rules, shapes, config.layers))]
  if lines:
    raise ValueError(
      '\n'.join(
        [
          f'{directory}: the weights do not fit config.json (model_type {config.model_type!r}):',
          *lines,
          'Use the config.json that was saved with these weights.',
        ]
      )
    )

  def place(path, leaf, where=None):
    name = sharding.name_of(path)
    host = weights.read_leaf(found, rules[name], leaf.shape, config.layers)
    if where is None:
      return jax.device_put(host)
    return jax.make_array_from_callback(host.shape, where, lambda at: host[at])

  trees = (model,) if mesh is None else (model, sharding.shardings_for(model, mesh))
  return jax.tree_util.tree_map_with_path(place, *trees)


def leaves(model) -> dict:
  """Returns the leaves of a Decoder by name."""
  return {sharding.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def _drop_tied_head(found, config):
  """Removes the head's tensor from found where config ties it to the embedding.

  Some tied checkpoints hold the same matrix twice. Were they to differ, one of the two uses would
  be wrong in silence, so that is a problem, told in the list that is returned.
  """
  if not config.tied_head:
    return []
  untied = dataclasses.replace(config, tied_head=False)
  table = models.FAMILIES[config.model_type].weights(untied)
  head, embed = table['head/kernel'].name, table['embed'].name
  if head not in found or embed not in found:
    return []
  same = found[head].shape == found[embed].shape and np.array_equal(
    weights.read(found[head], head), weights.read(found[embed], embed)
  )
  tensor = found.pop(head)
  return (
    []
    if same
    else [
      f'tied: {head} {list(tensor.shape)} in {tensor.path.name} differs from {embed}, expected '
      'them equal; if they are meant to differ, set tie_word_embeddings to false in config.json'
    ]
  )


# --- config --------------------------------------------------------------------------------------
def read_config(directory: pathlib.Path, *, dtype: str = 'float32', attention: str = 'auto'):
  """Returns the DecoderConfig of a directory: config.json, with what other files know better.

  eos_ids: every end-of-sequence id, those of generation_config.json first, then config.json's.
  valid_vocab: how many ids tokenizer.json has; rows of the embedding beyond them are padding.

  Raises:
    FileNotFoundError: no config.json.
    ValueError: a file is not JSON, config.json asks for what the decoder does not do, or attention
      cannot be computed in that way here.
  """
  hf = read_json(directory / 'config.json')
  if hf is None:
    raise FileNotFoundError(f'{directory}: no config.json; is it a Hugging Face model directory?')
  try:
    config = models.family_of(hf).config(hf)
  except ValueError as error:
    raise ValueError(f'{directory}: {error}') from error
  generation = read_json(directory / 'generation_config.json') or {}
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
  models.attention.chosen(attention, dtype, config.head_dim)
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


def read_json(path: pathlib.Path):
  """Returns the parsed file, None if it is absent; a ValueError names a broken one."""
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path}: not JSON ({error})') from error
