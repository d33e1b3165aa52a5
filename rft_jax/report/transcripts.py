"""Transcripts of the report: held-out prompts with the completions of the compared policies."""

import json

from rft_jax.json_files import read_json

FILE = 'transcripts.json'
_LONGEST = 20_000  # characters shown of one completion


def read(run, rows, at_most, omissions):
  """Returns the first held-out rows with the completion of each policy, reasoning apart.

  Args:
    rows: [{prompt, references, completions: [{kind, label, text, reward}]}], from held_out. A
      file transcripts.json of that form in the workdir replaces them.
    at_most: number of rows.
    omissions: a line is appended if there are none.
  """
  path = run.workdir / FILE
  if path.is_file():
    rows = read_json(path)
  if not rows:
    omissions.append('Transcripts: no answers to held-out rows were saved.')
  markers = (run.config.get('chat') or {}).get('reasoning')
  return [
    {
      'prompt': _prompt(row['prompt']),
      'references': _references(row),
      'completions': [_completion(completion, markers) for completion in row['completions']],
    }
    for row in rows[:at_most]
  ]


def _prompt(prompt):
  """Returns [(role, text)] of a prompt that is text or messages."""
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
  references = row.get('references', row.get('reference'))
  if references is None:
    return []
  return [
    value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    for value in (references if isinstance(references, list) else [references])
  ]


def _completion(completion, markers):
  """Returns a completion with its text split into reasoning and answer."""
  text, note = completion['text'], ''
  if len(text) > _LONGEST:
    note = f'{len(text) - _LONGEST:,} characters in the middle are not shown.'
    text = f'{text[: _LONGEST // 2]}\n…\n{text[-_LONGEST // 2 :]}'
  reasoning, answer = '', text
  if markers:
    reasoning, end, answer = text.partition(markers[1])
    reasoning = reasoning.strip().removeprefix(markers[0])
    if not end:
      note = f'{note} The reasoning has no end marker, so there is no answer.'.strip()
  return {
    'kind': completion.get('kind', 'before'),
    'label': completion['label'],
    'reward': completion.get('reward'),
    'reasoning': reasoning.strip(),
    'answer': answer.strip(),
    'note': note,
  }
