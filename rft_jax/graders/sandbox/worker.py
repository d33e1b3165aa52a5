"""The worker in which a user's source, or an answer that is a program, runs; started as a file.

It imports the standard library alone, and little of that: it must start in milliseconds, and
nothing of the trainer may be in it. It is three processes deep:

  guard   started by process.py; waits, ends all below it, and empties the folder.
  keeper  forked by it, shut in (worker_kernel.py), one thread. It talks with the trainer.
  runners forked by the keeper: worker_python.py for a batch of calls, worker_code.py for one.

Messages are a header of two unsigned 32-bit integers, (bytes of the body, number of the call),
and a body in JSON. The first is the set-up. What follows is for runners; the keeper hands it on
without reading it, so that no runner finds in its memory what another was given. Each call is
answered by [kind, score, details, last]; after last the worker is used up.
"""

import gc
import json
import os
import select
import shutil
import signal
import sys
import time

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import worker_code as code
import worker_kernel as kernel
import worker_python as python
import worker_rules as rules
from worker_runners import HEADER, Runner, read_exactly

sys.path.pop()

SECONDS_TO_END = 10  # that the guard goes on looking for processes to end


def guard(requests: int, replies: int, lifeline: int) -> None:
  """Runs the keeper, and cleans up after it when it ends or the trainer does; does not return."""
  length, _ = HEADER.unpack(read_exactly(requests, HEADER.size))
  setup = json.loads(read_exactly(requests, length))
  user = kernel.user_id() if setup['level'] != 'none' else None
  work = kernel.make_folders(setup['folder'], user)
  kernel.before_fork(setup['level'])
  keeper = os.fork()
  if keeper == 0:
    os.close(lifeline)
    keep(requests, replies, setup, work, user)
  os.close(requests)
  os.close(replies)
  status = _first_of(keeper, lifeline)
  _end_descendants()
  try:
    _empty(setup['folder'])
  finally:
    shutil.rmtree(setup['folder'], ignore_errors=True)
    os._exit(_code(status))


def _code(status: int) -> int:
  """Returns the code with which to end after a child that had this wait status."""
  code = os.waitstatus_to_exitcode(status)
  return code if code >= 0 else 128 - code


