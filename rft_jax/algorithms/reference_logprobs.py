"""Precomputed reference log-probs of a stage's rows, cached in the workdir.

The reference policy does not change, so the log-probs of a row are the same in every epoch. They
are cached as one .npz file for each set of rows, with a fingerprint of rows and policy: a continued
run reads them, and computes them again if the fingerprint differs.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import platform
from rft_jax.records import atomic
from rft_jax.sharding import name_of
from rft_jax.types import Batch, Example

FOLDER = 'reference_logprobs'  # in the workdir
ROWS = 256  # scored at a time, of similar lengths, so that little is padding


def cached(
  score: Callable,
  model,
  examples: list[Example],
  make_batch: Callable[[list], Batch],
  *,
  folder=None,
  name: str = '',
) -> list[np.ndarray]:
  """Returns `logprobs(...)`, read from WORKDIR/reference_logprobs/NAME.npz where that fits.

  Args:
    score, model, examples, make_batch: see logprobs.
    folder: the workdir; None: no cache.
    name: of the file; different sets of rows of a run have different names.
  """
  if folder is None:
    return logprobs(score, model, examples, make_batch)
  path = pathlib.Path(folder) / FOLDER / f'{name}.npz'
  expected = fingerprint(model, examples)
  rows = _read(path, expected)
  if rows is None:
    rows = logprobs(score, model, examples, make_batch)
    if jax.process_index() == 0:
      _write(path, expected, rows)
  return rows


def logprobs(score, model, examples, make_batch) -> list[np.ndarray]:
  """Returns the log-probs, f32[length] in nats, of each row of make_batch(examples), in its order.

  Args:
    score: (model, Batch) -> f32[B, T].
    model: the policy that scores.
    examples: of any lengths; they are scored in the order of their lengths.
    make_batch: examples -> their Batch, with the same number of rows for each example.
  """
  order = np.argsort([-_length(example) for example in examples], kind='stable')
  rows: list[list[np.ndarray]] = [[] for _ in examples]
  for start in range(0, len(order), ROWS):
    numbers = order[start : start + ROWS]
    batch = make_batch([examples[number] for number in numbers])
    values = score(model, batch)
    for group, length, row in zip(batch.group, batch.completion_lengths, values):
      rows[numbers[group]].append(row[:length])
  return [row for example_rows in rows for row in example_rows]


def padded(rows: list[np.ndarray], width: int) -> np.ndarray:
  """Returns f32[B, width], the rows with 0 behind them."""
  array = np.zeros((len(rows), width), np.float32)
  for number, row in enumerate(rows):
    array[number, : len(row)] = row
  return array


def fingerprint(model, examples) -> str:
  """Returns 64 hexadecimal digits of the ids of all rows, the weights, and the model's config."""
  digest = hashlib.sha256(f'{jax.__version__} {platform.backend()} {model.config}'.encode())
  for example in examples:
    for ids in (example.prompt_ids, example.target_ids, example.rejected_ids or []):
      digest.update(np.array([len(ids), *ids], np.int32).tobytes())
  sums = jax.device_get(_sums(model))
  for path, leaf in jax.tree_util.tree_leaves_with_path(sums):
    digest.update(f'{name_of(path)} {leaf.tolist()}'.encode())
  return digest.hexdigest()


@jax.jit
def _sums(tree):
  """Returns u32[2] for each leaf: its bits summed, and summed with weights. Exact in any order."""

  def of(leaf):
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32)
    places = jnp.uint32(1)
    for axis in range(bits.ndim):
      along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
      places = places * jnp.uint32(2654435761) + along
    return jnp.stack([bits.sum(dtype=jnp.uint32), (bits * places).sum(dtype=jnp.uint32)])

  return jax.tree.map(of, tree)


def _length(example):
  return len(example.prompt_ids) + max(len(example.target_ids), len(example.rejected_ids or []))


def _read(path, expected):
  """Returns the rows of a file with the expected fingerprint; None if there is no such file."""
  try:
    with np.load(path) as file:
      if str(file['fingerprint']) != expected:
        return None
      return np.split(file['logprobs'], np.cumsum(file['lengths'])[:-1])
  except (OSError, KeyError, ValueError, zipfile.BadZipFile):
    return None  # there is none, or it is damaged: computed again


def _write(path, fingerprint_of_rows, rows):
  with atomic.replacing(path) as partial, open(partial, 'wb') as file:
    np.savez(
      file,
      fingerprint=fingerprint_of_rows,
      logprobs=np.concatenate(rows),
      lengths=np.array([len(row) for row in rows], np.int64),
    )
