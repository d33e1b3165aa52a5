"""excluded_rows.jsonl: the rows that training excludes now, since which step, and why."""

import json
import pathlib

from rft_jax.records import atomic

FILE = 'excluded_rows.jsonl'


def write(workdir, records: list[dict]) -> None:
  """Writes one JSON object per excluded row; without any, no file is created.

  The file holds the present rows alone and depends only on the state of the run, so that a
  continued run writes the same as an uninterrupted one.
  """
  path = pathlib.Path(workdir) / FILE
  text = ''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records)
  if (path.read_text(encoding='utf-8') if path.is_file() else '') != text:
    atomic.write_text(path, text)
