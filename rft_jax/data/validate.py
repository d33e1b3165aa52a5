"""What can be wrong with rows, all of it at once: codes beginning with E_ block, with W_ warn."""

import collections
import json
import re
from typing import Any, NamedTuple

import jsonschema

from rft_jax.data.templates import text_of
from rft_jax.graders import template
from rft_jax.types import Item

ROLES = ('developer', 'system', 'user', 'assistant', 'tool')
_STEP = re.compile(r'([\w-]+)|\[(\d+)\]')


class Problem(NamedTuple):
  """One thing that is wrong with one row, or with a whole file."""

  code: str  # 'E_...' blocks, 'W_...' warns
  line: int  # of the file, from 1; in a file without lines the row's number; 0: the whole file
  path: str  # where in the row: 'messages[1].content'
  message: str
  hint: str  # the way out

  @property
  def blocks(self) -> bool:
    return self.code.startswith('E_')


def line_of(item: Item) -> int:
  """Returns the line that an Item was read from."""
  return int(item.source.rpartition(':')[2])


# --- one row at a time -----------------------------------------------------------------------


def rows(items: list[Item], *, supervised: bool, with_target: bool) -> list[Problem]:
  """Returns what is wrong with the shape of each row.

  Args:
    items: rows, each a dict.
    supervised: an answer is learnt: the row's last assistant turn, or a target.
    with_target: a target template makes the answer, so rows end with the user's turn.
  """
  found = []
  for item in items:
    line = line_of(item)
    in_messages = _messages(item.row, line)
    if not any(problem.blocks for problem in in_messages):
      in_messages += _last_turn(item.row['messages'], line, supervised, with_target)
    found += in_messages + _tools(item.row.get('tools'), line)
  return found


def _messages(row, line):
  if 'messages' not in row:
    keys = ', '.join(list(row)[:8]) or 'none'
    return [
      Problem(
        'E_MESSAGES_MISSING',
        line,
        'messages',
        f"no key 'messages'; keys: {keys}",
        'give {"messages": [{"role": "user", "content": "..."}], ...}',
      )
    ]
  messages = row['messages']
  if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
    kind = template.kind(messages)
    kind = kind if kind != 'an array' else 'an array with elements that are no objects'
    return [
      Problem(
        'E_MESSAGES_NOT_LIST',
        line,
        'messages',
        f'messages is {kind}',
        'need an array of objects with role and content',
      )
    ]
  if not messages:
    return [
      Problem(
        'E_MESSAGES_EMPTY',
        line,
        'messages',
        'messages is empty',
        'need at least one message, the last of them from the user',
      )
    ]
  found = []
  for index, message in enumerate(messages):
    found += _message(message, line, f'messages[{index}]')
  return found


def _message(message, line, path):
  found = []
  role = message.get('role')
  if role is None:
    found.append(
      Problem(
        'E_ROLE_MISSING',
        line,
        f'{path}.role',
        f'{path} has no role',
        f'name one of {", ".join(ROLES)}',
      )
    )
  elif role not in ROLES:
    found.append(
      Problem(
        'E_ROLE_UNKNOWN',
        line,
        f'{path}.role',
        f'{path} has the role {role!r}',
        f'need one of {", ".join(ROLES)}',
      )
    )
  elif role == 'system':
    found.append(
      Problem(
        'W_ROLE_SYSTEM',
        line,
        f'{path}.role',
        f'{path} has the role system',
        'here it equals developer; the hosted service refuses it',
      )
    )
  calls = message.get('tool_calls')
  found += _tool_calls(calls, line, f'{path}.tool_calls')
  return found + _content(message.get('content'), line, f'{path}.content', optional=bool(calls))


def _content(content, line, path, *, optional):
  if content is not None and not isinstance(content, (str, list)):
    return [
      Problem(
        'E_UNSUPPORTED_PART',
        line,
        path,
        f'{path} is {template.kind(content)}',
        'need a text, or an array of {"type": "text", "text": "..."}',
      )
    ]
  found = []
  for index, part in enumerate(content if isinstance(content, list) else ()):
    kind = part.get('type') if isinstance(part, dict) else template.kind(part)
    if kind != 'text' or not isinstance(part.get('text'), str):
      found.append(
        Problem(
          'E_UNSUPPORTED_PART',
          line,
          f'{path}[{index}]',
          f'{path}[{index}] is not a text part but {kind}',
          'only text is read: {"type": "text", "text": "..."}',
        )
      )
  if not found and not optional and not text_of(content).strip():
    found.append(
      Problem(
        'E_CONTENT_EMPTY', line, path, f'{path} is empty', 'write its text or take the message out'
      )
    )
  return found


