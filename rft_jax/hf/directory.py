"""Writes an export directory by rename, complete or not at all; never deletes the user's files."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil

import jax
from jax.experimental import multihost_utils

import rft_jax
from rft_jax.hf import weights

MARKER = 'rft_jax.json'  # marks a directory as our export, and lists the files that we wrote
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


def write_directory(
  tensors, to, write_other_files, *, dtype='float32', force=False, shard_bytes=5 * 10**9
):
  """Writes tensors and other files to a new directory, and returns its path.

  Only the first process of a multi-host run writes files.

  Args:
    tensors: the weights.OutputTensors.
    to: the directory.
    write_other_files: called with the directory that becomes `to`.
    dtype, force, shard_bytes: as in export().

  Raises:
    FileExistsError: `to` is not empty and no export of ours, and not force.
  """
  to = pathlib.Path(to).expanduser().absolute()
  if jax.process_index() != 0:
    weights.write(to, tensors, dtype=dtype, shard_bytes=shard_bytes, writes=False)
    multihost_utils.sync_global_devices('rft_jax.hf.export')
    return to
  _check_replaceable(to, force)
  to.parent.mkdir(parents=True, exist_ok=True)
  with _scratch_directory(to) as scratch:
    write_other_files(scratch)
    weights.write(scratch, tensors, dtype=dtype, shard_bytes=shard_bytes)
    write_json(
      scratch / MARKER,
      {
        'rft_jax': rft_jax.__version__,
        'files': {path.name: _sha256(path) for path in sorted(scratch.iterdir())},
      },
    )
    _move_into_place(scratch, to)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('rft_jax.hf.export')
  return to


def copy_other_files(source, to):
  """Copies the files that go with weights and config.json: tokenizer, chat template, licence."""
  for pattern in COPIED:
    for path in sorted(source.glob(pattern)):
      shutil.copyfile(path, to / path.name)


def write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


@contextlib.contextmanager
def _scratch_directory(to):
  """Yields a new directory next to `to`; removed at the end if it is still there."""
  scratch = to.parent / f'.{to.name}.unfinished-{os.getpid()}'
  shutil.rmtree(scratch, ignore_errors=True)  # of a killed process that had our id
  scratch.mkdir()
  try:
    yield scratch
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _check_replaceable(to, force):
  """Raises FileExistsError unless `to` is free, empty, or an unchanged export of ours."""
  if to.exists() and not to.is_dir():
    raise FileExistsError(f'{to}: a file; give the name of a directory')
  if force or not to.is_dir() or not any(to.iterdir()) or _is_unchanged_export(to):
    return
  reason = (
    'an export with files added or changed since'
    if (to / MARKER).exists()
    else 'not an export of ours'
  )
  raise FileExistsError(
    f'{to}: not empty, and {reason}; choose another directory, or force (which moves this one '
    'aside)'
  )


def _is_unchanged_export(directory) -> bool:
  """Returns whether the directory holds what our export wrote, byte for byte, and nothing else."""
  try:
    digests = json.loads((directory / MARKER).read_text())['files']
    paths = [path for path in directory.iterdir() if path.name != MARKER]
    return all(path.is_file() and digests.get(path.name) == _sha256(path) for path in paths)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return False


def _move_into_place(scratch, to):
  """Renames scratch to `to`, whose old content is deleted if it is an unchanged export of ours.

  Other old content is moved to a directory of its own.
  """
  if not to.exists():
    scratch.rename(to)
    return
  deletable = not any(to.iterdir()) or _is_unchanged_export(to)
  number = 1
  while (aside := to.parent / f'{to.name}.before-{number}').exists():
    number += 1
  to.rename(aside)
  scratch.rename(to)
  if deletable:
    shutil.rmtree(aside)
  else:
    logging.warning('export: moved what was in %s to %s', to, aside)


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
