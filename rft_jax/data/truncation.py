"""Overlong prompts and completions are never truncated: such a row is an error or is dropped."""

from rft_jax.data.problems import Problem, line_of
from rft_jax.types import Item

CHOICES = ('error', 'drop')  # of data.overlong


def check_prompt_length(item: Item, tokens: int, config) -> list[Problem]:
  """Returns the problem of a prompt longer than config.max_prompt_tokens; [] if it is not.

  config is a rows.DataConfig; with its overlong='drop' the problem is a warning, else an error.
  """
  if tokens <= config.max_prompt_tokens:
    return []
  return [_overlong(item, 'prompt', 'messages', tokens, config.max_prompt_tokens, config.overlong)]


def check_completion_length(item: Item, tokens: int, config) -> list[Problem]:
  """Returns the problem of a target longer than config.max_completion_tokens (0: no limit)."""
  if not 0 < config.max_completion_tokens < tokens:
    return []
  return [_overlong(item, 'completion', '', tokens, config.max_completion_tokens, config.overlong)]


def _overlong(item, part, path, tokens, limit, overlong):
  message = f'{tokens} {part} tokens, more than {limit}'
  if overlong == 'drop':
    code, hint = f'W_{part.upper()}_DROPPED', 'dropped, because data.overlong=drop'
  else:
    code = f'E_{part.upper()}_TOO_LONG'
    hint = f'shorten them, raise data.max_{part}_tokens, or set data.overlong=drop'
  return Problem(code, line_of(item), path, message, hint)
