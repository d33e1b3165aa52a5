"""Dataset file formats: the same rows from JSONL, JSON, Parquet and the hub."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from row_files import TOOL, row, turns, write_jsonl

from rft_jax.data import problems, rows


def test_the_whole_row_is_the_item(tmp_path):
  first = row(answer={'gene': 'ABC1', 'ranks': [1, 2.5, None]}, tools=[TOOL])
  items, errors = rows.read(write_jsonl(tmp_path / 'cases.jsonl', [first, row('b')]))
  assert errors == []
  assert items[0] == (first, 'cases.jsonl:1') and items[1].source == 'cases.jsonl:2'


def test_parquet_equals_jsonl(tmp_path):
  values = [
    turns('developer', 'user', answer='42', detail={'a': 1}),
    {'messages': [{'role': 'user', 'content': 'x', 'name': 'ann'}], 'answer': 'y'},
  ]
  pa.parquet.write_table(pa.Table.from_pylist(values), tmp_path / 'cases.parquet')
  from_parquet, errors = rows.read(str(tmp_path / 'cases.parquet'))
  from_jsonl, _ = rows.read(write_jsonl(tmp_path / 'cases.jsonl', values))
  assert errors == []
  assert [item.row for item in from_parquet] == [item.row for item in from_jsonl] == values


def test_a_directory_of_parquet_files_is_one_data_set(tmp_path):
  for name, text in (('b', 'second'), ('a', 'first')):
    pa.parquet.write_table(pa.Table.from_pylist([row(text)]), tmp_path / f'{name}.parquet')
  items, _ = rows.read(str(tmp_path))
  assert [item.row for item in items] == [row('first'), row('second')]
  assert [problems.line_of(item) for item in items] == [1, 2]


def test_a_json_array_equals_jsonl(tmp_path):
  values = [row('a'), row('b')]
  (tmp_path / 'cases.json').write_text(json.dumps(values, indent=2))
  assert [item.row for item in rows.read(str(tmp_path / 'cases.json'))[0]] == values


def test_a_hub_data_set_is_read_by_split(tmp_path, monkeypatch):
  datasets = pytest.importorskip('datasets')
  requests = []

  def load_dataset(name, split):
    requests.append((name, split))
    return datasets.Dataset.from_list([row('a', answer=None), row('b', answer='x')])

  monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
  items, errors = rows.read('hub:someone/cases:test')
  rows.read('hub:someone/cases', split='validation')
  assert requests == [('someone/cases', 'test'), ('someone/cases', 'validation')]
  assert errors == [] and [item.row for item in items] == [row('a'), row('b', answer='x')]


def test_every_line_that_is_not_a_row_is_named(tmp_path):
  path = tmp_path / 'cases.jsonl'
  valid = json.dumps(row()).encode()
  path.write_bytes(
    b'\xef\xbb\xbf' + valid + b'\n\n{"messages": \n[1]\n"\xff"\n{"a": NaN}\n'
    b'{"a": "\\ud800"}\n' + valid
  )
  items, errors = rows.read(str(path))
  assert [problems.line_of(item) for item in items] == [1, 8]
  assert {error.code for error in errors} == {'E_JSON'}
  assert [error.line for error in errors] == [1, 2, 3, 4, 5, 6, 7]
  reasons = ['byte order mark', 'blank', 'column', 'an array', 'UTF-8', 'NaN', 'surrogate']
  assert all(reason in error.message for reason, error in zip(reasons, errors, strict=True))


def test_an_empty_file_has_too_few_rows(tmp_path):
  _, errors = rows.read(write_jsonl(tmp_path / 'x.jsonl', []))
  assert [error.code for error in errors] == ['E_COUNT_MIN']


def test_a_damaged_parquet_file_is_named(tmp_path):
  (tmp_path / 'cases.parquet').write_bytes(b'PAR1 no more')
  (error,) = rows.read(str(tmp_path / 'cases.parquet'))[1]
  assert error.code == 'E_FILE' and 'cases.parquet' in error.message