def keep(requests: int, replies: int, setup: dict, work: str, user: int | None) -> None:
  """Loads the source, then has runners answer calls until requests ends; does not return."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.environ['HOME'] = os.environ['TMPDIR'] = work
  kernel.enter(setup['level'], work, setup['limits'], user)

  def reply(number, kind, score=None, details='', last=False):
    body = json.dumps([kind, score, details, last]).encode()
    message = HEADER.pack(len(body), number) + body
    while message:
      message = message[os.write(replies, message) :]

  reply(0, 'loading')
  keeper = Keeper(requests, setup, user)
  try:
    keeper.load()
  except MemoryError:
    reply(0, 'memory_limit', None, 'MemoryError at the top level of the source', True)
    os._exit(0)
  except BaseException as error:  # SystemExit is as good a way to fail as any
    reply(0, 'raised', None, python.end_of_traceback(error), True)
    os._exit(0)
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 2)  # until here stderr was kept, to tell why a worker does not start
  os.close(null)
  gc.collect()
  gc.freeze()  # what is here now is shared with every runner, as long as nobody writes to it
  gc.disable()
  reply(0, 'ready')
  while header := read_exactly(requests, HEADER.size):
    length, number = HEADER.unpack(header)
    try:
      outcome = keeper.answer(header, length)
    except OSError as error:  # no process, pipe or descriptor to be had
      outcome = 'worker_failed', None, f'{type(error).__name__}: {error}', True
    reply(number, *outcome)
    if outcome[3]:
      break
  os._exit(0)


class Keeper:
  """Starts runners, gives them calls and ends them."""

  def __init__(self, requests, setup, user):
    self._requests, self._setup = requests, setup
    self._seconds = setup['time_limit_seconds']
    # Whether kill(-1) ends what runners have started, and nothing else.
    self._alone = user is not None or os.getpid() == 1
    self._runner, self._calls, self._entry = None, 0, None

  def load(self) -> None:
    """Runs the top level of a source, for python; for code imports what programs often do."""
    if self._setup['mode'] == 'python':
      self._entry = python.load(self._setup['source'], self._setup['filename'])
    else:
      for module in code.OFTEN:
        __import__(module)

  def answer(self, header: bytes, length: int) -> tuple:
    """Has one call answered; returns (kind, score, details, last)."""
    if self._setup['mode'] == 'code':
      runners = []
      try:
        outcome = code.answer(self._start, runners, self._requests, length, self._seconds)
      finally:
        clean = self._sweep(runners)
      return *outcome, not clean
    if self._runner and self._runner.has_ended() and not self._retire():
      return 'worker_failed', None, 'something of a call that was over could not be ended', True
    if self._runner is None:
      self._runner = self._start(lambda *ends: python.serve(self._entry, *ends))
      self._calls = 0
    self._calls += 1
    deadline = time.monotonic() + self._seconds
    outcome, goes_on = python.answer(
      self._runner, self._requests, header, length, deadline, self._seconds
    )
    if goes_on and self._calls < self._setup['calls_per_worker']:
      return *outcome, False
    return *outcome, not self._retire()

  def _retire(self) -> bool:
    runner, self._runner = self._runner, None
    return self._sweep([runner])

  def _start(self, run, kept=()) -> Runner:
    def inside(*ends):
      if self._setup['level'] == 'landlock':  # at level namespace the keeper cannot be signalled
        rules.no_signals_up()
      run(*ends)

    return Runner(inside, kept)

  def _sweep(self, runners) -> bool:
    """Ends runners and all that they started, empties the folder; False if something may live."""
    for runner in () if self._alone else runners:
      runner.kill()
    if self._alone:
      try:
        os.kill(-1, signal.SIGKILL)
      except ProcessLookupError:
        pass
    for runner in runners:
      runner.close()
    clean = _reap(wait=self._alone)
    try:
      _empty('.')
    except OSError:
      pass  # something is still at work there; the guard removes the rest
    return clean


def _reap(wait: bool) -> bool:
  """Collects ended children; returns whether there is none left."""
  try:
    while os.waitpid(-1, 0 if wait else os.WNOHANG)[0]:
      pass
    return False
  except ChildProcessError:
    return True


def _empty(folder: str) -> None:
  """Removes what is in folder, whatever its owner has made of its rights."""
  for place, folders, files in os.walk(folder):
    for name in folders:
      path = os.path.join(place, name)
      # Root needs no rights, and must not be led to change those of something else.
      if os.geteuid() != 0 and not os.path.islink(path):
        os.chmod(path, 0o700)
    for name in files:
      os.unlink(os.path.join(place, name))
  for entry in list(os.scandir(folder)):
    if entry.is_symlink():
      os.unlink(entry.path)
    else:
      shutil.rmtree(entry.path, ignore_errors=True)


def _first_of(keeper: int, lifeline: int) -> int:
  """Waits until the keeper ends, or the trainer, and then ends it; returns its wait status."""
  poll = select.poll()
  poll.register(lifeline, select.POLLIN)
  if hasattr(os, 'pidfd_open'):
    poll.register(os.pidfd_open(keeper), select.POLLIN)
  while True:
    ready = poll.poll(None if hasattr(os, 'pidfd_open') else 50)
    if any(descriptor == lifeline for descriptor, _ in ready):
      os.kill(keeper, signal.SIGKILL)
      return os.waitpid(keeper, 0)[1]
    ended, status = os.waitpid(keeper, os.WNOHANG)
    if ended:
      return status


def _end_descendants() -> None:
  """Ends what is left below this process, sessions of their own or not, as long as it takes."""
  end = time.monotonic() + SECONDS_TO_END
  while time.monotonic() < end:
    for child in _below(os.getpid()):
      try:
        os.kill(child, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass
    if _reap(wait=False):
      return
    time.sleep(0.001)


def _below(process_id: int) -> list[int]:
  """Returns the ids of all processes under this one, as far as /proc shows them."""
  parents = {}
  names = os.listdir('/proc') if os.path.isdir('/proc/self') else []
  for name in filter(str.isdigit, names):
    try:
      with open(f'/proc/{name}/stat', encoding='utf-8', errors='replace') as file:
        parents.setdefault(int(file.read().rpartition(')')[2].split()[1]), []).append(int(name))
    except OSError:
      pass  # it has ended
  found, waiting = [], [process_id]
  while waiting:
    children = parents.get(waiting.pop(), [])
    found += children
    waiting += children
  return found


if __name__ == '__main__':
  descriptors = [int(argument) for argument in sys.argv[1:4]]
  for descriptor in descriptors:
    os.set_inheritable(descriptor, False)  # processes that the source starts shall not hold them
  sys.argv = ['grader']
  guard(*descriptors)
