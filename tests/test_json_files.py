"""read_json: its value, and errors that name the file, the place and the way out."""

import pytest

from rft_jax.json_files import read_json


def refusal(path, name='') -> str:
  with pytest.raises(ValueError) as caught:
    read_json(path, name)
  return str(caught.value)


def test_any_json_value_is_returned(tmp_path):
  path = tmp_path / 'a.json'
  for text, value in (('{"é": [1, null]}', {'é': [1, None]}), ('3', 3), (' "x"\n', 'x')):
    path.write_text(text, encoding='utf-8')
    assert read_json(path) == read_json(str(path)) == value


def test_a_file_that_cannot_be_read_is_named_with_the_reason_and_the_field(tmp_path):
  absent = tmp_path / 'absent.json'
  message = refusal(absent, 'config.grader')
  assert f'config.grader={absent}: cannot be read (No such file or directory)' in message
  assert 'need the path of a JSON file' in message
  assert refusal(absent).startswith(f'{absent}: cannot be read')
  assert 'cannot be read (Is a directory)' in refusal(tmp_path)


def test_a_file_that_is_not_json_is_named_with_line_and_column(tmp_path):
  path = tmp_path / 'a.json'
  path.write_text('{"a": 1,\n  oops}')
  message = refusal(path, 'config.grader')
  assert message.startswith(f'{path}:2: not JSON (Expecting property name')
  assert 'column 3' in message and f'python -m json.tool {path}' in message
  path.write_text('')
  assert refusal(path).startswith(f'{path}:1: not JSON')


def test_other_encodings_and_endless_nesting_are_refused(tmp_path):
  path = tmp_path / 'a.json'
  path.write_bytes(b'"\xff"')
  assert 'is not UTF-8 (invalid start byte at byte 1)' in refusal(path)
  path.write_text('[' * 100_000)
  assert 'nested too deeply' in refusal(path)
