"""The samples of two held-out evaluations of one run, row by row: evaluations/episodes/."""
import json
import math
import pathlib
import statistics
from typing import NamedTuple

from rft_jax.records import ledger

FOLDER = 'evaluations'  # in the workdir; a ledger of its own, by the step of the policy
_COLUMNS = ['occurrence', 'row', 'tokens', 'text', 'reward']


class Answers(NamedTuple):
  """What a policy gave for one held-out row; records as ledger.read returns them."""
  greedy: dict  # the first that was recorded for the row
  sampled: list[dict]  # the others; those that the mean grade is of


def read(workdir, row: dict | None) -> dict[int, Answers]:
  """Returns {occurrence: Answers} of one row of evaluation.jsonl; {} if none were kept."""
  folder = pathlib.Path(workdir) / FOLDER
  if row is None or row['step'] not in ledger.steps(folder):
    return {}
  records = {}
  for record in ledger.read(folder, row['step'], columns=_COLUMNS):
    records.setdefault(record['occurrence'], []).append(record)
  return {occurrence: Answers(first, rest) for occurrence, (first, *rest) in records.items()}


def paired_change(before: dict[int, Answers], after: dict[int, Answers]) -> dict | None:
  """Returns the mean change of a row's mean grade, with its 95 % interval.

      mean(d) +- 1.96 * stdev(d) / sqrt(n),   d = grade after - grade before, over n rows

  Pairing takes out how hard each row is, which is the same in both, so that the interval is
  narrower than that of two independent means. Rows with an ungraded sample are left out. None
  with fewer than two rows.
  """
  old, new = ({key: _grade(answers) for key, answers in side.items()} for side in (before, after))
  changes = [new[key] - old[key] for key in old.keys() & new.keys()
             if None not in (old[key], new[key])]
  if len(changes) < 2:
    return None
  mean, half = statistics.fmean(changes), 1.96 * statistics.stdev(changes) / math.sqrt(len(changes))
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def transcripts(before: dict[int, Answers], after: dict[int, Answers], labels) -> list[dict]:
  """Returns rows as transcripts.json has them, of the greedy answers, in the order of the rows."""
  rows = []
  for key in sorted(after or before):
    arms = [(label, side[key].greedy) for label, side in zip(labels, (before, after))
            if key in side]
    row = arms[0][1]['row']
    known = {name: value for name, value in row.items() if name not in ('messages', 'tools')}
    rows.append({
        'prompt': row.get('messages', ''),
        'references': [f'{name}: {_text(value)}' for name, value in known.items()],
        'arms': [{'label': label, 'text': record['text'], 'reward': record['reward']}
                 for label, record in arms]})
  return rows


def _grade(answers):
  rewards = [record['reward'] for record in answers.sampled]
  return None if None in rewards or not rewards else statistics.fmean(rewards)


def _text(value):
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
