"""excluded_rows.jsonl: which rows training leaves out now, since when, and why."""

import json
import pathlib

from rft_jax.records import atomic

FILE = 'excluded_rows.jsonl'


def write(workdir, lines: list[dict]) -> None:
  """Makes excluded_rows.jsonl say these lines, one JSON object a row; without any it is not begun.

  It tells the present alone, and follows from the state of the run: a continued run writes what an
  uninterrupted one does.
  """
  path = pathlib.Path(workdir) / FILE
  text = ''.join(json.dumps(line, ensure_ascii=False) + '\n' for line in lines)
  if (path.read_text(encoding='utf-8') if path.is_file() else '') != text:
    atomic.write_text(path, text)