def _tool_calls(calls, line, path):
  if calls is None:
    return []
  good = isinstance(calls, list) and all(
    isinstance(call, dict)
    and isinstance(call.get('function'), dict)
    and isinstance(call['function'].get('name'), str)
    for call in calls
  )
  return (
    []
    if good
    else [
      Problem(
        'E_TOOLS_SCHEMA',
        line,
        path,
        f'{path} names no function',
        'need [{"id": "...", "type": "function", "function": '
        '{"name": "...", "arguments": "{...}"}}]',
      )
    ]
  )


def _last_turn(messages, line, supervised, with_target):
  path = f'messages[{len(messages) - 1}].role'
  role = messages[-1].get('role')
  if supervised and not with_target:
    return (
      []
      if role == 'assistant'
      else [
        Problem(
          'E_LAST_ROLE',
          line,
          path,
          f'the last message is from {role}, not assistant',
          'a supervised stage learns the last assistant turn; to learn a field of the row '
          'instead set sft.target, for example "{{ item.solution }}"',
        )
      ]
    )
  if role == 'assistant':
    hint = (
      'rows end with the assistant turn or sft.target makes one: take out one of the two'
      if supervised
      else 'this looks like supervised data: move the answer into a field, '
      'for example reference_answer, that the grader reads, or use the algorithm sft'
    )
    return [Problem('E_ASSISTANT_LAST', line, path, 'the last message is from assistant', hint)]
  if role != 'user':
    return [
      Problem(
        'E_LAST_ROLE',
        line,
        path,
        f'the last message is from {role}, not user',
        'the policy answers a user: end the row with the turn it shall answer',
      )
    ]
  return []


def _tools(tools, line):
  if tools is None:
    return []
  if not isinstance(tools, list):
    return [
      Problem(
        'E_TOOLS_SCHEMA',
        line,
        'tools',
        f'tools is {template.kind(tools)}',
        'need an array of {"type": "function", "function": {...}}',
      )
    ]
  found = []
  for index, tool in enumerate(tools):
    message = _tool(tool)
    if message:
      path = f'tools[{index}]'
      found.append(
        Problem(
          'E_TOOLS_SCHEMA',
          line,
          path,
          f'{path}: {message}',
          'need {"type": "function", "function": {"name": "...", "description": '
          '"...", "parameters": {a JSON Schema}}}',
        )
      )
  return found


def _tool(tool):
  """Returns what is wrong with one tool, or None."""
  function = tool.get('function') if isinstance(tool, dict) else None
  if not isinstance(function, dict) or tool.get('type') != 'function':
    return 'is no function tool'
  name = function.get('name')
  if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z0-9_-]{1,64}', name):
    return f'function.name={name!r}, need 1 to 64 of A-Z a-z 0-9 _ -'
  try:
    jsonschema.Draft202012Validator.check_schema(function.get('parameters', {}))
  except jsonschema.SchemaError as error:
    return f'function.parameters is no JSON Schema: {error.message}'
  return None


# --- rows against each other -----------------------------------------------------------------


def kinds(items: list[Item], fields: frozenset[str]) -> dict[str, str]:
  """Returns for each field the JSON type that most rows have there."""
  found = {}
  for field in fields:
    counts = collections.Counter(
      template.kind(_value(item.row, field))
      for item in items
      if not template.missing(item.row, frozenset({field}))
    )
    if counts:
      found[field] = counts.most_common(1)[0][0]
  return found


def item_fields(
  items: list[Item], fields: frozenset[str], expected: dict[str, str]
) -> list[Problem]:
  """Returns rows that lack a field which is read for every row, or hold another type there.

  Args:
    items: rows.
    fields: paths within the row, 'answer' or 'genes[0].name'.
    expected: what `kinds` found over all files.
  """
  found = []
  for item in items:
    line, gone = line_of(item), template.missing(item.row, fields)
    for field in sorted(fields):
      if field in gone:
        found.append(
          Problem(
            'E_ITEM_FIELD_MISSING',
            line,
            f'item.{field}',
            gone[field],
            f'the grader or a target reads item.{field}: add it to these rows, '
            'or correct the name where it is read',
          )
        )
      elif (kind := template.kind(_value(item.row, field))) != expected[field]:
        found.append(
          Problem(
            'E_ITEM_FIELD_TYPE',
            line,
            f'item.{field}',
            f'it is {kind}, in most rows {expected[field]}',
            'give it the same type in every row',
          )
        )
  return found


