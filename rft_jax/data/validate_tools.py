"""Validates the tools of a row, and the tool calls of its messages."""

import re

import jsonschema

from rft_jax.data.problems import Problem
from rft_jax.graders import template


def check_tools(tools, line: int) -> list[Problem]:
  """Returns the problems of a row's `tools`, which may be None."""
  if tools is None:
    return []
  if not isinstance(tools, list):
    return [
      Problem(
        'E_TOOLS_SCHEMA',
        line,
        'tools',
        f'tools is {template.json_type(tools)}',
        'need an array of {"type": "function", "function": {...}}',
      )
    ]
  problems = []
  for index, tool in enumerate(tools):
    message = _tool_problem(tool)
    if message:
      path = f'tools[{index}]'
      problems.append(
        Problem(
          'E_TOOLS_SCHEMA',
          line,
          path,
          f'{path}: {message}',
          'need {"type": "function", "function": {"name": "...", "description": '
          '"...", "parameters": {a JSON Schema}}}',
        )
      )
  return problems


def check_tool_calls(calls, line: int, path: str) -> list[Problem]:
  """Returns the problems of a message's `tool_calls`, which may be None."""
  if calls is None:
    return []
  valid = isinstance(calls, list) and all(
    isinstance(call, dict)
    and isinstance(call.get('function'), dict)
    and isinstance(call['function'].get('name'), str)
    for call in calls
  )
  if valid:
    return []
  return [
    Problem(
      'E_TOOLS_SCHEMA',
      line,
      path,
      f'{path} names no function',
      'need [{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{...}"}}]',
    )
  ]


def _tool_problem(tool):
  """Returns what is wrong with one tool, or None."""
  function = tool.get('function') if isinstance(tool, dict) else None
  if not isinstance(function, dict) or tool.get('type') != 'function':
    return 'is not a function tool'
  name = function.get('name')
  if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9_-]{1,64}', name):
    return f'function.name={name!r}, need 1 to 64 of A-Z a-z 0-9 _ -'
  try:
    jsonschema.Draft202012Validator.check_schema(function.get('parameters', {}))
  except jsonschema.SchemaError as error:
    return f'function.parameters is not a JSON Schema: {error.message}'
  return None
