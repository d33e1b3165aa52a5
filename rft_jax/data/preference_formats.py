"""Preferences from files: pairs of answers, or single answers marked good or bad, in common forms.

Every form becomes one: a row with `messages` (the prompt) and either `chosen` and `rejected`, or
`completion` and `label` (true: a good answer), where the answers are messages of the assistant.
All other keys stay. The form of a file is known by the keys of its rows, and is one for all rows:

  ours            {"messages": [...], "chosen": A, "rejected": A}, A a text or message(s)
  TRL, explicit   {"prompt": text or [...], "chosen": A, "rejected": A}; A may repeat the prompt
  TRL, implicit   {"chosen": [...], "rejected": [...]}: the prompt is what they begin with alike
  OpenAI          {"input": {"messages": [...]}, "preferred_output": A, "non_preferred_output": A}
  sharegpt        {"conversations": [{"from": "human", "value": text}], "chosen": {...}, ...}
  alpaca          {"instruction": text, "input": text, "chosen": text, "rejected": text}
  single answers  {"prompt" or "messages": ..., "completion": A, "label": true or false}
  single, whole   {"messages": [..., the answer], "label": true or false}

A prompt that is a text becomes one message of the user; it is rendered by the chat template, as
every prompt here is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from rft_jax.data.templates import text_of
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


class Form(NamedTuple):
  """One way to write preferences down."""

  name: str
  kind: str  # 'pairs' or 'answers'
  keys: frozenset[str]  # a row with all of them is in this form
  prompt: str  # the key of the prompt
  read: Callable[[dict], dict[str, Any]]  # row -> {'messages': ..., and 'tools'}
  absent: frozenset[str] = frozenset()  # and with none of these


class Broken(ValueError):
  """A row that cannot be read; path, message and way out."""


def _chat(row, key):
  prompt = row[key]
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  return {'messages': prompt}


def _implicit(row):
  """The prompt is the longest beginning that both conversations have."""
  for key in ('chosen', 'rejected'):
    if not is_messages(row[key]):
      raise Broken(
        key,
        f'{key} is {template.kind(row[key])}, and the row has no prompt',
        'need the whole conversation as an array of messages, or a key "prompt"',
      )
  begins, both = 0, list(zip(row['chosen'], row['rejected']))
  while begins < len(both) and same(*both[begins]):
    begins += 1
  begins = min(begins, len(row['chosen']) - 1, len(row['rejected']) - 1)
  if begins < 1:
    raise Broken(
      'chosen',
      'chosen and rejected do not begin with the same messages',
      'need the same prompt in both, or a key "prompt"',
    )
  return {'messages': row['chosen'][:begins]}


def _openai(row):
  given = row['input']
  if not isinstance(given, dict) or 'messages' not in given:
    raise Broken(
      'input', f'input is {template.kind(given)} without messages', 'need {"messages": [...]}'
    )
  return {key: given[key] for key in ('messages', 'tools') if key in given}


def _sharegpt(row):
  turns = row['conversations']
  if not is_turns(turns):
    raise Broken(
      'conversations',
      f'conversations is {template.kind(turns)}, not turns',
      'need an array of {"from": "human" or "gpt", "value": "..."}',
    )
  messages = [turn(one) for one in turns]
  if isinstance(row.get('system'), str) and row['system'].strip():
    messages.insert(0, {'role': 'system', 'content': row['system']})
  return {'messages': messages}


def _alpaca(row):
  parts = [row.get('instruction'), row.get('input')]
  texts = [part for part in parts if isinstance(part, str) and part.strip()]
  messages = [{'role': 'user', 'content': '\n'.join(texts)}]
  history = row.get('history') or []
  if not (
    isinstance(history, list) and all(isinstance(one, list) and len(one) == 2 for one in history)
  ):
    raise Broken('history', 'history is not made of pairs', 'need [["asked", "answered"], ...]')
  for asked, answered in reversed(history):
    messages[:0] = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answered}]
  if isinstance(row.get('system'), str) and row['system'].strip():
    messages.insert(0, {'role': 'system', 'content': row['system']})
  return {'messages': messages}


def _last_turn(row):
  if not is_messages(row['messages']) or len(row['messages']) < 2:
    raise Broken(
      'messages',
      'messages holds no prompt with an answer behind it',
      'need the prompt and, last, the assistant\'s message, or a key "completion"',
    )
  return {'messages': row['messages'][:-1]}


def _keys(*names):
  return frozenset(names)


_PAIR = ('chosen', 'rejected')
FORMS = (
  Form(
    "OpenAI's preferred_output and non_preferred_output",
    'pairs',
    _keys('input', 'preferred_output', 'non_preferred_output'),
    'input.messages',
    _openai,
  ),
  Form(
    'sharegpt conversations with chosen and rejected',
    'pairs',
    _keys('conversations', *_PAIR),
    'conversations',
    _sharegpt,
  ),
  Form(
    'alpaca instruction with chosen and rejected',
    'pairs',
    _keys('instruction', *_PAIR),
    'instruction',
    _alpaca,
    absent=_keys('messages', 'prompt'),
  ),
  Form(
    'prompt with chosen and rejected',
    'pairs',
    _keys('prompt', *_PAIR),
    'prompt',
    lambda row: _chat(row, 'prompt'),
  ),
  Form(
    'messages with chosen and rejected',
    'pairs',
    _keys('messages', *_PAIR),
    'messages',
    lambda row: _chat(row, 'messages'),
  ),
  Form('two conversations that begin alike', 'pairs', _keys(*_PAIR), 'chosen', _implicit),
  Form(
    'prompt with completion and label',
    'answers',
    _keys('prompt', 'completion', 'label'),
    'prompt',
    lambda row: _chat(row, 'prompt'),
  ),
  Form(
    'messages with completion and label',
    'answers',
    _keys('messages', 'completion', 'label'),
    'messages',
    lambda row: _chat(row, 'messages'),
  ),
  Form(
    'messages that end with the answer, and label',
    'answers',
    _keys('messages', 'label'),
    'messages',
    _last_turn,
    absent=_keys('completion'),
  ),
)
OURS = FORMS[4], FORMS[7]  # nothing to be told about these


def form_of(row: dict) -> Form | None:
  """Returns the form that a row is in; None: it holds no preference."""
  return next(
    (form for form in FORMS if form.keys <= row.keys() and not form.absent & row.keys()), None
  )


# ------------------------------------------------------------------ messages


def turn(given):
  """Returns a sharegpt turn as a message; a role that is unknown stays, to be refused by name."""
  return {'role': _ROLES.get(given.get('from'), given.get('from')), 'content': given.get('value')}


def is_messages(value):
  return isinstance(value, list) and value and all(isinstance(one, dict) for one in value)


def is_turns(value):
  return is_messages(value) and all('from' in one and 'value' in one for one in value)


def is_text(content):
  return (
    content is None
    or isinstance(content, str)
    or isinstance(content, list)
    and all(isinstance(part, dict) and isinstance(part.get('text'), str) for part in content)
  )


def same(one, other):
  """Returns whether two messages say the same; of what is no message nothing is the same."""
  if not (isinstance(one, dict) and isinstance(other, dict)):
    return False
  contents = [message.get('content') for message in (one, other)]
  return (
    all(map(is_text, contents))
    and len({text_of(c).strip() for c in contents}) == 1
    and (one.get('role'), one.get('tool_calls')) == (other.get('role'), other.get('tool_calls'))
  )