def suspicions(items: list[Item], fields: frozenset[str]) -> list[Problem]:
  """Returns warnings: equal prompts, an answer that stands in its prompt or dominates."""
  found, first = [], {}
  for item in items:
    key, line = prompt_key(item), line_of(item)
    if key in first:
      found.append(
        Problem(
          'W_DUPLICATE_PROMPT',
          line,
          'messages',
          f'the same prompt as line {first[key]}',
          'keep one of them',
        )
      )
    first.setdefault(key, line)
    text = ' '.join(
      text_of(message.get('content'))
      for message in item.row['messages']
      if message['role'] != 'assistant'
    )
    for field in sorted(fields):
      value = _value(item.row, field)
      if (
        isinstance(value, str)
        and len(value) >= 4
        and not value.isdigit()
        and re.search(rf'(?<!\w){re.escape(value)}(?!\w)', text)
      ):
        found.append(
          Problem(
            'W_ANSWER_LEAK',
            line,
            f'item.{field}',
            f'its value {value[:40]!r} stands in the prompt',
            'take it out of the prompt if it is the answer',
          )
        )
  return found + _skew(items, fields)


def _skew(items, fields):
  found = []
  for field in sorted(fields):
    values = [json.dumps(_value(item.row, field)) for item in items]
    if len(values) < 20:
      continue
    value, count = collections.Counter(values).most_common(1)[0]
    if count > len(values) / 2:
      found.append(
        Problem(
          'W_LABEL_SKEW',
          0,
          f'item.{field}',
          f'{value[:40]} in {count} of {len(values)} rows',
          'always answering that is a good policy here: balance the rows',
        )
      )
  return found


def overlap(train: list[Item], validation: list[Item]) -> list[Problem]:
  """Returns warnings for held-out rows whose prompt is trained on too."""
  seen = {prompt_key(item): item.source for item in reversed(train)}
  return [
    Problem(
      'W_TRAIN_VAL_OVERLAP',
      line_of(item),
      'messages',
      f'the same prompt as {seen[prompt_key(item)]}',
      'take it out of one file: held-out figures would flatter',
    )
    for item in validation
    if prompt_key(item) in seen
  ]


def prompt_key(item: Item) -> str:
  """Returns what makes two prompts the same: roles, texts and tools, without the answer."""
  messages = item.row['messages']
  messages = messages[:-1] if messages[-1]['role'] == 'assistant' else messages
  turns = [
    (
      'system' if one['role'] == 'developer' else one['role'],
      text_of(one.get('content')).strip(),
      one.get('tool_calls'),
    )
    for one in messages
  ]
  return json.dumps([turns, item.row.get('tools') or None], sort_keys=True)


def _value(row, path) -> Any:
  """Returns what a path leads to; None where it leads nowhere."""
  for name, index in _STEP.findall(path):
    try:
      row = row[name] if name else row[int(index)]
    except (KeyError, IndexError, TypeError):
      return None
  return row


# --- for people ------------------------------------------------------------------------------


def report(source: str, problems: list[Problem]) -> list[str]:
  """Returns one text for each kind of problem: code, rows, an example, the way out.

  Five hundred broken rows stay one line, and every kind is named.
  """
  groups = collections.defaultdict(list)
  for problem in problems:
    groups[problem.code, re.sub(r'\[\d+\]', '[]', problem.path), problem.hint].append(problem)
  texts = []
  for (code, _, hint), group in groups.items():
    lines = sorted({problem.line for problem in group if problem.line})
    shown = ', '.join(map(str, lines[:5])) + (f' and {len(lines) - 5} more' if lines[5:] else '')
    where = f' line{"s" * (len(lines) > 1)} {shown}' if lines else ''
    first = min(group, key=lambda problem: problem.line)
    what = first.message
    if first.path.startswith('item.'):
      what = f'{first.path}: {what}'
    if len(lines) > 1:
      what = f'line {first.line}: {what}'
    texts.append(f'{source}{where}: {code}: {what}; {hint}')
  return texts
