"""Output of a built-in task (train and validation rows, grader, metadata) and its files on disk."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

CORRUPTION = 3  # part of the seed: label noise has a random stream of its own


class Files(NamedTuple):
  """A complete built-in task: the same data that users bring as files of their own."""

  train: list[dict[str, Any]]  # rows in OpenAI's format, with a 'solution' for SFT
  validation: list[dict[str, Any]]  # the same format, no prompt in common with train
  grader: dict[str, Any]  # OpenAI's grader JSON
  metadata: dict[str, Any]  # written to task.json: config, and reference scores
  # Rows with `chosen` and `rejected` answers, for train and validation; None: not generated.
  pairs: tuple[list[dict], list[dict]] | None = None


def corrupt(rows: list[dict], key: str, share: float, seed: int, wrong_answer) -> list[dict]:
  """Returns the rows with label noise: a fraction `share` has a wrong answer under `key`.

  A changed row is marked: {..., key: the wrong one, 'corrupted': True, 'truth': the right one}; no
  grader reads the two marks, and the solution stays the right one. Exactly round(share * rows) are
  changed. Which ones, and to what, depends on seed and row number alone, so that the rows changed
  at one share are a subset of those changed at a larger one, with the same wrong answers.

  Args:
    wrong_answer: (row number, rng) -> an answer other than the row's.
  """
  order = np.random.default_rng((seed, CORRUPTION)).permutation(len(rows))
  rows = list(rows)
  for number in order[: round(share * len(rows))].tolist():
    row, rng = rows[number], np.random.default_rng((seed, CORRUPTION, number))
    rows[number] = row | {key: wrong_answer(number, rng), 'corrupted': True, 'truth': row[key]}
  return rows


def tokenizer_texts(files: Files) -> list[str]:
  """Returns the texts to build a tokenizer from: prompts and solutions of the training rows."""
  prompts = [message['content'] for row in files.train for message in row['messages']]
  return prompts + [row['solution'] for row in files.train]


def write(files: Files, to: str | os.PathLike) -> None:
  """Writes train.jsonl, validation.jsonl, grader.json and task.json into the directory `to`.

  Pairs go into pairs.jsonl and pairs_validation.jsonl. Each file is written atomically, by rename,
  and replaces an existing one.
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
    'task.json': json.dumps(files.metadata, indent=2) + '\n',
  }
  for name, text in contents.items():
    temporary = directory / f'.{name}.part'
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(directory / name)
