"""Validation of tools."""

import pytest
from row_files import TOOL

from rft_jax.data import validate_tools


@pytest.mark.parametrize(
  'invalid',
  [
    {'type': 'retrieval'},
    'x',
    {'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'no such type'}}},
  ],
)
def test_an_invalid_tool_is_refused(invalid):
  (problem,) = validate_tools.check_tools([TOOL, invalid], 1)
  assert (problem.code, problem.path) == ('E_TOOLS_SCHEMA', 'tools[1]')
