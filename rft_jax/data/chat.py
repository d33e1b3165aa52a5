"""Messages to token ids and back: the one room that knows tokenizer and chat template.

A chat is rendered once and encoded once, without special tokens of the tokenizer's own: what the
template writes is what the model sees, so no BOS is ever doubled. Sampled ids are decoded for
graders and people, and never encoded again.
"""

import bisect
import collections
import dataclasses
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

from rft_jax.data import templates, tokenizers
from rft_jax.types import Message

_PROBE = 'a probe of 7 words, nothing more'


@dataclasses.dataclass(slots=True, kw_only=True)
class ChatConfig:
  """How conversations become text. Slots: a misspelt field is an error, not a new field."""

  # The markers round the reasoning, ('<think>', '</think>') for most models: graders see what
  # follows the second. None: the whole completion is the answer.
  reasoning: tuple | None = None
  template_kwargs: dict = dataclasses.field(default_factory=dict)  # such as enable_thinking
  template: str = ''  # '': the tokenizer's own; 'default': ours; else the path of a Jinja file
  date: str = '2025-01-01'  # what a template that asks for today is told, so that a run replays

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    markers = self.reasoning
    good_markers = markers is None or (
      isinstance(markers, (tuple, list))
      and len(markers) == 2
      and all(isinstance(marker, str) and marker.strip() for marker in markers)
      and markers[0] != markers[1]
    )
    checks = (
      (
        good_markers,
        f"reasoning={markers!r}, need None or two different texts: ('<think>', '</think>')",
      ),
      (
        isinstance(self.template_kwargs, dict),
        f'template_kwargs={self.template_kwargs!r}, need a dict of template variables',
      ),
      (
        self.template in ('', 'default') or pathlib.Path(self.template).is_file(),
        f"template={self.template!r}, need '', 'default' or the path of a Jinja file",
      ),
      (templates.is_date(self.date), f'date={self.date!r}, need YYYY-MM-DD'),
    )
    return [problem for good, problem in checks if not good]


class Answer(NamedTuple):
  """A completion taken apart."""

  reasoning: str | None  # None without markers
  output_text: str | None  # what graders see; None: the reasoning never ended
  reasoning_tokens: int  # up to and with the end marker, or all if there is none


