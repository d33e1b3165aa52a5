"""Cache of judge answers in SQLite, keyed by the sha256 of the request and the judge's identity."""

import os
import pathlib
import threading
import time
import warnings

FILE = 'judge_cache.sqlite'


class JudgeCache:
  """A table key -> text, in a file that several processes may share, or in memory.

  Opened at first use. A failed write is warned about once and otherwise ignored: it costs money
  for a repeated request, not correctness.

  Args:
    folder: for judge_cache.sqlite; created if missing. '': in memory.
  """

  def __init__(self, folder: str):
    self._folder, self._connection, self._warned = folder, None, False
    self._lock = threading.Lock()

  def problems(self) -> list[str]:
    """Returns why the folder cannot hold a cache; [] if it can. Writes nothing."""
    if not self._folder:
      return []
    import sqlite3

    path = self._path()
    try:
      if path.exists():
        with self._lock:
          self._connect().execute('SELECT count(*) FROM answers').fetchone()
        return []
    except (sqlite3.Error, OSError) as error:
      return [f'{path} cannot be used ({error}); name another folder']
    parent = next(folder for folder in path.parents if folder.exists())
    if parent.is_dir() and os.access(parent, os.W_OK):
      return []
    return [
      f'{self._folder!r} cannot be created: {parent} is not a writable folder; name another folder'
    ]

  def get(self, key: str) -> str | None:
    """Returns the text stored under key, None if there is none."""
    rows = self._execute('SELECT text FROM answers WHERE key = ?', key)
    return rows[0][0] if rows else None

  def put(self, key: str, text: str) -> None:
    """Stores text under key, replacing an earlier one."""
    self._execute('INSERT OR REPLACE INTO answers VALUES (?, ?, ?)', key, text, time.time())

  def close(self) -> None:
    """Closes the file; a cache in memory is lost."""
    with self._lock:
      if self._connection:
        self._connection.close()
      self._connection = None

  def _execute(self, command, *values) -> list[tuple]:
    import sqlite3

    try:
      with self._lock, self._connect() as transaction:
        return transaction.execute(command, values).fetchall()
    except (sqlite3.Error, OSError, UnicodeEncodeError) as error:
      if not self._warned:
        self._warned = True
        warnings.warn(
          f'verdicts of judges are not cached in {self._folder!r}: {error}', stacklevel=2
        )
      return []

  def _path(self) -> pathlib.Path:
    return pathlib.Path(self._folder).expanduser().absolute() / FILE

  def _connect(self):
    """Returns the connection, opened at the first call; the caller holds the lock."""
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
