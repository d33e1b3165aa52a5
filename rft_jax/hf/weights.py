"""Weights on disk: the safetensors files of a directory, read and written tensor by tensor.

Handles names, shapes and files; the tensor of each leaf of a model is given by the WeightRules of
its family.
"""

import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import ml_dtypes  # its import adds bfloat16 to NumPy, and so to safetensors
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from rft_jax.json_files import read_json

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
FLOATS = ('F64', 'F32', 'F16', 'BF16')
DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
BUFFERS = ('rotary_emb.inv_freq',)  # computed, not trained, but stored in old checkpoints


class Tensor(NamedTuple):
  """The file, shape and dtype of a tensor, from the header of its file."""

  path: pathlib.Path
  shape: tuple[int, ...]
  dtype: str  # as safetensors spells it: 'F32', 'BF16'


class OutputTensor(NamedTuple):
  """A tensor to be written: fetched from the device only when its file is written."""

  name: str
  shape: tuple[int, ...]
  fetch: Callable[[], np.ndarray]


# --- names and shapes of the tensors of a leaf ---------------------------------------------------
def names(rule, layers: int) -> list[str]:
  """Returns the names of the tensors that make up a leaf: one, or one for each layer."""
  if '{layer}' in rule.name:
    return [rule.name.format(layer=layer) for layer in range(layers)]
  return [rule.name]


def tensor_shape(rule, leaf_shape) -> tuple[int, ...]:
  """Returns the shape on disk of each tensor of a leaf, which is stacked along its first axis
  if the rule names a layer."""
  shape = tuple(leaf_shape[1:] if '{layer}' in rule.name else leaf_shape)
  return shape[::-1] if _transposed(rule) else shape


def expected_shapes(rules, leaf_shapes, layers: int) -> dict[str, tuple[int, ...]]:
  """Returns the shape on disk of every tensor of a model.

  Args:
    rules: WeightRule of each leaf, by leaf name.
    leaf_shapes: shape of each leaf, by leaf name; the same names.
    layers: L.
  """
  return {
    name: tensor_shape(rule, leaf_shapes[leaf])
    for leaf, rule in rules.items()
    for name in names(rule, layers)
  }


def _transposed(rule):
  if rule.transform not in ('transpose', 'none'):
    raise ValueError(f"{rule.name}: transform={rule.transform!r}, need 'transpose' or 'none'")
  return rule.transform == 'transpose'


# --- reading -------------------------------------------------------------------------------------
def list_tensors(directory: pathlib.Path) -> dict[str, Tensor]:
  """Returns every tensor of a checkpoint by name, without its values: one file, or shards.

  Raises:
    FileNotFoundError: there are no safetensors, or shards that the index names are absent.
    ValueError: a file is no safetensors file, or two shards hold a tensor of the same name.
  """
  if (directory / INDEX).exists():
    weight_map = read_json(directory / INDEX)['weight_map']
    files = sorted(set(weight_map.values()))
  elif (directory / SINGLE).exists():
    weight_map, files = {}, [SINGLE]
  else:
    pickles = sorted(path.name for path in directory.glob('*.bin'))
    raise FileNotFoundError(
      f'{directory}: found neither {SINGLE} nor {INDEX}'
      + (
        f', only {", ".join(pickles)}: save it again with safe_serialization=True'
        if pickles
        else '; is the download complete?'
      )
    )
  absent = [file for file in files if not (directory / file).exists()]
  if absent:
    raise FileNotFoundError(
      f'{directory}: {INDEX} names files that are not there: '
      f'{", ".join(absent)}; download them again'
    )
  tensors: dict[str, Tensor] = {}
  duplicates = []
  for file in files:
    for name, tensor in _header(directory / file):
      if name in tensors:
        duplicates.append(f'{name} in {tensors[name].path.name} and {file}')
      tensors[name] = tensor
  if duplicates:
    raise ValueError('\n'.join([f'{directory}: tensors that are in two files:', *duplicates]))
  return tensors


def _header(path) -> Iterable[tuple[str, Tensor]]:
  try:
    with safe_open(path, 'numpy') as file:
      keys = file.keys()  # safe_open is no dict: it cannot be iterated
      for name in keys:
        entry = file.get_slice(name)
        yield name, Tensor(path, tuple(entry.get_shape()), entry.get_dtype())
  except Exception as error:  # SafetensorError derives from Exception itself
    raise ValueError(
      f'{path}: not a readable safetensors file ({error}); download it again'
    ) from error


