"""The samples of the held-out evaluations of a run, row by row: evaluations/episodes/."""

import json
import math
import pathlib
import statistics
from typing import NamedTuple

from rft_jax.records import episodes

FOLDER = 'evaluations'  # in the workdir; a ledger of its own, by the step of the policy
_COLUMNS = ['occurrence', 'source', 'row', 'tokens', 'text', 'reward']
_NOT_REFERENCE = ('messages', 'tools', 'solution')  # the other fields of a row: what is right


class Answers(NamedTuple):
  """What a policy gave for one held-out row; records as ledger.read returns them."""

  greedy: dict  # the first that was recorded for the row
  sampled: list[dict]  # the others; those that the mean grade is of


def read(workdir, row: dict | None) -> dict[int, Answers]:
  """Returns {occurrence: Answers} of one row of evaluation.jsonl; {} if none were kept."""
  folder = pathlib.Path(workdir) / FOLDER
  if row is None or row['step'] not in episodes.steps(folder):
    return {}
  records = {}
  for record in episodes.read(folder, row['step'], columns=_COLUMNS):
    records.setdefault(record['occurrence'], []).append(record)
  return {occurrence: Answers(first, rest) for occurrence, (first, *rest) in records.items()}


def same_rows(one: dict[int, Answers], other: dict[int, Answers]) -> bool:
  """Returns whether two evaluations asked the same of the same rows, and graded by the same."""
  return one.keys() == other.keys() and all(
    _asked(one[key].greedy) == _asked(other[key].greedy) for key in one
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
  """Returns the mean change of a row's grade, with its 95 % interval and the count of rows.

      mean(d) +- 1.96 * stdev(d) / sqrt(n),   d = grade after - grade before, over n rows

  Pairing takes out how hard each row is, which is the same in both, so that the interval is
  narrower than that of two independent means. Rows without a grade are left out. None with
  fewer than two rows.
  """
  old, new = ({key: grade(answers) for key, answers in side.items()} for side in (before, after))
  changes = [
    new[key] - old[key] for key in old.keys() & new.keys() if None not in (old[key], new[key])
  ]
  if len(changes) < 2:
    return None
  mean, half = statistics.fmean(changes), 1.96 * statistics.stdev(changes) / math.sqrt(len(changes))
  return {'mean': mean, 'low': mean - half, 'high': mean + half, 'rows': len(changes)}


def transcripts(sides: list[tuple[str, str, dict[int, Answers]]], at_most: int) -> list[dict]:
  """Returns rows as transcripts.json has them, of the greedy answers, in the order of the rows.

  Args:
    sides: (kind, label, answers) of each arm.
    at_most: rows.
  """
  sides = [side for side in sides if side[2]]
  rows = []
  for key in sorted(sides[-1][2])[:at_most] if sides else ():
    arms = [(kind, label, answers[key].greedy) for kind, label, answers in sides if key in answers]
    row = arms[0][2]['row']
    rows.append(
      {
        'prompt': row.get('messages', ''),
        'references': [f'{name}: {_text(value)}' for name, value in _references(row).items()],
        'arms': [
          {'kind': kind, 'label': label, 'text': record['text'], 'reward': record['reward']}
          for kind, label, record in arms
        ],
      }
    )
  return rows


def _asked(record):
  row = record['row']
  return record['source'], row.get('messages'), row.get('tools'), _references(row)


def _references(row):
  return {name: value for name, value in row.items() if name not in _NOT_REFERENCE}


def _text(value):
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