class RenderError(ValueError):
  """The template does not say what the messages say. The text names message and template."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
  """A tokenizer with its chat template. Built by `make`; nothing in it changes."""

  tokenizer: Any  # a transformers fast tokenizer
  template: str  # Jinja
  template_name: str  # where the template comes from, for messages to people
  template_kwargs: dict
  reasoning: tuple[str, str] | None
  roles: dict[str, str]  # how 'developer' and 'system' are spelt for this template
  generation_prompt: str  # what add_generation_prompt appends to a conversation
  stop_ids: tuple[int, ...]  # every id that ends a turn, ascending
  eos_id: int  # the one appended to a target whose template ends turns without any
  vocabulary_size: int  # highest id + 1; ids beyond it are padding of the model's tables
  adds_space: bool  # sentencepiece's habit: a text begins with a space that is not in it
  hidden_ids: frozenset[int]  # special tokens that decode to nothing
  tokenizer_sha256: str

  def prompt_text(self, messages: list[Message], tools: list[dict] | None = None) -> str:
    """Returns the rendered prompt, generation prompt included.

    `tools=[]` is the same as None. Raises RenderError as `prompt_ids` does.
    """
    return self._render(messages, tools, generation=True)

  def prompt_ids(self, messages: list[Message], tools: list[dict] | None = None) -> list[int]:
    """Returns the ids of the rendered prompt, generation prompt included.

    Raises:
      RenderError: the template fails, or leaves out the content of a message or a tool's name.
    """
    return self.encode([self.prompt_text(messages, tools)])[0]

  def supervised_text(self, messages, tools=None, target: str | None = None) -> tuple[str, str]:
    """Returns (prompt, rest of the rendered transcript), both text.

    The answer to learn is `target`, or the last assistant turn where target is None.

    Raises:
      RenderError: no answer, a template that leaves something out, or a prompt that is not a
        literal prefix of the transcript.
    """
    if target is None:
      if not messages or messages[-1].get('role') != 'assistant':
        raise RenderError('no answer to learn: neither a target nor an assistant turn at the end')
      *messages, answer = messages
    else:
      answer = {'role': 'assistant', 'content': target}
    prompt = self.prompt_text(messages, tools)
    transcript = self._render([*messages, answer], tools, generation=False)
    if not transcript.startswith(prompt):
      raise RenderError(self._prefix_message(prompt, transcript))
    return prompt, transcript[len(prompt) :]

  def supervised_ids(self, messages, tools=None, target=None) -> tuple[list[int], list[int]]:
    """Returns (prompt ids, completion ids) of an answer to learn; see `supervised_text`.

    The completion is the rest of the transcript up to and with its first stop id. What the
    template writes behind that is dropped; a template that ends a turn without any stop id gets
    the tokenizer's EOS.

    Raises:
      RenderError: as `supervised_text`, or the answer itself contains a stop token.
    """
    prompt, rest = self.supervised_text(messages, tools, target)
    prompt_ids = self.encode([prompt])[0]
    return prompt_ids, self.completion_ids(prompt, prompt_ids, rest)

  def completion_ids(self, prompt: str, prompt_ids: list[int], rest: str) -> list[int]:
    """Returns the ids of `rest`, which follows the prompt, up to and with the end of the turn."""
    ids = self._continue(prompt, prompt_ids, rest)
    end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
    if end is None:  # white space that the template sets between turns is nobody's answer
      return [*self._continue(prompt, prompt_ids, rest.rstrip()), self.eos_id]
    behind = [token for token in ids[end + 1 :] if token not in self.stop_ids]
    if self.decode(behind).strip():
      raise RenderError(
        f'the answer contains {self.tokenizer.decode(ids[end])!r}, which ends a '
        'turn; take it out of the text'
      )
    return ids[: end + 1]

  def encode(self, texts: list[str]) -> list[list[int]]:
    """Returns the ids of each text, which holds its BOS itself if there is one."""
    if not texts:
      return []
    return self.tokenizer(
      texts, add_special_tokens=False, return_attention_mask=False, verbose=False
    )['input_ids']

  def decode(self, ids: list[int]) -> str:
    """Returns the text of ids, for graders and people.

    Special tokens are left out, the markers of the reasoning are kept even if they are special;
    bytes that are no UTF-8 become U+FFFD.
    """
    return self.tokenizer.decode(
      [token for token in ids if token not in self.hidden_ids],
      skip_special_tokens=False,
      clean_up_tokenization_spaces=False,
    )

  def control_tokens(self, text: str) -> list[str]:
    """Returns the special tokens that text spells: encoding would make them real ones."""
    return [
      token
      for token in self.tokenizer.convert_ids_to_tokens(sorted(self.hidden_ids))
      if token in text
    ]

  def answer(self, text: str, ids: list[int]) -> Answer:
    """Takes a completion apart at the first end marker of the reasoning.

    output_text is what follows that marker, without the white space directly behind it; its end
    is left as it is. The start marker may be missing: many templates open the reasoning in the
    generation prompt. Without configured markers output_text is the whole text, unchanged.

    Args:
      text: `decode(ids)`.
      ids: the sampled ids, stop id included if there is one.
    """
    if self.reasoning is None:
      return Answer(None, text, 0)
    start, end = self.reasoning
    before, marker, after = text.partition(end)
    reasoning = before.strip().removeprefix(start).strip()
    if not marker:
      return Answer(reasoning, None, sum(token not in self.stop_ids for token in ids))
    # The shortest run of tokens whose text holds the marker, which may span several of them.
    last = bisect.bisect_left(range(len(ids)), True, key=lambda i: end in self.decode(ids[: i + 1]))
    return Answer(reasoning, after.lstrip(), last + 1)

  def fingerprint(self) -> str:
    """Returns the sha256 of tokenizer and template, 64 hexadecimal digits."""
    return hashlib.sha256(f'{self.tokenizer_sha256}\n{self.template}'.encode()).hexdigest()

  def _continue(self, prompt, prompt_ids, rest):
    """Returns the ids of rest, encoded alone as a sampled completion stands alone.

    But a tokenizer that adds a space before every text would add one that nobody wrote: there
    prompt and rest are encoded together, unless tokens merge over the border.
    """
    if self.adds_space:
      joint = self.encode([prompt + rest])[0]
      if joint[: len(prompt_ids)] == prompt_ids:
        return joint[len(prompt_ids) :]
    return self.encode([rest])[0]

  def _render(self, messages, tools, *, generation):
    messages = [templates.spelt(message, self.roles) for message in messages]
    text = self._apply(messages, tools, generation=generation)
    wanted = collections.Counter()
    for index, message in enumerate(messages):
      calls = [call.get('function', call)['name'] for call in message.get('tool_calls') or ()]
      for piece in (*self._pieces(message['content']), *calls):
        wanted[piece] += 1
        if text.count(piece) < wanted[piece]:
          raise RenderError(
            f'{self.template_name} leaves out messages[{index}] '
            f'({message["role"]}): {_shortened(piece)!r} is not in the prompt'
          )
    for index, tool in enumerate(tools or ()):
      if tool['function']['name'] not in text:
        raise RenderError(
          f'{self.template_name} leaves out tools[{index}] ({tool["function"]["name"]})'
        )
    return text

  def _apply(self, messages, tools=None, *, generation):
    try:
      return self.tokenizer.apply_chat_template(
        messages,
        tools=tools or None,
        chat_template=self.template,
        tokenize=False,
        add_generation_prompt=generation,
        **self.template_kwargs,
      )
    except Exception as error:  # a template is foreign code: it may raise anything
      raise RenderError(f'{self.template_name} fails on this row: {error}') from error

  def _pieces(self, content):
    """Returns what must be in the text: the content, taken apart at the reasoning markers."""
    pieces = [content]
    for marker in self.reasoning or ():
      pieces = [part for piece in pieces for part in piece.split(marker)]
    return [piece.strip() for piece in pieces if piece.strip()]

  def _prefix_message(self, prompt, transcript):
    same = len(os.path.commonprefix([prompt, transcript]))
    hint = ''
    if self.reasoning and self.generation_prompt.rstrip().endswith(self.reasoning[0]):
      hint = (
        f'. The generation prompt already opens the reasoning: begin the answer with '
        f'{self.reasoning[0]!r} and a new line, as the template does'
      )
    return (
      f'{self.template_name}: the prompt is not a literal prefix of the transcript; the '
      f'prompt goes on with {_shortened(prompt[same:])!r}, the transcript with '
      f'{_shortened(transcript[same:])!r}{hint}'
    )


def make(source_dir: str | pathlib.Path, config: ChatConfig) -> Chat:
  """Returns the Chat of a Hugging Face directory. Needs its tokenizer files, not its weights.

  stop_ids are all that the tokenizer, generation_config.json and config.json call EOS, and the
  special token with which the template ends an assistant's turn.

  Raises:
    ValueError: no directory, no tokenizer in it, no EOS anywhere, or markers that contradict
      the template.
  """
  source = pathlib.Path(source_dir)
  tokenizer = tokenizers.load(source)
  template, name = templates.choose(tokenizer, source, config.template)
  special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
  special |= set(tokenizer.all_special_ids)
  vocabulary = tokenizer.get_vocab()
  markers = tuple(config.reasoning) if config.reasoning else None
  chat = Chat(
    tokenizer=tokenizer,
    template=templates.at_date(template, config.date),
    template_name=name,
    template_kwargs=dict(config.template_kwargs),
    reasoning=markers,
    roles={},
    generation_prompt='',
    stop_ids=(),
    eos_id=-1,
    vocabulary_size=max(vocabulary.values()) + 1,
    adds_space=tokenizers.adds_space(tokenizer),
    hidden_ids=frozenset(special - {vocabulary.get(marker) for marker in markers or ()}),
    tokenizer_sha256=tokenizers.sha256(tokenizer, source),
  )
  stop_ids = _stop_ids(chat, source, special)
  if not stop_ids:
    raise ValueError(
      f'{source}: no end-of-sequence token; name one as eos_token in '
      'tokenizer_config.json or as eos_token_id in generation_config.json'
    )
  eos_id = tokenizer.eos_token_id
  chat = dataclasses.replace(
    chat,
    roles=_roles(chat),
    stop_ids=stop_ids,
    eos_id=stop_ids[0] if eos_id is None else eos_id,
    generation_prompt=_generation_prompt(chat),
  )
  if markers and markers[1] in chat.generation_prompt.rpartition(markers[0])[2]:
    raise ValueError(
      f'chat.reasoning={markers} but {name} with template_kwargs='
      f'{chat.template_kwargs} closes the reasoning inside the prompt: set '
      'chat.reasoning=None, or let the template think (enable_thinking=True)'
    )
  return chat


def _roles(chat):
  """Returns how developer and system, one role here, are spelt so that neither gets lost."""

  def rendered(role):
    messages = [{'role': role, 'content': _PROBE}, {'role': 'user', 'content': 'go'}]
    try:
      return _PROBE in chat._apply(messages, generation=True)
    except RenderError:
      return False

  known = {role for role in ('developer', 'system') if rendered(role)}
  other = {'developer': 'system', 'system': 'developer'}
  return {
    role: role if role in known or other[role] not in known else other[role] for role in other
  }


def _generation_prompt(chat):
  messages = [{'role': 'user', 'content': _PROBE}]
  without = chat._apply(messages, generation=False)
  text = chat._apply(messages, generation=True)
  return text.removeprefix(without)


def _stop_ids(chat, source, special):
  """Returns every id that ends a turn, ascending."""
  messages = [{'role': 'user', 'content': 'go'}, {'role': 'assistant', 'content': _PROBE}]
  behind = chat._apply(messages, generation=False).rpartition(_PROBE)[2].lstrip()
  end_of_turn = chat.encode([behind])[0][:1] if behind else []
  ids = tokenizers.eos_ids(chat.tokenizer, source)
  return tuple(sorted(ids.union(token for token in end_of_turn if token in special)))


def _shortened(text, limit=60):
  return text if len(text) <= limit else text[:limit] + '...'
