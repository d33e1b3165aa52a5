"""Validation of messages: every invalid row gets its code, line and hint."""

import pytest
from row_files import INVALID_ROWS, TOOL, row, write_jsonl

from rft_jax.data import rows, validate_messages


@pytest.mark.parametrize('code', INVALID_ROWS)
def test_an_invalid_row_gets_its_code_line_and_hint(tmp_path, code):
  items, _ = rows.read(write_jsonl(tmp_path / 'cases.jsonl', [row(), INVALID_ROWS[code]]))
  (problem,) = validate_messages.check_rows(items, supervised=False, with_target=False)
  assert (problem.code, problem.line) == (code, 2) and problem.hint and problem.path


def test_a_turn_of_tool_calls_needs_no_content(tmp_path):
  call = {'id': 'a', 'type': 'function', 'function': {'name': 'look_up', 'arguments': '{}'}}
  tool_row = {
    'messages': [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': None, 'tool_calls': [call]},
      {'role': 'tool', 'tool_call_id': 'a', 'content': 'y'},
      {'role': 'user', 'content': 'z'},
    ],
    'tools': [TOOL],
  }
  items, _ = rows.read(write_jsonl(tmp_path / 'cases.jsonl', [tool_row]))
  assert validate_messages.check_rows(items, supervised=False, with_target=False) == []
