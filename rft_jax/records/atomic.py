"""Atomic file writes: to a temporary file in the same folder, then renamed to the final name."""

import contextlib
import json
import os
import pathlib


@contextlib.contextmanager
def replacing(path: str | os.PathLike):
  """Yields a temporary path to write to; without an error it is renamed to `path` at the end.

  A missing folder is created. After an error inside, the file at `path` is as it was.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
  try:
    yield partial
    with open(partial, 'rb+') as file:  # on disk before the name points to it
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file by rename, in UTF-8."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def write_json(path: str | os.PathLike, value) -> None:
  """Writes a JSON file by rename, indented. Numbers that JSON lacks (NaN) raise ValueError."""
  text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
  write_text(path, text + '\n')
