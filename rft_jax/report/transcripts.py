"""Held-out rows in full: the prompt, and the answer of each arm beside the others."""

import json

FILE = 'transcripts.json'
_LONGEST = 20_000  # characters shown of one completion


def read(run, rows, at_most, excluded_rows):
  """Returns the first held-out rows with the answers of each arm, reasoning apart.

  Args:
    rows: [{prompt, references, arms: [{kind, label, text, reward}]}] of the run's own evaluations.
      A file transcripts.json of that form in the workdir takes their place.
  """
  path = run.workdir / FILE
  if path.is_file():
    rows = json.loads(path.read_text(encoding='utf-8'))
  if not rows:
    excluded_rows.append('Transcripts: no answers to held-out rows were kept.')
  markers = (run.config.get('chat') or {}).get('reasoning')
  return [
    {
      'prompt': _prompt(row['prompt']),
      'references': _references(row),
      'arms': [_answer(arm, markers) for arm in row['arms']],
    }
    for row in rows[:at_most]
  ]


def _prompt(prompt):
  """Returns [(role, text)] of a prompt given as text or as messages."""
  if isinstance(prompt, str):
    return [('', prompt)]
  return [(message.get('role', ''), _content(message.get('content'))) for message in prompt]


def _content(content):
  if isinstance(content, list):
    return '\n'.join(
      part.get('text', '') if isinstance(part, dict) else str(part) for part in content
    )
  return '' if content is None else str(content)


def _references(row):
  given = row.get('references', row.get('reference'))
  if given is None:
    return []
  return [
    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for value in (given if isinstance(given, list) else [given])
  ]


def _answer(arm, markers):
  """Returns an arm with its text split into reasoning and answer."""
  text, note = arm['text'], ''
  if len(text) > _LONGEST:
    note = f'{len(text) - _LONGEST:,} characters in the middle are left out.'
    text = f'{text[: _LONGEST // 2]}\n…\n{text[-_LONGEST // 2 :]}'
  reasoning, answer = '', text
  if markers:
    reasoning, end, answer = text.partition(markers[1])
    reasoning = reasoning.strip().removeprefix(markers[0])
    if not end:
      note = f'{note} The reasoning never ended, so there is no answer.'.strip()
  return {
    'kind': arm.get('kind', 'before'),
    'label': arm['label'],
    'reward': arm.get('reward'),
    'reasoning': reasoning.strip(),
    'answer': answer.strip(),
    'note': note,
  }
