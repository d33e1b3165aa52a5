"""Rows that hold preferences: checked, and put into one form of those in preference_forms."""

import collections

from rft_jax.data.preference_formats import FORMS, OURS, Broken, form_of, is_text, same, turn
from rft_jax.data.templates import text_of
from rft_jax.data.validate import Problem, line_of
from rft_jax.graders import template
from rft_jax.types import Item

KINDS = ('pairs', 'answers')
_PAIR = ('chosen', 'rejected')
_ANSWER = 'need a text, or one message {"role": "assistant", "content": "..."}'


def read(items: list[Item], kind: str) -> tuple[list[Item], list[Problem]]:
  """Returns (items in the one form, problems); broken rows are left out, and named.

  Args:
    items: rows as they stand in the file.
    kind: 'pairs', or 'answers': then of a pair become two items, a good and a bad answer.
  """
  forms = [form_of(item.row) for item in items]
  counts = collections.Counter(form.name for form in forms if form)
  if not counts:
    return [], [_unknown(item, kind) for item in items]
  usual, _ = counts.most_common(1)[0]
  made, problems = [], []
  for item, form in zip(items, forms):
    if form is None:
      problems.append(_unknown(item, kind))
    elif form.name != usual:
      problems.append(
        Problem(
          'E_PREFERENCE_MIXED',
          line_of(item),
          form.prompt,
          f'the row is in the form "{form.name}", most are "{usual}"',
          'write all rows of a file in one form',
        )
      )
    elif kind == 'pairs' and form.kind == 'answers':
      problems.append(
        Problem(
          'E_PREFERENCE_FORM',
          line_of(item),
          'label',
          'single answers with a label, where pairs are learnt from',
          'use the algorithm kto, or give chosen and rejected',
        )
      )
    else:
      rows, found = _row(item, form)
      made += _apart(rows) if kind == 'answers' and form.kind == 'pairs' else rows
      problems += found
  form = next(form for form in FORMS if form.name == usual)
  if form not in OURS and made:
    problems.append(
      Problem(
        'W_PREFERENCE_FORM',
        0,
        '',
        f'the rows are read as "{usual}"',
        'give messages, chosen and rejected if they mean something else',
      )
    )
  return made, problems


def held_out_kind(items: list[Item], kind: str) -> str:
  """Returns as what held-out rows are read, where a stage learns from `kind`.

  Pairs stay pairs also where single answers are learnt from; rows without any preference are
  'prompts': they can be sampled and graded, and no pair is measured.
  """
  forms = list(filter(None, (form_of(item.row) for item in items)))
  if not forms:
    return 'prompts'
  return 'pairs' if kind == 'answers' and forms[0].kind == 'pairs' else kind


def renamed(problems: list[Problem], items: list[Item]) -> list[Problem]:
  """Returns the problems of `messages` under the key that the prompt has in the file."""
  form = next(filter(None, (form_of(item.row) for item in items)), None)
  if form is None or form.prompt == 'messages':
    return problems
  of = lambda text: text.replace('messages', form.prompt, 1)
  return [
    problem._replace(path=of(problem.path), message=of(problem.message)) for problem in problems
  ]


def contradictions(items: list[Item]) -> list[Problem]:
  """Returns warnings: a pair that occurs twice, or a second time the other way round."""
  found, seen = [], {}
  for item in items:
    row, line = item.row, line_of(item)
    if 'chosen' not in row:
      continue
    prompt = str([(one.get('role'), text_of(one.get('content'))) for one in row['messages']])
    key = prompt, *(text_of(row[side].get('content')) for side in _PAIR)
    turned = prompt, key[2], key[1]
    if key in seen:
      found.append(
        Problem(
          'W_PREFERENCE_TWICE', line, 'chosen', f'the pair of line {seen[key]}', 'keep one of them'
        )
      )
    elif turned in seen:
      found.append(
        Problem(
          'W_PREFERENCE_CONTRADICTED',
          line,
          'chosen',
          f'the pair of line {seen[turned]}, the other way round',
          'keep the one that is meant, or set label_smoothing',
        )
      )
    seen.setdefault(key, line)
  return found


