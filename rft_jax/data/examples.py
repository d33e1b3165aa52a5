"""Examples: the rows of a data set rendered with the chat template and encoded to token ids."""

from rft_jax.data import preferences, truncation
from rft_jax.data.chat import Chat
from rft_jax.data.chat_templates import RenderError, text_of
from rft_jax.data.problems import Problem, line_of
from rft_jax.graders import template
from rft_jax.types import Example, Item


def make_examples(
  items: list[Item], config, chat: Chat, *, kind: str, target_template: str
) -> tuple[list[Example], list[Problem]]:
  """Returns (examples, problems) of rows whose messages are valid.

  Args:
    config: a rows.DataConfig, for the limits of lengths.
    kind: what is trained on, see rows.load.
    target_template: text with {{ item.x }}, the target of each row; '' for none.
  """
  problems, rendered = [], []
  for item in items:
    try:
      rendered.append((item, *_texts(item.row, chat, kind, target_template)))
    except RenderError as error:
      problems.append(_render_problem(item, error))
    except template.Fault as fault:
      problems.append(
        Problem(
          'E_ITEM_FIELD_MISSING',
          line_of(item),
          'sft.target',
          str(fault.errors),
          'a target may read the fields of item alone',
        )
      )
    problems += _control_token_warnings(item, chat)
  prompts = chat.encode([prompt for _, prompt, _ in rendered])
  examples = []
  for (item, prompt, rests), prompt_ids in zip(rendered, prompts, strict=True):
    if overlong := truncation.check_prompt_length(item, len(prompt_ids), config):
      problems += overlong
      continue
    try:
      completions = [chat.completion_ids(prompt, prompt_ids, rest) for rest in rests]
    except RenderError as error:
      problems.append(_render_problem(item, error))
      continue
    longest = max(map(len, completions), default=0)
    if overlong := truncation.check_completion_length(item, longest, config):
      problems += overlong
    else:
      examples.append(_example(item, prompt_ids, completions, kind))
  return examples, problems


def _example(item, prompt_ids, completions, kind):
  return Example(
    item,
    prompt_ids,
    completions[0] if completions else None,
    rejected_ids=completions[1] if len(completions) > 1 else None,
    desirable=item.row['label'] if kind == 'answers' else None,
  )


def _texts(row, chat, kind, target_template):
  """Returns (prompt, [the completions to train on]) of one row; of a pair the chosen one first."""
  messages, tools = row['messages'], row.get('tools')
  if kind == 'prompts':
    return chat.prompt_text(messages, tools), []
  if kind in preferences.KINDS:
    sides = ('chosen', 'rejected') if kind == 'pairs' else ('completion',)
    texts = [chat.supervised_text([*messages, row[side]], tools) for side in sides]
    return texts[0][0], [rest for _, rest in texts]
  target = None
  if target_template:
    target = template.render(target_template, item=row, sample={})
    if not target.strip():
      raise RenderError(f'the target {target_template!r} is empty for this row')
  prompt, rest = chat.supervised_text(messages, tools, target)
  return prompt, [rest]


def _render_problem(item, error):
  return Problem(
    'E_MESSAGE_NOT_RENDERED',
    line_of(item),
    'messages',
    str(error),
    'change the messages, or set chat.template to a template that renders them '
    "('default' for a plain one)",
  )


def _control_token_warnings(item, chat):
  """Returns warnings for messages whose text contains special tokens."""
  problems = []
  for index, message in enumerate(item.row['messages']):
    tokens = chat.control_tokens(text_of(message.get('content')))
    if tokens:
      problems.append(
        Problem(
          'W_CONTROL_TOKEN',
          line_of(item),
          f'messages[{index}].content',
          f'messages[{index}] spells out {tokens[0]!r}, a special token',
          'the model reads it as that token: remove it unless this is intended',
        )
      )
  return problems
