"""Reads what two runs wrote, to compare them: checkpoints, and metrics without clocks."""

import pathlib

import numpy as np

from rft_jax.records import metrics


def is_clock(name):
  """Returns whether a metric is of the process, not of the run."""
  return 'seconds/' in name or name == 'compilations'


def checkpoint_arrays(workdir, step):
  """Returns {part/name: array} of every saved array of a checkpoint, read without a model."""
  import orbax.checkpoint as ocp

  folder = pathlib.Path(workdir).absolute() / 'checkpoints' / f'step_{step:06d}'
  parts = [part for part in ('policy', 'optimizer', 'critic') if (folder / part).is_dir()]
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    return {
      f'{part}/{name}': np.asarray(value)
      for part in parts
      for name, value in checkpointer.restore(folder / part).items()
    }


def metric_rows(workdir, file='metrics.jsonl'):
  """Returns the rows of a file of metrics, without what a clock measures."""
  return [
    {name: value for name, value in row.items() if not is_clock(name)}
    for row in metrics.read(pathlib.Path(workdir) / file)
  ]


def assert_same_runs(workdir, other, step):
  """Asserts that checkpoints, metrics and evaluations of two runs are equal bit for bit.

  Args:
    step: of the checkpoints.
  """
  arrays, other_arrays = checkpoint_arrays(workdir, step), checkpoint_arrays(other, step)
  assert arrays.keys() == other_arrays.keys() and len(arrays) > 30
  differing = [name for name in arrays if arrays[name].tobytes() != other_arrays[name].tobytes()]
  assert not differing
  for file in ('metrics.jsonl', 'evaluation.jsonl'):
    assert metric_rows(workdir, file) == metric_rows(other, file), file
