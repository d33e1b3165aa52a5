"""Chat templates: the one of a tokenizer, the defaults, and applying it to messages and tools."""

import collections
import dataclasses
import datetime
import json
import pathlib
import re
from typing import Any

from rft_jax.types import Message

# The default for a tokenizer without a template. If it has ChatML's two tokens:
CHATML_TEMPLATE = (
  '{% for message in messages %}'
  "<|im_start|>{{ 'system' if message.role == 'developer' else message.role }}{{ '\\n' }}"
  "{{ message.content }}<|im_end|>{{ '\\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
# Otherwise text without roles: BOS if there is one, then the content of each message on a line of
# its own. An answer ends in EOS. To a base model this is an ordinary document.
PLAIN_TEMPLATE = (
  '{{ bos_token }}{% for message in messages %}'
  "{{ message.content }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
  '{% endfor %}'
)
PROBE = 'a probe of 7 words, nothing more'  # content by which a template's output is recognised


class RenderError(ValueError):
  """A template fails, or its output lacks content of the messages. Names message and template."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
  """A chat template with everything that its output depends on. Built by `load`."""

  tokenizer: Any  # a transformers fast tokenizer
  jinja: str
  name: str  # where the template comes from, for error messages
  kwargs: dict  # further variables of the template, such as enable_thinking
  reasoning: tuple[str, str] | None  # the markers around the reasoning
  roles: dict[str, str]  # the role names that the template uses for 'developer' and 'system'

  def render(
    self, messages: list[Message], tools: list[dict] | None = None, *, generation_prompt: bool
  ) -> str:
    """Returns the text of messages and tools; `tools=[]` is the same as None.

    Raises:
      RenderError: the template fails, or leaves out the content of a message or a tool's name.
    """
    template_messages = [_for_template(message, self.roles) for message in messages]
    text = self.apply(template_messages, tools, generation_prompt=generation_prompt)
    occurrences: collections.Counter[str] = collections.Counter()
    for index, message in enumerate(template_messages):
      calls = [call.get('function', call)['name'] for call in message.get('tool_calls') or ()]
      for piece in (*self._pieces(message['content']), *calls):
        occurrences[piece] += 1
        if text.count(piece) < occurrences[piece]:
          raise RenderError(
            f'{self.name} leaves out messages[{index}] '
            f'({message["role"]}): {shortened(piece)!r} is not in the prompt'
          )
    for index, tool in enumerate(tools or ()):
      if tool['function']['name'] not in text:
        raise RenderError(f'{self.name} leaves out tools[{index}] ({tool["function"]["name"]})')
    return text

  def apply(self, messages, tools=None, *, generation_prompt: bool) -> str:
    """Returns the text of messages as they are, unchecked. Raises RenderError as `render` does."""
    try:
      return self.tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=self.jinja,
        tokenize=False,
        add_generation_prompt=generation_prompt,
        **self.kwargs,
      )
    except Exception as error:  # a template is user code: it may raise anything
      raise RenderError(f'{self.name} fails on this row: {error}') from error

  def generation_prompt(self) -> str:
    """Returns what add_generation_prompt appends to a conversation."""
    messages = [{'role': 'user', 'content': PROBE}]
    without = self.apply(messages, generation_prompt=False)
    return self.apply(messages, generation_prompt=True).removeprefix(without)

  def turn_end(self) -> str:
    """Returns what the template writes after the content of the last assistant turn."""
    messages = [{'role': 'user', 'content': 'go'}, {'role': 'assistant', 'content': PROBE}]
    return self.apply(messages, generation_prompt=False).rpartition(PROBE)[2]

  def _pieces(self, content):
    """Returns the parts of content between reasoning markers, all of which must be rendered."""
    pieces = [content]
    for marker in self.reasoning or ():
      pieces = [part for piece in pieces for part in piece.split(marker)]
    return [piece.strip() for piece in pieces if piece.strip()]


def load(
  tokenizer, source: pathlib.Path, *, template: str, date: str, kwargs: dict, reasoning
) -> ChatTemplate:
  """Returns the ChatTemplate of a tokenizer read from the directory `source`.

  Args:
    template: as ChatConfig.template.
    date: YYYY-MM-DD, the value of strftime_now in the template.
    kwargs, reasoning: as the fields of ChatTemplate.

  Raises:
    ValueError: template is no file, or of several templates none is called default.
  """
  jinja, name = _choose(tokenizer, source, template)
  chat_template = ChatTemplate(
    tokenizer=tokenizer,
    jinja=_with_fixed_date(jinja, date),
    name=name,
    kwargs=dict(kwargs),
    reasoning=reasoning,
    roles={},
  )
  return dataclasses.replace(chat_template, roles=_role_names(chat_template))


def is_date(text: str) -> bool:
  """Returns whether text is a date, YYYY-MM-DD."""
  try:
    return bool(datetime.date.fromisoformat(text))
  except (TypeError, ValueError):
    return False


def text_of(content) -> str:
  """Returns a message's content as one text: text parts are concatenated."""
  if isinstance(content, str) or not content:
    return content or ''
  return ''.join(part['text'] for part in content)


def shortened(text: str, limit: int = 60) -> str:
  """Returns at most the first `limit` characters of text, for error messages."""
  return text if len(text) <= limit else text[:limit] + '...'


def _choose(tokenizer, source, template):
  """Returns (Jinja text, its name for error messages) for ChatConfig.template."""
  if template not in ('', 'default'):
    path = pathlib.Path(template)
    if not path.is_file():
      raise ValueError(f'chat.template={template!r}: no such file')
    return path.read_text(encoding='utf-8'), f'the chat template {path}'
  own = tokenizer.chat_template
  if own and not template:
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


def _with_fixed_date(jinja: str, date: str) -> str:
  """Returns the template with its calls of strftime_now replaced by their value on that date."""
  day = datetime.date.fromisoformat(date)
  return re.sub(
    r'strftime_now\(\s*(["\'])(.*?)\1\s*\)', lambda call: repr(day.strftime(call[2])), jinja
  )


def _role_names(chat_template) -> dict[str, str]:
  """Returns the role name to use for 'developer' and 'system', which are one role here.

  A template that renders only one of the two names gets that one for both.
  """

  def renders(role):
    messages = [{'role': role, 'content': PROBE}, {'role': 'user', 'content': 'go'}]
    try:
      return PROBE in chat_template.apply(messages, generation_prompt=True)
    except RenderError:
      return False

  rendered = {role for role in ('developer', 'system') if renders(role)}
  other = {'developer': 'system', 'system': 'developer'}
  return {
    role: role if role in rendered or other[role] not in rendered else other[role] for role in other
  }


def _for_template(message: Message, roles: dict[str, str]) -> dict:
  """Returns a message as templates expect it: content as text, arguments as an object."""
  result: dict[str, Any] = {**message, 'content': text_of(message.get('content'))}
  result['role'] = roles.get(message['role'], message['role'])
  if message.get('tool_calls'):
    result['tool_calls'] = [_with_arguments(call) for call in message['tool_calls']]
  return result


def _with_arguments(call):
  """Returns a tool call with its arguments as an object, which templates write as JSON."""
  function = dict(call.get('function', call))
  if isinstance(function.get('arguments'), str):
    try:
      function['arguments'] = json.loads(function['arguments'])
    except ValueError:
      pass  # not JSON: the template gets the text unchanged
  return {**call, 'function': function}
