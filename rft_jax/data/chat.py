"""Chat: messages to token ids through the chat template, and sampled ids back to text.

A conversation is rendered once and encoded once, without the tokenizer's own special tokens: the
text of the template is exactly what the model reads, so BOS is never doubled. Sampled ids are
decoded for graders and reports, and never encoded again.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

from rft_jax.data import chat_templates, tokenizers
from rft_jax.data.chat_templates import ChatTemplate, RenderError, shortened
from rft_jax.data.reasoning import ParsedCompletion, parse_completion
from rft_jax.data.stop_ids import find_stop_ids
from rft_jax.types import Message


@dataclasses.dataclass(slots=True, kw_only=True)
class ChatConfig:
  """How conversations become text. Slots: a misspelt field is an error, not a new field."""

  # The markers around the reasoning, ('<think>', '</think>') for most models: what follows the
  # second is graded. None: the whole completion is the answer.
  reasoning: tuple | None = None
  template_kwargs: dict = dataclasses.field(default_factory=dict)  # such as enable_thinking
  template: str = ''  # '': the tokenizer's own; 'default': ours; else the path of a Jinja file
  date: str = '2025-01-01'  # today's date in templates that ask for it, fixed so that runs repeat

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
      (chat_templates.is_date(self.date), f'date={self.date!r}, need YYYY-MM-DD'),
    )
    return [problem for good, problem in checks if not good]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat:
  """A tokenizer with its chat template. Built by `make`; immutable."""

  tokenizer: Any  # a transformers fast tokenizer
  template: ChatTemplate
  reasoning: tuple[str, str] | None  # the markers around the reasoning
  generation_prompt: str  # what add_generation_prompt appends to a conversation
  stop_ids: tuple[int, ...]  # every id that ends a turn, ascending
  eos_id: int  # appended to a target if the template ends turns without a stop id
  vocabulary_size: int  # highest id + 1; rows of the model's embedding beyond it are padding
  adds_space: bool  # encoding adds a leading space, as sentencepiece does
  hidden_ids: frozenset[int]  # special tokens that decode to nothing
  tokenizer_sha256: str

  def prompt_text(self, messages: list[Message], tools: list[dict] | None = None) -> str:
    """Returns the rendered prompt, including the generation prompt.

    `tools=[]` is the same as None. Raises RenderError as `prompt_ids` does.
    """
    return self.template.render(messages, tools, generation_prompt=True)

  def prompt_ids(self, messages: list[Message], tools: list[dict] | None = None) -> list[int]:
    """Returns the ids of the rendered prompt, including the generation prompt.

    Raises:
      RenderError: the template fails, or leaves out the content of a message or a tool's name.
    """
    return self.encode([self.prompt_text(messages, tools)])[0]

  def supervised_text(self, messages, tools=None, target: str | None = None) -> tuple[str, str]:
    """Returns (prompt, rest of the rendered transcript), both text.

    The target is `target`, or the last assistant turn where that is None.

    Raises:
      RenderError: no target, a template that leaves something out, or a prompt that is not a
        literal prefix of the transcript.
    """
    if target is None:
      if not messages or messages[-1].get('role') != 'assistant':
        raise RenderError('no target: need a target text, or an assistant turn at the end')
      *messages, answer = messages
    else:
      answer = {'role': 'assistant', 'content': target}
    prompt = self.prompt_text(messages, tools)
    transcript = self.template.render([*messages, answer], tools, generation_prompt=False)
    if not transcript.startswith(prompt):
      raise RenderError(self._prefix_message(prompt, transcript))
    return prompt, transcript[len(prompt) :]

  def supervised_ids(self, messages, tools=None, target=None) -> tuple[list[int], list[int]]:
    """Returns (prompt ids, completion ids) of a supervised target; see `supervised_text`.

    The completion is the rest of the transcript up to and including its first stop id. What the
    template writes after that is dropped; if a template ends a turn without any stop id, the
    tokenizer's EOS is appended.

    Raises:
      RenderError: as `supervised_text`, or the target itself contains a stop token.
    """
    prompt, rest = self.supervised_text(messages, tools, target)
    prompt_ids = self.encode([prompt])[0]
    return prompt_ids, self.completion_ids(prompt, prompt_ids, rest)

  def completion_ids(self, prompt: str, prompt_ids: list[int], rest: str) -> list[int]:
    """Returns the ids of `rest`, which follows the prompt, up to and including the end of turn."""
    ids = self._encode_rest(prompt, prompt_ids, rest)
    end = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
    if end is None:  # white space that the template writes between turns is not part of the answer
      return [*self._encode_rest(prompt, prompt_ids, rest.rstrip()), self.eos_id]
    dropped = [token for token in ids[end + 1 :] if token not in self.stop_ids]
    if self.decode(dropped).strip():
      raise RenderError(
        f'the answer contains {self.tokenizer.decode(ids[end])!r}, which ends a '
        'turn; remove it from the text'
      )
    return ids[: end + 1]

  def encode(self, texts: list[str]) -> list[list[int]]:
    """Returns the ids of each text, which contains its BOS itself if there is one."""
    return tokenizers.encode(self.tokenizer, texts)

  def decode(self, ids: list[int]) -> str:
    """Returns the text of ids, for graders and reports.

    Special tokens are left out, except the reasoning markers, which are kept even if they are
    special. Bytes that are not UTF-8 become U+FFFD.
    """
    return self.tokenizer.decode(
      [token for token in ids if token not in self.hidden_ids],
      skip_special_tokens=False,
      clean_up_tokenization_spaces=False,
    )

  def control_tokens(self, text: str) -> list[str]:
    """Returns the special tokens that text spells out: encoding it yields their ids."""
    return [
      token
      for token in self.tokenizer.convert_ids_to_tokens(sorted(self.hidden_ids))
      if token in text
    ]

  def parse_completion(self, text: str, ids: list[int]) -> ParsedCompletion:
    """Splits a completion into reasoning and answer; text is `decode(ids)`."""
    return parse_completion(text, ids, self.reasoning, stop_ids=self.stop_ids, decode=self.decode)

  def fingerprint(self) -> str:
    """Returns the sha256 of tokenizer and template, 64 hexadecimal digits."""
    return hashlib.sha256(f'{self.tokenizer_sha256}\n{self.template.jinja}'.encode()).hexdigest()

  def _encode_rest(self, prompt, prompt_ids, rest):
    """Returns the ids of rest, encoded without the prompt, like a sampled completion.

    But a tokenizer that adds a space before every text would add one that is not in the transcript.
    In this case prompt and rest are encoded together, unless tokens merge across the boundary.
    """
    if self.adds_space:
      joint = self.encode([prompt + rest])[0]
      if joint[: len(prompt_ids)] == prompt_ids:
        return joint[len(prompt_ids) :]
    return self.encode([rest])[0]

  def _prefix_message(self, prompt, transcript):
    common = len(os.path.commonprefix([prompt, transcript]))
    hint = ''
    if self.reasoning and self.generation_prompt.rstrip().endswith(self.reasoning[0]):
      hint = (
        f'. The generation prompt already opens the reasoning: begin the answer with '
        f'{self.reasoning[0]!r} and a new line, as the template does'
      )
    return (
      f'{self.template.name}: the prompt is not a literal prefix of the transcript; the '
      f'prompt continues with {shortened(prompt[common:])!r}, the transcript with '
      f'{shortened(transcript[common:])!r}{hint}'
    )


def make(source_dir: str | pathlib.Path, config: ChatConfig) -> Chat:
  """Returns the Chat of a Hugging Face directory. Needs its tokenizer files, not its weights.

  Raises:
    ValueError: not a directory, no tokenizer in it, no EOS anywhere, or markers that contradict
      the template.
  """
  source = pathlib.Path(source_dir)
  tokenizer = tokenizers.load(source)
  markers = tuple(config.reasoning) if config.reasoning else None
  template = chat_templates.load(
    tokenizer,
    source,
    template=config.template,
    date=config.date,
    kwargs=config.template_kwargs,
    reasoning=markers,
  )
  stop_ids = find_stop_ids(tokenizer, source, template.turn_end())
  generation_prompt = template.generation_prompt()
  if markers and markers[1] in generation_prompt.rpartition(markers[0])[2]:
    raise ValueError(
      f'chat.reasoning={markers} but {template.name} with template_kwargs='
      f'{template.kwargs} closes the reasoning inside the prompt: set '
      'chat.reasoning=None, or let the template think (enable_thinking=True)'
    )
  vocabulary = tokenizer.get_vocab()
  return Chat(
    tokenizer=tokenizer,
    template=template,
    reasoning=markers,
    generation_prompt=generation_prompt,
    stop_ids=stop_ids,
    eos_id=stop_ids[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id,
    vocabulary_size=max(vocabulary.values()) + 1,
    adds_space=tokenizers.adds_space(tokenizer),
    hidden_ids=frozenset(
      tokenizers.special_ids(tokenizer) - {vocabulary.get(marker) for marker in markers or ()}
    ),
    tokenizer_sha256=tokenizers.sha256(tokenizer, source),
  )
