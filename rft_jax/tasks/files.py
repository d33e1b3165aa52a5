"""What a task makes (rows to learn from, rows to be measured on, a grader), and how it is saved."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

CORRUPTION = 3  # folded into the seed, so that corruption moves no other draw


class Files(NamedTuple):
  """A built-in task, complete: what a user would bring as files of his own."""

  train: list[dict[str, Any]]  # rows in OpenAI's JSONL form, with a 'solution' to warm up on
  validation: list[dict[str, Any]]  # the same form, no prompt of train among them
  grader: dict[str, Any]  # OpenAI's grader JSON
  facts: dict[str, Any]  # becomes task.json: how it was made, and scores to compare with
  # Rows with `chosen` and `rejected` answers, of train and of validation; None: not asked for.
  pairs: tuple[list[dict], list[dict]] | None = None


def corrupt(rows: list[dict], key: str, share: float, seed: int, wrong) -> list[dict]:
  """Returns the rows, of which a share has a wrong answer under `key`.

  Such a row says so: {..., key: the wrong one, 'corrupted': True, 'truth': the right one}; no
  grader reads the two, and the solution stays that of the truth. Exactly round(share * rows) are
  changed. Which ones, and to what, depends on seed and row number alone, so that the rows changed
  at one share are among those changed at a larger one, in the same way.

  Args:
    wrong: (row number, rng) -> an answer that is not the row's.
  """
  order = np.random.default_rng((seed, CORRUPTION)).permutation(len(rows))
  rows = list(rows)
  for number in order[: round(share * len(rows))].tolist():
    row, rng = rows[number], np.random.default_rng((seed, CORRUPTION, number))
    rows[number] = row | {key: wrong(number, rng), 'corrupted': True, 'truth': row[key]}
  return rows


def mean_with_interval(values, *, seed: int = 0, resamples: int = 2000) -> dict[str, float]:
  """Returns the mean of one value a row and its 95 % bootstrap interval: mean, low, high."""
  values = np.asarray(values, float)
  picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
  low, high = np.percentile(values[picks].mean(1), (2.5, 97.5))
  return {'mean': float(values.mean()), 'low': float(low), 'high': float(high)}


def texts(files: Files) -> list[str]:
  """Returns what a tokenizer for the task should know well: prompts and solutions of train."""
  prompts = [message['content'] for row in files.train for message in row['messages']]
  return prompts + [row['solution'] for row in files.train]


def write(files: Files, to: str | os.PathLike) -> None:
  """Writes train.jsonl, validation.jsonl, grader.json and task.json into the directory `to`.

  Pairs go into pairs.jsonl and pairs_validation.jsonl.

  Each appears by rename, whole or not at all; what stood there under these names is replaced.
  """
  directory = pathlib.Path(to)
  directory.mkdir(parents=True, exist_ok=True)
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  pairs = zip(('pairs.jsonl', 'pairs_validation.jsonl'), files.pairs or ())
  contents = {
    'train.jsonl': lines(files.train),
    'validation.jsonl': lines(files.validation),
    **{name: lines(rows) for name, rows in pairs},
    'grader.json': json.dumps(files.grader, indent=2) + '\n',
    'task.json': json.dumps(files.facts, indent=2) + '\n',
  }
  for name, text in contents.items():
    part = directory / f'.{name}.part'
    part.write_text(text, encoding='utf-8')
    part.replace(directory / name)
