"""Loads a Hugging Face checkpoint as a Decoder: config.json and safetensors to a pytree.

The end-of-sequence ids are read in config.py; tokenizer and chat template in data/chat.py, the stop
ids of a run in data/stop_ids.py.
"""

import dataclasses

import jax
import numpy as np

from rft_jax import models, sharding
from rft_jax.hf import weights
from rft_jax.hf.config import read_config
from rft_jax.hf.hub import resolve


def load(source, *, dtype: str = 'float32', attention: str = 'auto', mesh=None):
  """Returns (Decoder, DecoderConfig) of a checkpoint; the weights are float32.

  Each leaf is read, put on its devices and freed before the next, so that the host never holds
  more than one.

  Args:
    source: a directory or hub id.
    dtype: of the matrix products, 'float32' or 'bfloat16'.
    attention: the implementation, a name in models.attention.IMPLEMENTATIONS.
    mesh: leaves are split over it by the rules of `sharding`; None: the default device.

  Raises:
    FileNotFoundError: no such checkpoint, or a part of it is absent.
    ValueError: an unknown model_type, a config.json that the decoder does not implement, or weights
      that are missing, extra or mis-shaped: all of them, with file, shape and expected shape.
  """
  directory = resolve(source)
  config = read_config(directory, dtype=dtype, attention=attention)
  rules = models.FAMILIES[config.model_type].weights(config)
  tensors = weights.list_tensors(directory)
  problems = _drop_tied_head(tensors, config)
  model = read_tree(models.abstract(config), rules, tensors, config, directory, mesh, problems)
  return model, config


def read_tree(model, rules, tensors, config, directory, mesh, problems=()):
  """Returns model, a tree of shapes, with its leaves read from a checkpoint.

  Args:
    model: its leaves' names are those of rules.
    rules: the WeightRule of each leaf.
    tensors: those of the checkpoint, see weights.list_tensors.
    config, directory, mesh: as in load.
    problems: those already known, for the error.

  Raises:
    ValueError: there are problems, or tensors are missing, extra or mis-shaped: all of it.
  """
  shapes = {name: leaf.shape for name, leaf in leaves(model).items()}
  expected = weights.expected_shapes(rules, shapes, config.layers)
  problems = [*problems, *weights.problems(tensors, expected)]
  if problems:
    raise ValueError(
      '\n'.join(
        [
          f'{directory}: the weights do not fit config.json (model_type {config.model_type!r}):',
          *problems,
          'Use the config.json that was saved with these weights.',
        ]
      )
    )

  def place(path, leaf, leaf_sharding=None):
    name = sharding.name_of(path)
    array = weights.read_leaf(tensors, rules[name], leaf.shape, config.layers)
    if leaf_sharding is None:
      return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, leaf_sharding, lambda index: array[index])

  trees = (model,) if mesh is None else (model, sharding.shardings_for(model, mesh))
  return jax.tree_util.tree_map_with_path(place, *trees)


def leaves(model) -> dict:
  """Returns the leaves of a Decoder by name."""
  return {sharding.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


def _drop_tied_head(tensors, config) -> list[str]:
  """Removes the head's tensor from tensors where config ties it to the embedding.

  Some tied checkpoints hold the same matrix twice. If they differed, one of the two uses would
  be wrong silently, so that is a problem, in the list that is returned.
  """
  if not config.tied_head:
    return []
  untied = dataclasses.replace(config, tied_head=False)
  rules = models.FAMILIES[config.model_type].weights(untied)
  head, embed = rules['head/kernel'].name, rules['embed'].name
  if head not in tensors or embed not in tensors:
    return []
  equal = tensors[head].shape == tensors[embed].shape and np.array_equal(
    weights.read(tensors[head], head), weights.read(tensors[embed], embed)
  )
  tensor = tensors.pop(head)
  if equal:
    return []
  return [
    f'tied: {head} {list(tensor.shape)} in {tensor.path.name} differs from {embed}, expected '
    'them equal; if they are meant to differ, set tie_word_embeddings to false in config.json'
  ]
