"""Rows of data sets, valid and invalid, and JSONL files of them."""

import json

TOOL = {'type': 'function', 'function': {'name': 'look_up', 'parameters': {'type': 'object'}}}


def row(text='What is 6 x 7?', **fields):
  """Returns a row with one user message."""
  return {'messages': [{'role': 'user', 'content': text}], **fields}


def turns(*roles, **fields):
  """Returns a row with a message of each role, its content the role and index."""
  return {
    'messages': [{'role': role, 'content': f'{role} {i}'} for i, role in enumerate(roles)],
    **fields,
  }


def write_jsonl(path, values):
  """Writes rows, or lines given as text, as JSONL; returns the path as text."""
  lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
  path.write_text(''.join(line + '\n' for line in lines))
  return str(path)


# Rows with one problem each: code -> row.
INVALID_ROWS = {
  'E_MESSAGES_MISSING': {'prompt': 'x'},
  'E_MESSAGES_NOT_LIST': {'messages': 'x'},
  'E_MESSAGES_EMPTY': {'messages': []},
  'E_ROLE_MISSING': {'messages': [{'content': 'x'}]},
  'E_ROLE_UNKNOWN': {'messages': [{'role': 'human', 'content': 'x'}]},
  'E_LAST_ROLE': turns('user', 'developer'),
  'E_ASSISTANT_LAST': turns('user', 'assistant'),
  'E_CONTENT_EMPTY': row(' \n'),
  'E_UNSUPPORTED_PART': row([{'type': 'image_url', 'image_url': {'url': 'x'}}]),
  'E_TOOLS_SCHEMA': row(tools=[{'type': 'function', 'function': {'name': 'no spaces'}}]),
  'W_ROLE_SYSTEM': turns('system', 'user'),
}
