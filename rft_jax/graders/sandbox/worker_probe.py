"""Prints, as JSON, which isolation levels work on this machine; started as a file by isolation.py.

Standard library only. Each level is tried in a process of its own.
"""

import json
import os
import shutil
import sys
import tempfile

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import worker_isolation as isolation

sys.path.pop()


def probe() -> dict[str, str]:
  """Returns, for each level but none, '' if it works on this machine, or the reason why not."""
  return {level: _failure(level) for level in isolation.LEVELS[1:]}


def _failure(level: str) -> str:
  folder = tempfile.mkdtemp(prefix='grader-')
  try:
    read_end, write_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
      _run_and_report(write_end, lambda: _try(level, folder, write_end))
    os.close(write_end)
    with open(read_end, encoding='utf-8') as file:
      message = file.read()
    os.waitpid(supervisor, 0)
    return '' if message == 'good' else message or 'the process that tried it died'
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _run_and_report(descriptor: int, function) -> None:
  """Calls function and ends this process; writes the exception to descriptor if there is one."""
  try:
    function()
  except BaseException as error:
    os.write(descriptor, f'{type(error).__name__}: {error}'.encode())
  finally:
    os._exit(0)


def _try(level: str, folder: str, descriptor: int) -> None:
  user = isolation.new_user_id()
  work = isolation.make_folders(folder, user)
  isolation.before_fork(level)
  child = os.fork()
  if child == 0:

    def enter_and_check():
      isolation.enter(level, work, {'AS': 1 << 31, 'FSIZE': 1 << 24}, user)
      with open(os.__file__, 'rb'), open('try', 'wb'):
        os.write(descriptor, b'good')

    _run_and_report(descriptor, enter_and_check)
  os.waitpid(child, 0)


if __name__ == '__main__':
  print(json.dumps(probe()))