def _row(item, form):
  """Returns ([the item in the one form], [what is wrong with it]); one of the two is empty."""
  row, line, problems = item.row, line_of(item), []
  try:
    fields = form.read(row)
  except Broken as error:
    path, message, hint = error.args
    return [], [Problem('E_PREFERENCE_FIELD', line, path, message, hint)]
  prompt, answers = fields['messages'], {}
  for side, key in _answer_keys(form):
    value = row[key][-1] if key == 'messages' else row[key]
    try:
      answers[side] = _answer(value, key, prompt)
    except Broken as error:
      path, message, hint = error.args
      problems.append(Problem('E_PREFERENCE_ANSWER', line, path, message, hint))
  if form.kind == 'answers':
    answers['label'] = row['label']
    if not isinstance(row['label'], bool):
      problems.append(
        Problem(
          'E_PREFERENCE_LABEL',
          line,
          'label',
          f'label is {template.kind(row["label"])}',
          'need true (a good answer) or false',
        )
      )
  elif not problems and same(answers['chosen'], answers['rejected']):
    problems.append(
      Problem(
        'E_PREFERENCE_SAME',
        line,
        'rejected',
        'chosen and rejected are the same',
        'nothing can be learnt from the pair: take it out',
      )
    )
  if problems:
    return [], problems
  rest = {key: value for key, value in row.items() if key not in form.keys}
  return [item._replace(row={**rest, **fields, **answers})], []


def _answer_keys(form):
  if form.kind == 'answers':
    return (('completion', 'completion' if 'completion' in form.keys else 'messages'),)
  keys = ('preferred_output', 'non_preferred_output') if 'input' in form.keys else _PAIR
  return tuple(zip(_PAIR, keys))


def _answer(value, key, prompt):
  """Returns an answer as the one message of the assistant that follows the prompt."""
  if isinstance(value, str):
    message = {'role': 'assistant', 'content': value}
  else:
    turns = value if isinstance(value, list) else [value]
    if not turns or not all(isinstance(one, dict) for one in turns):
      raise Broken(key, f'{key} is {template.kind(value)}', _ANSWER)
    turns = [turn(one) if 'value' in one else one for one in turns]
    start = len(prompt) if isinstance(prompt, list) else 0
    if len(turns) > start > 0 and all(map(same, turns, prompt)):
      turns = turns[start:]
    if len(turns) != 1:
      raise Broken(key, f'{key} has {len(turns)} messages behind the prompt, need 1', _ANSWER)
    (message,) = turns
  if message.get('role') != 'assistant':
    raise Broken(key, f'{key} is from {message.get("role")!r}, not assistant', _ANSWER)
  content = message.get('content')
  if not is_text(content):
    raise Broken(key, f'the content of {key} is {template.kind(content)}', _ANSWER)
  if not text_of(content).strip() and not message.get('tool_calls'):
    raise Broken(key, f'{key} is empty', 'write the answer, or take the row out')
  return message


def _apart(items):
  """Returns the two single answers of each pair."""
  made = []
  for item in items:
    rest = {key: value for key, value in item.row.items() if key not in _PAIR}
    made += [
      item._replace(row={**rest, 'completion': item.row[side], 'label': side == 'chosen'})
      for side in _PAIR
    ]
  return made


def _unknown(item, kind):
  keys = ', '.join(list(item.row)[:8]) or 'none'
  need = (
    'messages, chosen and rejected'
    if kind == 'pairs'
    else 'messages, completion and label, or messages, chosen and rejected'
  )
  return Problem(
    'E_PREFERENCE_FORM',
    line_of(item),
    '',
    f'no preference; keys: {keys}',
    f'give {need}, or another form that rft_jax/data/preference_forms.py lists',
  )
