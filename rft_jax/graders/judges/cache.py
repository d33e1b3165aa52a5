"""What judges have said, kept by the sha256 of everything that the answer depends on."""

import os
import pathlib
import threading
import time
import warnings

FILE = 'judge_cache.sqlite'


class JudgeCache:
  """A table of texts, in a file that several processes may share, or in memory.

  Opened when first used. What cannot be written is told once and not kept; it costs money, not
  correctness.

  Args:
    folder: for judge_cache.sqlite; made if it is not there. '': in memory.
  """

  def __init__(self, folder: str):
    self._folder, self._connection, self._told = folder, None, False
    self._lock = threading.Lock()

  def problems(self) -> list[str]:
    """Returns why nothing can be kept there; [] if it can. Writes nothing."""
    if not self._folder:
      return []
    import sqlite3

    path = self._path()
    try:
      if path.exists():
        with self._lock:
          self._opened().execute('SELECT count(*) FROM answers').fetchone()
        return []
    except (sqlite3.Error, OSError) as error:
      return [f'{path} cannot be used ({error}); name another folder']
    above = next(folder for folder in path.parents if folder.exists())
    if above.is_dir() and os.access(above, os.W_OK):
      return []
    return [
      f'{self._folder!r} cannot be made: {above} is no folder that can be written to; name another'
    ]

  def get(self, key: str) -> str | None:
    """Returns the text kept under key, None if there is none."""
    rows = self._run('SELECT text FROM answers WHERE key = ?', key)
    return rows[0][0] if rows else None

  def put(self, key: str, text: str) -> None:
    """Keeps text under key, in place of an earlier one."""
    self._run('INSERT OR REPLACE INTO answers VALUES (?, ?, ?)', key, text, time.time())

  def close(self) -> None:
    """Closes the file; what lies in memory is lost."""
    with self._lock:
      if self._connection:
        self._connection.close()
      self._connection = None

  def _run(self, command, *values) -> list[tuple]:
    import sqlite3

    try:
      with self._lock, self._opened() as transaction:
        return transaction.execute(command, values).fetchall()
    except (sqlite3.Error, OSError, UnicodeEncodeError) as error:
      if not self._told:
        self._told = True
        warnings.warn(f'verdicts of judges are not kept in {self._folder!r}: {error}', stacklevel=2)
      return []

  def _path(self) -> pathlib.Path:
    return pathlib.Path(self._folder).expanduser().absolute() / FILE

  def _opened(self):
    import sqlite3

    if self._connection is None:
      path = ':memory:'
      if self._folder:
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True)
      connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
      with connection:
        connection.execute(
          'CREATE TABLE IF NOT EXISTS answers '
          '(key TEXT PRIMARY KEY, text TEXT NOT NULL, time REAL NOT NULL)'
        )
      self._connection = connection
    return self._connection
