"""Child processes of this process, as /proc shows them."""

import os
import pathlib


def children() -> list[int]:
  """Returns the ids of processes that have this one as their parent."""
  ids = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      if path.read_text().rpartition(')')[2].split()[1] == str(os.getpid()):
        ids.append(int(path.parent.name))
    except OSError:
      pass  # the process has ended
  return ids
