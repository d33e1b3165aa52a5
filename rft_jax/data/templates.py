"""Chat templates: which one a tokenizer uses, our defaults, and how messages are put for one."""

import datetime
import json
import pathlib
import re

# The stated default for a tokenizer that brings no template. If it knows ChatML's two tokens:
CHATML_TEMPLATE = (
  '{% for message in messages %}'
  "<|im_start|>{{ 'system' if message.role == 'developer' else message.role }}{{ '\\n' }}"
  "{{ message.content }}<|im_end|>{{ '\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
# Otherwise text without roles: BOS if there is one, then each content on a line of its own. An
# answer ends in EOS. Base models see an ordinary document.
PLAIN_TEMPLATE = (
  '{{ bos_token }}{% for message in messages %}'
  "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
  '{% endfor %}'
)


def choose(tokenizer, source: pathlib.Path, name: str) -> tuple[str, str]:
  """Returns (Jinja text, its name for people) for ChatConfig.template = name.

  Raises:
    ValueError: name is no file, or of several templates none is called default.
  """
  if name not in ('', 'default'):
    path = pathlib.Path(name)
    if not path.is_file():
      raise ValueError(f'chat.template={name!r}: no such file')
    return path.read_text(encoding='utf-8'), f'the chat template {path}'
  own = tokenizer.chat_template
  if own and not name:
    if isinstance(own, dict):
      if 'default' not in own:
        raise ValueError(
          f'{source}: chat templates {sorted(own)}, none named default; set chat.template to a file'
        )
      own = own['default']
    return own, f'the chat template of {source.name}'
  if {'<|im_start|>', '<|im_end|>'} <= set(tokenizer.get_vocab()):
    return CHATML_TEMPLATE, 'the default ChatML template'
  return PLAIN_TEMPLATE, 'the default plain template'


def at_date(template: str, date: str) -> str:
  """Returns the template with its calls of strftime_now replaced by their value on that day."""
  day = datetime.date.fromisoformat(date)
  return re.sub(
    r'strftime_now\(\s*(["\'])(.*?)\1\s*\)', lambda call: repr(day.strftime(call[2])), template
  )


def is_date(text: str) -> bool:
  """Returns whether text is a date, YYYY-MM-DD."""
  try:
    return bool(datetime.date.fromisoformat(text))
  except (TypeError, ValueError):
    return False


def spelt(message: dict, roles: dict[str, str]) -> dict:
  """Returns a message as templates expect it: text content, arguments as an object."""
  result = {**message, 'content': text_of(message.get('content'))}
  result['role'] = roles.get(message['role'], message['role'])
  if message.get('tool_calls'):
    result['tool_calls'] = [_with_arguments(call) for call in message['tool_calls']]
  return result


def text_of(content) -> str:
  """Returns a message's content as one text: parts are joined with nothing between them."""
  if isinstance(content, str) or not content:
    return content or ''
  return ''.join(part['text'] for part in content)


def _with_arguments(call):
  """Returns a tool call with its arguments as an object: templates write them as JSON."""
  function = dict(call.get('function', call))
  if isinstance(function.get('arguments'), str):
    try:
      function['arguments'] = json.loads(function['arguments'])
    except ValueError:
      pass  # not JSON: the template gets the text as it is
  return {**call, 'function': function}
