"""Preference dataset formats: pairs (chosen, rejected) and single answers (completion, label).

Every format is converted to one: a row with `messages` (the prompt) and either `chosen` and
`rejected`, or `completion` and `label` (true: a good answer), where the answers are assistant
messages. All other keys stay. The format is recognised by the keys of the rows, and is the same for
all rows of a file:

  ours            {"messages": [...], "chosen": A, "rejected": A}, A a text or message(s)
  TRL, explicit   {"prompt": text or [...], "chosen": A, "rejected": A}; A may repeat the prompt
  TRL, implicit   {"chosen": [...], "rejected": [...]}: the prompt is their longest common prefix
  OpenAI          {"input": {"messages": [...]}, "preferred_output": A, "non_preferred_output": A}
  sharegpt        {"conversations": [{"from": "human", "value": text}], "chosen": {...}, ...}
  alpaca          {"instruction": text, "input": text, "chosen": text, "rejected": text}
  single answers  {"prompt" or "messages": ..., "completion": A, "label": true or false}
  single, whole   {"messages": [..., the answer], "label": true or false}

A prompt that is a text becomes one user message; it is rendered by the chat template like every
other prompt.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rft_jax.data.chat_templates import text_of
from rft_jax.graders import template

_ROLES = {
  'human': 'user',
  'user': 'user',
  'gpt': 'assistant',
  'assistant': 'assistant',
  'system': 'system',
  'observation': 'tool',
  'tool': 'tool',
}


class PreferenceFormat(NamedTuple):
  """One way of writing preferences as JSON."""

  name: str
  kind: str  # 'pairs' or 'answers'
  keys: frozenset[str]  # a row with all of them has this format
  prompt: str  # the key of the prompt
  read_prompt: Callable[[dict], dict[str, Any]]  # row -> {'messages': ..., and 'tools'}
  absent: frozenset[str] = frozenset()  # and with none of these


class FormatError(ValueError):
  """A row that cannot be read; args are its path, the message and how to repair it."""


def _prompt_from(row, key):
  prompt = row[key]
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  return {'messages': prompt}


def _implicit_prompt(row):
  """Returns the longest common prefix of the two conversations."""
  for key in ('chosen', 'rejected'):
    if not is_messages(row[key]):
      raise FormatError(
        key,
        f'{key} is {template.json_type(row[key])}, and the row has no prompt',
        'need the whole conversation as an array of messages, or a key "prompt"',
      )
  length, turns = 0, list(zip(row['chosen'], row['rejected']))
  while length < len(turns) and same_message(*turns[length]):
    length += 1
  length = min(length, len(row['chosen']) - 1, len(row['rejected']) - 1)
  if length < 1:
    raise FormatError(
      'chosen',
      'chosen and rejected do not begin with the same messages',
      'need the same prompt in both, or a key "prompt"',
    )
  return {'messages': row['chosen'][:length]}


def _openai_prompt(row):
  value = row['input']
  if not isinstance(value, dict) or 'messages' not in value:
    raise FormatError(
      'input', f'input is {template.json_type(value)} without messages', 'need {"messages": [...]}'
    )
  return {key: value[key] for key in ('messages', 'tools') if key in value}


def _sharegpt_prompt(row):
  turns = row['conversations']
  if not (is_messages(turns) and all('from' in turn and 'value' in turn for turn in turns)):
    raise FormatError(
      'conversations',
      f'conversations is {template.json_type(turns)}, not turns',
      'need an array of {"from": "human" or "gpt", "value": "..."}',
    )
  messages = [message_of_turn(turn) for turn in turns]
  return {'messages': [*_system_message(row), *messages]}


def _alpaca_prompt(row):
  parts = [row.get('instruction'), row.get('input')]
  texts = [part for part in parts if isinstance(part, str) and part.strip()]
  messages = [{'role': 'user', 'content': '\n'.join(texts)}]
  history = row.get('history') or []
  if not (
    isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
  ):
    raise FormatError(
      'history', 'history is not an array of pairs', 'need [["question", "answer"], ...]'
    )
  for question, answer in reversed(history):
    messages[:0] = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
  return {'messages': [*_system_message(row), *messages]}


def _system_message(row):
  """Returns [the system message] of a row with a text `system`, else []."""
  if isinstance(row.get('system'), str) and row['system'].strip():
    return [{'role': 'system', 'content': row['system']}]
  return []


def _prompt_without_answer(row):
  if not is_messages(row['messages']) or len(row['messages']) < 2:
    raise FormatError(
      'messages',
      'messages does not hold a prompt followed by an answer',
      'need the prompt and, last, the assistant\'s message, or a key "completion"',
    )
  return {'messages': row['messages'][:-1]}


_PAIR = ('chosen', 'rejected')
FORMATS = (
  PreferenceFormat(
    "OpenAI's preferred_output and non_preferred_output",
    'pairs',
    frozenset({'input', 'preferred_output', 'non_preferred_output'}),
    'input.messages',
    _openai_prompt,
  ),
  PreferenceFormat(
    'sharegpt conversations with chosen and rejected',
    'pairs',
    frozenset({'conversations', *_PAIR}),
    'conversations',
    _sharegpt_prompt,
  ),
  PreferenceFormat(
    'alpaca instruction with chosen and rejected',
    'pairs',
    frozenset({'instruction', *_PAIR}),
    'instruction',
    _alpaca_prompt,
    absent=frozenset({'messages', 'prompt'}),
  ),
  PreferenceFormat(
    'prompt with chosen and rejected',
    'pairs',
    frozenset({'prompt', *_PAIR}),
    'prompt',
    lambda row: _prompt_from(row, 'prompt'),
  ),
  PreferenceFormat(
    'messages with chosen and rejected',
    'pairs',
    frozenset({'messages', *_PAIR}),
    'messages',
    lambda row: _prompt_from(row, 'messages'),
  ),
  PreferenceFormat(
    'two conversations with a common prefix', 'pairs', frozenset(_PAIR), 'chosen', _implicit_prompt
  ),
  PreferenceFormat(
    'prompt with completion and label',
    'answers',
    frozenset({'prompt', 'completion', 'label'}),
    'prompt',
    lambda row: _prompt_from(row, 'prompt'),
  ),
  PreferenceFormat(
    'messages with completion and label',
    'answers',
    frozenset({'messages', 'completion', 'label'}),
    'messages',
    lambda row: _prompt_from(row, 'messages'),
  ),
  PreferenceFormat(
    'messages that end with the answer, and label',
    'answers',
    frozenset({'messages', 'label'}),
    'messages',
    _prompt_without_answer,
    absent=frozenset({'completion'}),
  ),
)
OWN_FORMATS = FORMATS[4], FORMATS[7]  # read without a warning


def format_of(row: dict) -> PreferenceFormat | None:
  """Returns the format of a row; None: it holds no preference."""
  return next(
    (
      row_format
      for row_format in FORMATS
      if row_format.keys <= row.keys() and not row_format.absent & row.keys()
    ),
    None,
  )


# ------------------------------------------------------------------ messages


def message_of_turn(turn: dict) -> dict:
  """Returns a sharegpt turn as a message; an unknown role stays, and is refused later by name."""
  role: Any = turn.get('from')
  return {'role': _ROLES.get(role, role), 'content': turn.get('value')}


def is_messages(value):
  """Returns whether value is a list of at least one object."""
  return isinstance(value, list) and value and all(isinstance(item, dict) for item in value)


def is_text_content(content):
  """Returns whether a message's content is absent, a text, or a list of text parts."""
  return (
    content is None
    or isinstance(content, str)
    or isinstance(content, list)
    and all(isinstance(part, dict) and isinstance(part.get('text'), str) for part in content)
  )


def same_message(first, second):
  """Returns whether two messages are equal; False if one of the two is not a message of text."""
  if not (isinstance(first, dict) and isinstance(second, dict)):
    return False
  contents = [message.get('content') for message in (first, second)]
  return (
    all(map(is_text_content, contents))
    and len({text_of(content).strip() for content in contents}) == 1
    and all(first.get(key) == second.get(key) for key in ('role', 'tool_calls'))
  )
