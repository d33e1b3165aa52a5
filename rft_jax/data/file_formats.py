"""Dataset file formats: reads rows from JSONL, JSON, Parquet and hub data sets.

Each reader returns (rows, problems): rows are (line, object) pairs, counted from 1.
"""

import datetime
import decimal
import json
import math
from typing import Any

from rft_jax.data.problems import Problem
from rft_jax.graders import template


def _read_jsonl(path):
  rows, problems = [], []
  data = path.read_bytes()
  if data.startswith(b'\xef\xbb\xbf'):
    data = data[3:]
    problems.append(
      Problem(
        'E_JSON',
        1,
        '',
        'a byte order mark before the first row',
        'save the file as UTF-8 without BOM',
      )
    )
  lines = data.split(b'\n')
  for line, text in enumerate(lines[:-1] if not lines[-1] else lines, 1):
    if not text.strip():
      problems.append(Problem('E_JSON', line, '', 'a blank line', 'remove it'))
      continue
    try:
      rows.append((line, _parse_row(text)))
    except ValueError as error:
      problems.append(Problem('E_JSON', line, '', str(error), 'one JSON object a line, in UTF-8'))
  return rows, problems


def _read_json(path):
  """Reads an array of objects, or JSONL in a file called .json.

  Not read with json_files.read_json, which accepts NaN.
  """
  if not path.read_bytes().lstrip().startswith(b'['):
    return _read_jsonl(path)
  rows, problems = [], []
  try:
    values = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
  except ValueError as error:
    return [], [Problem('E_JSON', 0, '', str(error), 'need an array of JSON objects, in UTF-8')]
  for number, value in enumerate(values, 1):
    if isinstance(value, dict):
      rows.append((number, value))
    else:
      problems.append(
        Problem(
          'E_JSON',
          number,
          '',
          f'the row is {template.json_type(value)}',
          'every element of the array must be an object',
        )
      )
  return rows, problems


def _read_parquet(path):
  """Reads one file, or all files of a directory, sorted by name; rows are numbered through."""
  import pyarrow.parquet  # slow to import, and only needed for Parquet

  values = []
  for part in sorted(path.glob('*.parquet')) if path.is_dir() else [path]:
    try:
      values += pyarrow.parquet.ParquetFile(part).read().to_pylist()
    except pyarrow.ArrowException as error:
      raise ValueError(f'{part.name}: {error}') from error
  return _rows_of_columns(values)


def read_hub(name, split):
  """Reads one split of a data set of the Hugging Face hub."""
  import datasets  # slow to import

  return _rows_of_columns(datasets.load_dataset(name, split=split))


def _rows_of_columns(values):
  rows, problems = [], []
  for number, value in enumerate(values, 1):
    try:
      rows.append((number, _to_json(value)))
    except ValueError as error:
      problems.append(
        Problem('E_JSON', number, '', str(error), 'columns must hold values that JSON can hold')
      )
  return rows, problems


def _parse_row(text: bytes) -> dict[str, Any]:
  """Returns one parsed line; ValueError with a short reason if it is not a JSON object."""
  try:
    value = json.loads(text.decode('utf-8'), parse_constant=_refuse_constant)
  except UnicodeDecodeError as error:
    raise ValueError(f'not UTF-8 at byte {error.start + 1}') from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{error.msg} at column {error.colno}') from error
  if not isinstance(value, dict):
    raise ValueError(f'the row is {template.json_type(value)}, not an object')
  if rb'\ud' in text.lower():  # half of a surrogate pair is valid JSON, but not valid text
    try:
      json.dumps(value, ensure_ascii=False).encode('utf-8')
    except UnicodeEncodeError as error:
      raise ValueError(f'an unpaired surrogate {error.object[error.start]!r}') from error
  return value


def _refuse_constant(name):
  raise ValueError(f'{name} is not a JSON value')


def _to_json(value):
  """Returns a value of a typed column as a JSON value; nulls and NaN are left out of objects."""
  if isinstance(value, dict):
    fields = {key: _to_json(part) for key, part in value.items()}
    return {key: part for key, part in fields.items() if part is not None}
  if isinstance(value, (list, tuple)):
    return [_to_json(part) for part in value]
  if isinstance(value, (datetime.date, datetime.time)):
    return value.isoformat()
  if isinstance(value, decimal.Decimal):
    return float(value)
  if isinstance(value, float) and math.isnan(value):
    return None
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  raise ValueError(f'a value of type {type(value).__name__}, which JSON does not have')


READERS = {'.jsonl': _read_jsonl, '.json': _read_json, '.parquet': _read_parquet}
