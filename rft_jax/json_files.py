"""Reads a JSON file; errors name the file, line and column and say how to repair it."""

import json
import pathlib
from typing import Any


def read_json(path: str | pathlib.Path, name: str = '') -> Any:
  """Returns the value that a JSON file holds; the file is UTF-8.

  Args:
    path: of the file.
    name: where the path was given, for the messages ('config.grader'); '' for the path alone.

  Raises:
    ValueError: the file cannot be read, is not UTF-8 or is not JSON.
  """
  path = pathlib.Path(path)
  source = f'{name}={path}' if name else str(path)
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise ValueError(
      f'{source}: cannot be read ({error.strerror}); need the path of a JSON file'
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{source}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8'
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno}); correct the file, '
      f'`python -m json.tool {path}` checks it'
    ) from error
  except RecursionError as error:
    raise ValueError(
      f'{source}: is nested too deeply to be read; need a flatter JSON value'
    ) from error
