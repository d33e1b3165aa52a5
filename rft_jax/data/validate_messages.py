"""Validates the messages of each row: roles, content, and who has the last turn."""

from rft_jax.data.chat_templates import text_of
from rft_jax.data.problems import Problem, line_of
from rft_jax.data.validate_tools import check_tool_calls, check_tools
from rft_jax.graders import template
from rft_jax.types import Item

ROLES = ('developer', 'system', 'user', 'assistant', 'tool')


def check_rows(items: list[Item], *, supervised: bool, with_target: bool) -> list[Problem]:
  """Returns the problems of the messages and tools of each row.

  Args:
    items: rows, each a dict.
    supervised: a target is trained on: the row's last assistant turn, or that of a template.
    with_target: a target template makes the target, so rows end with the user's turn.
  """
  problems = []
  for item in items:
    line = line_of(item)
    message_problems = _check_messages(item.row, line)
    if not any(problem.blocks for problem in message_problems):
      message_problems += _check_last_turn(item.row['messages'], line, supervised, with_target)
    problems += message_problems + check_tools(item.row.get('tools'), line)
  return problems


def _check_messages(row, line):
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
  if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
    json_type = template.json_type(messages)
    if json_type == 'an array':
      json_type = 'an array with elements that are not objects'
    return [
      Problem(
        'E_MESSAGES_NOT_LIST',
        line,
        'messages',
        f'messages is {json_type}',
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
  problems = []
  for index, message in enumerate(messages):
    path, content, calls = f'messages[{index}]', message.get('content'), message.get('tool_calls')
    problems += _check_role(message, line, path)
    problems += check_tool_calls(calls, line, f'{path}.tool_calls')
    problems += _check_content(content, line, f'{path}.content', optional=bool(calls))
  return problems


def _check_role(message, line, path):
  role = message.get('role')
  if role is None:
    return [
      Problem(
        'E_ROLE_MISSING',
        line,
        f'{path}.role',
        f'{path} has no role',
        f'name one of {", ".join(ROLES)}',
      )
    ]
  if role not in ROLES:
    return [
      Problem(
        'E_ROLE_UNKNOWN',
        line,
        f'{path}.role',
        f'{path} has the role {role!r}',
        f'need one of {", ".join(ROLES)}',
      )
    ]
  if role == 'system':
    return [
      Problem(
        'W_ROLE_SYSTEM',
        line,
        f'{path}.role',
        f'{path} has the role system',
        'it is treated as developer; the hosted service refuses it',
      )
    ]
  return []


def _check_content(content, line, path, *, optional):
  if content is not None and not isinstance(content, (str, list)):
    return [
      Problem(
        'E_UNSUPPORTED_PART',
        line,
        path,
        f'{path} is {template.json_type(content)}',
        'need a text, or an array of {"type": "text", "text": "..."}',
      )
    ]
  problems = []
  for index, part in enumerate(content if isinstance(content, list) else ()):
    part_type = part.get('type') if isinstance(part, dict) else template.json_type(part)
    if part_type != 'text' or not isinstance(part.get('text'), str):
      problems.append(
        Problem(
          'E_UNSUPPORTED_PART',
          line,
          f'{path}[{index}]',
          f'{path}[{index}] is not a text part but {part_type}',
          'only text is read: {"type": "text", "text": "..."}',
        )
      )
  if not problems and not optional and not text_of(content).strip():
    problems.append(
      Problem(
        'E_CONTENT_EMPTY', line, path, f'{path} is empty', 'write its text or remove the message'
      )
    )
  return problems


def _check_last_turn(messages, line, supervised, with_target):
  path = f'messages[{len(messages) - 1}].role'
  role = messages[-1].get('role')
  if supervised and not with_target:
    if role == 'assistant':
      return []
    return [
      Problem(
        'E_LAST_ROLE',
        line,
        path,
        f'the last message is from {role}, not assistant',
        'a supervised stage trains on the last assistant turn; to train on a field of the row '
        'instead set sft.target, for example "{{ item.solution }}"',
      )
    ]
  if role == 'assistant':
    hint = (
      'the target is either the last assistant turn or made by sft.target: remove one of the two'
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
        'the policy answers a user: end the row with the turn that it should answer',
      )
    ]
  return []
