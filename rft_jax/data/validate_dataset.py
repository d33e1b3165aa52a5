"""Validates rows against each other: field types, duplicates, leaked answers, split overlap."""

import collections
import json
import re

from rft_jax.data.chat_templates import text_of
from rft_jax.data.problems import Problem, line_of
from rft_jax.graders import template
from rft_jax.types import Item


def field_types(items: list[Item], fields: frozenset[str]) -> dict[str, str]:
  """Returns for each field the JSON type that it has in most rows."""
  types = {}
  for field in fields:
    counts = collections.Counter(
      template.json_type(template.value_at(item.row, field))
      for item in items
      if not template.missing_fields(item.row, frozenset({field}))
    )
    if counts:
      types[field] = counts.most_common(1)[0][0]
  return types


def check_item_fields(
  items: list[Item], fields: frozenset[str], types: dict[str, str]
) -> list[Problem]:
  """Returns errors for rows that lack a field which is read for every row, or have another type.

  Args:
    items: rows.
    fields: paths within the row, 'answer' or 'genes[0].name'.
    types: the `field_types` over all files.
  """
  problems = []
  for item in items:
    line, reasons = line_of(item), template.missing_fields(item.row, fields)
    for field in sorted(fields):
      if field in reasons:
        problems.append(
          Problem(
            'E_ITEM_FIELD_MISSING',
            line,
            f'item.{field}',
            reasons[field],
            f'the grader or a target reads item.{field}: add it to these rows, '
            'or correct the name where it is read',
          )
        )
      elif (json_type := template.json_type(template.value_at(item.row, field))) != types[field]:
        problems.append(
          Problem(
            'E_ITEM_FIELD_TYPE',
            line,
            f'item.{field}',
            f'it is {json_type}, in most rows {types[field]}',
            'give it the same type in every row',
          )
        )
  return problems


def dataset_warnings(items: list[Item], fields: frozenset[str]) -> list[Problem]:
  """Returns warnings: equal prompts, an answer that occurs in its prompt or in most of the rows."""
  problems: list[Problem] = []
  first_lines: dict[str, int] = {}
  for item in items:
    key, line = prompt_key(item), line_of(item)
    if key in first_lines:
      problems.append(
        Problem(
          'W_DUPLICATE_PROMPT',
          line,
          'messages',
          f'the same prompt as line {first_lines[key]}',
          'keep one of them',
        )
      )
    first_lines.setdefault(key, line)
    problems += _answer_leaks(item, fields)
  return problems + _label_skew(items, fields)


def _answer_leaks(item, fields):
  """Returns warnings for values of fields that occur in the prompt as whole words."""
  text = ' '.join(
    text_of(message.get('content'))
    for message in item.row['messages']
    if message['role'] != 'assistant'
  )
  problems = []
  for field in sorted(fields):
    value = template.value_at(item.row, field)
    if (
      isinstance(value, str)
      and len(value) >= 4
      and not value.isdigit()
      and re.search(rf'(?<!\w){re.escape(value)}(?!\w)', text)
    ):
      problems.append(
        Problem(
          'W_ANSWER_LEAK',
          line_of(item),
          f'item.{field}',
          f'its value {value[:40]!r} occurs in the prompt',
          'remove it from the prompt if it is the answer',
        )
      )
  return problems


def _label_skew(items, fields):
  """Returns warnings for fields with one value in more than half of at least 20 rows."""
  problems = []
  for field in sorted(fields):
    values = [json.dumps(template.value_at(item.row, field)) for item in items]
    if len(values) < 20:
      continue
    value, count = collections.Counter(values).most_common(1)[0]
    if count > len(values) / 2:
      problems.append(
        Problem(
          'W_LABEL_SKEW',
          0,
          f'item.{field}',
          f'{value[:40]} in {count} of {len(values)} rows',
          'always answering this is rewarded in most rows: balance the rows',
        )
      )
  return problems


def check_overlap(train: list[Item], validation: list[Item]) -> list[Problem]:
  """Returns warnings for held-out rows whose prompt is trained on too."""
  sources = {prompt_key(item): item.source for item in reversed(train)}
  return [
    Problem(
      'W_TRAIN_VAL_OVERLAP',
      line_of(item),
      'messages',
      f'the same prompt as {sources[prompt_key(item)]}',
      'remove it from one of the files: held-out metrics would be too high',
    )
    for item in validation
    if prompt_key(item) in sources
  ]


def prompt_key(item: Item) -> str:
  """Returns a text that is equal for equal prompts: roles, texts and tools, without the answer."""
  messages = item.row['messages']
  messages = messages[:-1] if messages[-1]['role'] == 'assistant' else messages
  turns = [
    (
      'system' if message['role'] == 'developer' else message['role'],
      text_of(message.get('content')).strip(),
      message.get('tool_calls'),
    )
    for message in messages
  ]
  return json.dumps([turns, item.row.get('tools') or None], sort_keys=True)
