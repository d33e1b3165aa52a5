"""Log-probs of a stage's rows under its reference policy: computed once, kept in the workdir.

A row's log-probs under a policy that does not move are the same in every epoch. They are kept as
one .npz file for a set of rows, with a fingerprint of rows and policy: a continued run reads them
again, and what does not fit is made anew.
"""

import hashlib
import pathlib
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.records import atomic
from rft_jax.sharding import name_of
from rft_jax.types import Batch, Example

FOLDER = 'reference_logprobs'  # in the workdir
ROWS = 256  # scored at once: of similar length, so that little is padding


def cached(
  score: Callable,
  model,
  examples: list[Example],
  make: Callable[[list], Batch],
  *,
  folder=None,
  name: str = '',
) -> list[np.ndarray]:
  """Returns `logprobs(...)`, from folder/reference_logprobs/name.npz if it fits; else writes it.

  Args:
    score, model, examples, make: see logprobs.
    folder: the workdir; None: nothing is kept on disk.
    name: of the file; different sets of rows of a run have different names.
  """
  if folder is None:
    return logprobs(score, model, examples, make)
  path = pathlib.Path(folder) / FOLDER / f'{name}.npz'
  mark = fingerprint(model, examples)
  rows = _read(path, mark)
  if rows is None:
    rows = logprobs(score, model, examples, make)
    if jax.process_index() == 0:
      _write(path, mark, rows)
  return rows


def logprobs(score, model, examples, make) -> list[np.ndarray]:
  """Returns the log-probs, f32[length] in nats, of each row of make(examples), in its order.

  Args:
    score: (model, Batch) -> f32[B, T].
    model: the policy that scores.
    examples: of any lengths; they are scored in the order of their lengths.
    make: some of the examples -> their Batch, with as many rows for each.
  """
  order = np.argsort([-_length(example) for example in examples], kind='stable')
  found: list[list[np.ndarray]] = [[] for _ in examples]
  for start in range(0, len(order), ROWS):
    some = order[start : start + ROWS]
    batch = make([examples[i] for i in some])
    values = score(model, batch)
    for group, lengths, row in zip(batch.group, batch.completion_lengths, values):
      found[some[group]].append(row[:lengths])
  return [row for rows in found for row in rows]


def padded(rows: list[np.ndarray], width: int) -> np.ndarray:
  """Returns f32[B, width], the rows with 0 behind them."""
  array = np.zeros((len(rows), width), np.float32)
  for number, row in enumerate(rows):
    array[number, : len(row)] = row
  return array


def fingerprint(model, examples) -> str:
  """Returns 64 hexadecimal digits of the ids of all rows, the weights, and the model's config."""
  digest = hashlib.sha256(f'{jax.__version__} {jax.default_backend()} {model.config}'.encode())
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


def _read(path, mark):
  """Returns the rows of a file that has this mark; None if there is no such file."""
  try:
    with np.load(path) as kept:
      if str(kept['fingerprint']) != mark:
        return None
      return np.split(kept['logprobs'], np.cumsum(kept['lengths'])[:-1])
  except (OSError, KeyError, ValueError, zipfile.BadZipFile):
    return None  # none, or one that was cut short: made anew


def _write(path, mark, rows):
  with atomic.replacing(path) as partial, open(partial, 'wb') as file:
    np.savez(
      file,
      fingerprint=mark,
      logprobs=np.concatenate(rows),
      lengths=np.array([len(row) for row in rows], np.int64),
    )
