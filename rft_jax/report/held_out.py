"""Answers to the held-out rows, as a run saves them in evaluations/episodes/."""

import json
import pathlib
import statistics
from typing import NamedTuple

from rft_jax.bootstrap import normal_interval
from rft_jax.records import episodes

FOLDER = 'evaluations'  # in the workdir; its episodes/ are numbered by the policy's step
_COLUMNS = ['occurrence', 'source', 'row', 'tokens', 'text', 'reward']
_NOT_REFERENCE = ('messages', 'tools', 'solution')  # all other fields of a row are references


class Answers(NamedTuple):
  """The answers of a policy to one held-out row, each a record as episodes.read returns it."""

  greedy: dict  # at temperature 0; recorded first
  sampled: list[dict]  # the others: the grade of a row is their mean


def read(workdir, row: dict | None) -> dict[int, Answers]:
  """Returns {occurrence: Answers} of one row of evaluation.jsonl; {} if none were saved."""
  folder = pathlib.Path(workdir) / FOLDER
  if row is None or row['step'] not in episodes.steps(folder):
    return {}
  records: dict[int, list[dict]] = {}  # by occurrence
  for record in episodes.read(folder, row['step'], columns=_COLUMNS):
    records.setdefault(record['occurrence'], []).append(record)
  return {occurrence: Answers(first, rest) for occurrence, (first, *rest) in records.items()}


def same_rows(first: dict[int, Answers], second: dict[int, Answers]) -> bool:
  """Returns whether two evaluations have the same rows, prompts and references."""
  return first.keys() == second.keys() and all(
    _question(first[key].greedy) == _question(second[key].greedy) for key in first
  )


def sampled_grade(answers: Answers) -> float | None:
  """Returns the mean grade of the samples; None if there are none or one was not graded."""
  rewards = [record['reward'] for record in answers.sampled]
  return None if None in rewards or not rewards else statistics.fmean(rewards)


def greedy_grade(answers: Answers) -> float | None:
  """Returns the grade of the answer at temperature 0; None if it was not graded."""
  return answers.greedy['reward']


def paired_change(
  before: dict[int, Answers], after: dict[int, Answers], grade=sampled_grade
) -> dict | None:
  """Returns the mean change of a row's grade: mean, low, high (95 %), and the number of rows.

  Pairing removes the difficulty of each row, which is the same in both, so that the interval is
  narrower than that of two independent means. Rows without a grade are left out. None with
  fewer than two rows.
  """
  old = {key: grade(answers) for key, answers in before.items()}
  new = {key: grade(answers) for key, answers in after.items()}
  changes = [
    new[key] - old[key] for key in old.keys() & new.keys() if None not in (old[key], new[key])
  ]
  if len(changes) < 2:
    return None
  return normal_interval(changes) | {'rows': len(changes)}


def transcript_rows(
  policies: list[tuple[str, str, dict[int, Answers]]], at_most: int
) -> list[dict]:
  """Returns the first held-out rows with the greedy completion of each policy.

  Args:
    policies: (kind, label, answers) of each. The last one decides which rows there are.
    at_most: number of rows.

  Returns:
    [{prompt, references, completions: [{kind, label, text, reward}]}].
  """
  policies = [policy for policy in policies if policy[2]]
  rows = []
  for key in sorted(policies[-1][2])[:at_most] if policies else ():
    records = [
      (kind, label, answers[key].greedy) for kind, label, answers in policies if key in answers
    ]
    row = records[0][2]['row']
    rows.append(
      {
        'prompt': row.get('messages', ''),
        'references': [f'{name}: {_text(value)}' for name, value in _references(row).items()],
        'completions': [
          {'kind': kind, 'label': label, 'text': record['text'], 'reward': record['reward']}
          for kind, label, record in records
        ],
      }
    )
  return rows


def _question(record):
  """Returns what identifies a held-out row: source, prompt, tools and references."""
  row = record['row']
  return record['source'], row.get('messages'), row.get('tools'), _references(row)


def _references(row):
  return {name: value for name, value in row.items() if name not in _NOT_REFERENCE}


def _text(value):
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
