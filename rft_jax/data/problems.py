"""Problems found in rows: codes E_... are errors, codes W_... warnings; one summary per kind."""

import collections
import re
from typing import NamedTuple

from rft_jax.types import Item


class Problem(NamedTuple):
  """One thing that is wrong with one row, or with a whole file."""

  code: str  # 'E_...' is an error, 'W_...' a warning
  line: int  # of the file, from 1; in a file without lines the row's number; 0: the whole file
  path: str  # where in the row: 'messages[1].content'
  message: str
  hint: str  # how to repair it

  @property
  def blocks(self) -> bool:
    """Whether the run must not start."""
    return self.code.startswith('E_')


def line_of(item: Item) -> int:
  """Returns the line that an Item was read from."""
  return int(item.source.rpartition(':')[2])


def summarise(source: str, problems: list[Problem]) -> list[str]:
  """Returns one text for each kind of problem: code, lines, an example and how to repair it.

  Five hundred rows with the same problem give one line of text.
  """
  groups = collections.defaultdict(list)
  for problem in problems:
    groups[problem.code, re.sub(r'\[\d+\]', '[]', problem.path), problem.hint].append(problem)
  texts = []
  for (code, _, hint), group in groups.items():
    lines = sorted({problem.line for problem in group if problem.line})
    shown = ', '.join(map(str, lines[:5])) + (f' and {len(lines) - 5} more' if lines[5:] else '')
    where = f' line{"s" * (len(lines) > 1)} {shown}' if lines else ''
    first = min(group, key=lambda problem: problem.line)
    message = first.message
    if first.path.startswith('item.'):
      message = f'{first.path}: {message}'
    if len(lines) > 1:
      message = f'line {first.line}: {message}'
    texts.append(f'{source}{where}: {code}: {message}; {hint}')
  return texts