def problems(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> list[str]:
  """Compares the tensors of a checkpoint with the expected shapes: one line for each difference.

  Lists the missing, the extra, the mis-shaped and those that are not floating-point numbers.
  """
  lines = [
    f'missing: {name}, expected {list(shape)}'
    for name, shape in expected.items()
    if name not in tensors
  ]
  for name, tensor in tensors.items():
    label = f'{name} {list(tensor.shape)} in {tensor.path.name}'
    if name not in expected:
      if not name.endswith(BUFFERS):
        lines.append(f'extra: {label}, which a model of this config.json does not have')
    elif tensor.shape != expected[name]:
      lines.append(f'shape: {label}, expected {list(expected[name])}')
    elif tensor.dtype not in FLOATS:
      lines.append(f'dtype: {label} is {tensor.dtype}, expected one of {", ".join(FLOATS)}')
  return lines


def read(tensor: Tensor, name: str) -> np.ndarray:
  """Returns a tensor as it is on disk."""
  with safe_open(tensor.path, 'numpy') as file:
    return file.get_tensor(name)


def read_leaf(tensors: dict[str, Tensor], rule, shape, layers: int) -> np.ndarray:
  """Returns a leaf as f32[shape], transposed and stacked along the layers according to the rule."""
  leaf = np.empty(shape, np.float32)
  slices = leaf if '{layer}' in rule.name else leaf[None]
  for target, name in zip(slices, names(rule, layers), strict=True):
    value = read(tensors[name], name)
    target[...] = value.T if _transposed(rule) else value
  return leaf


# --- writing -------------------------------------------------------------------------------------
def leaf_tensors(rule, leaf, layers: int, to_host) -> list[OutputTensor]:
  """Returns the tensors of one leaf, to be written; read_leaf() is the inverse.

  Args:
    rule: the leaf's WeightRule.
    leaf: f32, on one device or sharded.
    layers: L.
    to_host: converts a device array to np.ndarray.
  """

  def fetch(layer):
    # A layer at a time: the host never holds a whole stacked leaf.
    value = to_host(leaf if layer is None else leaf[layer])
    return value.T if _transposed(rule) else value

  shape = tensor_shape(rule, leaf.shape)
  stacked = '{layer}' in rule.name
  return [
    OutputTensor(name, shape, lambda layer=i if stacked else None: fetch(layer))
    for i, name in enumerate(names(rule, layers))
  ]


def write(
  directory: pathlib.Path,
  tensors: list[OutputTensor],
  *,
  dtype: str = 'float32',
  shard_bytes: int = 5 * 10**9,
  writes: bool = True,
) -> list[str]:
  """Writes tensors as safetensors: one file, or shards with an index if it exceeds shard_bytes.

  Args:
    directory: must exist.
    tensors: written in this order, fetched file by file.
    dtype: 'float32' or 'bfloat16' (rounded to nearest even).
    shard_bytes: bytes; a larger tensor has a file to itself.
    writes: False on the processes of a multi-host run that take part in fetching (a collective
      operation) but do not write files.

  Returns:
    The names of the files.
  """
  size = {tensor.name: math.prod(tensor.shape) * DTYPES[dtype].itemsize for tensor in tensors}
  shards: list[list[OutputTensor]] = [[]]
  for tensor in tensors:
    if shards[-1] and sum(size[t.name] for t in shards[-1]) + size[tensor.name] > shard_bytes:
      shards.append([])
    shards[-1].append(tensor)
  files = (
    [SINGLE]
    if len(shards) == 1
    else [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
  )
  for file, shard in zip(files, shards):
    values = {t.name: np.ascontiguousarray(t.fetch(), dtype=DTYPES[dtype]) for t in shard}
    if writes:
      save_file(values, directory / file, metadata={'format': 'pt'})
    del values
  if len(files) == 1:
    return files
  weight_map = {t.name: file for file, shard in zip(files, shards) for t in shard}
  if writes:
    (directory / INDEX).write_text(
      json.dumps(
        {'metadata': {'total_size': sum(size.values())}, 'weight_map': weight_map}, indent=2
      )
    )
  return [*files, INDEX]
