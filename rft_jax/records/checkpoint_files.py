"""One checkpoint folder: pytrees saved by Orbax as {leaf name: array}, written whole or not at all.

A folder gets its final name only when all of it is written. An interrupted save leaves a hidden
folder, which the next save removes; every earlier checkpoint stays as it was.
"""

import pathlib
import shutil

import jax
import orbax.checkpoint as ocp

from rft_jax.json_files import read_json
from rft_jax.records import atomic
from rft_jax.sharding import name_of
from rft_jax.types import Tree

METADATA = 'checkpoint.json'


class MismatchedCheckpoint(ValueError):
  """A checkpoint does not fit the model or optimizer. The message names every leaf that differs."""


def folders(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns everything in a directory of checkpoints; [] if there is no such directory."""
  return list(directory.iterdir()) if directory.is_dir() else []


def write(folder: pathlib.Path, metadata: dict, trees: dict[str, Tree]) -> None:
  """Writes a checkpoint under a hidden name and renames it; one of the same name is replaced.

  Every process of a multi-host run calls this; the directory is shared.
  """
  partial = folder.with_name(f'.{folder.name}.partial')
  if jax.process_index() == 0:
    _remove_interrupted(folder.parent)
    partial.mkdir(parents=True)
  wait_for_all_processes(f'save {folder.name}')
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    for name, tree in trees.items():
      leaves = named_leaves(tree)
      if leaves:  # Orbax refuses an empty tree, such as the state of plain SGD
        checkpointer.save(partial / name, args=ocp.args.PyTreeSave(leaves))
  if jax.process_index() == 0:
    atomic.write_json(partial / METADATA, metadata)
    replaced = folder.with_name(f'.{folder.name}.replaced')
    if folder.exists():
      folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
  wait_for_all_processes(f'saved {folder.name}')


def read_metadata(folder: pathlib.Path) -> dict:
  """Returns the checkpoint.json of a checkpoint."""
  return read_json(folder / METADATA)


def remove(folder: pathlib.Path) -> None:
  """Removes a checkpoint; if interrupted, a hidden folder is left and never half a checkpoint."""
  hidden = folder.rename(folder.with_name(f'.{folder.name}.removed'))
  shutil.rmtree(hidden)


def restore(folder: pathlib.Path, trees: dict[str, Tree]) -> dict[str, Tree]:
  """Returns the trees saved in a folder, after comparing all of them with their targets.

  Args:
    trees: {name: target}, the leaves arrays or jax.ShapeDtypeStructs. A leaf is placed by the
      sharding of its target, on the first device where that has none.

  Raises:
    MismatchedCheckpoint: leaves are missing, unknown, or of another shape or dtype; all named.
  """
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    targets = {
      name: {leaf: _abstract(value) for leaf, value in named_leaves(tree).items()}
      for name, tree in trees.items()
    }
    problems = []
    for name, target in targets.items():
      saved = {}
      if (folder / name).is_dir():
        saved = checkpointer.metadata(folder / name).item_metadata.tree
      problems += [f'{name}/{problem}' for problem in _differences(saved, target)]
    if problems:
      raise MismatchedCheckpoint(
        '\n'.join(
          [
            f'{folder} does not fit this model and optimizer; use the config it was trained with:',
            *problems,
          ]
        )
      )
    restored = {}
    for name, tree in trees.items():
      values = {}
      if targets[name]:
        values = checkpointer.restore(
          folder / name,
          args=ocp.args.PyTreeRestore(
            item=targets[name],
            restore_args=ocp.checkpoint_utils.construct_restore_args(targets[name]),
          ),
        )
      restored[name] = jax.tree_util.tree_map_with_path(
        lambda path, _, values=values: values[name_of(path)], tree
      )
  return restored


def named_leaves(tree: Tree) -> dict[str, jax.Array]:
  """Returns {name: leaf}.

  Raises:
    ValueError: two leaves have the same name, so that one would be lost.
  """
  leaves = [(name_of(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
  by_name = dict(leaves)
  if len(by_name) != len(leaves):
    names = [name for name, _ in leaves]
    raise ValueError(f'leaves share a name: {sorted({n for n in names if names.count(n) > 1})}')
  return by_name


def wait_for_all_processes(event: str) -> None:
  """Waits until every process of a multi-host run has reached the same event."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(f'checkpoint: {event}')


def _remove_interrupted(directory):
  """Removes what a killed save left; puts back a checkpoint that it was about to replace."""
  for path in folders(directory):
    name = path.name.removeprefix('.').removesuffix('.replaced')
    if path.name == f'.{name}.replaced' and not (directory / name).exists():
      path.rename(directory / name)
    elif path.name.startswith('.'):
      shutil.rmtree(path)


def _abstract(leaf):
  """Returns the shape, dtype and sharding of a leaf to restore."""
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(saved, target):
  """Lists leaves that are missing, unknown, or of another shape or dtype than expected.

  Orbax itself would cast a leaf of another dtype without a warning.
  """
  unknown = sorted(saved.keys() - target.keys())
  problems = [f'{name}: in the checkpoint, not expected' for name in unknown]
  for name, leaf in target.items():
    if name not in saved:
      problems.append(f'{name}: not in the checkpoint')
      continue
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # saved as its raw words
      leaf = jax.eval_shape(jax.random.key_data, leaf)
    saved_type, expected = [f'{x.dtype}{list(x.shape)}' for x in (saved[name], leaf)]
    if saved_type != expected:
      problems.append(f'{name}: found {saved_type}, expected {expected}')
  return problems
