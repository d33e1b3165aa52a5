"""The sandbox worker: runs a user's source, or answers that are programs; started as a file.

It imports the standard library only, and little of it: it must start in milliseconds, and nothing
of the trainer may be in it. It consists of processes at three levels:

  supervisor  started by process.py; waits, then kills all descendants and empties the folder.
  controller  forked by the supervisor, isolated (worker_isolation.py), single-threaded. It
              exchanges messages with the trainer.
  runners     forked by the controller: worker_python.py for a batch of calls, worker_code.py for
              one call.

Messages are a header of two unsigned 32-bit integers, (bytes of the body, number of the call),
and a body in JSON. The first message is the setup. The others are for runners; the controller
forwards them without reading them, so that no runner has another one's input in its memory. The
reply to each call is [kind, score, details, is_last]; after is_last the worker ends.
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
import worker_isolation as isolation
import worker_python as python
import worker_syscalls as syscalls
from worker_runner import HEADER, Runner, read_exactly

sys.path.pop()

SHUTDOWN_SECONDS = 10  # for which the supervisor looks for processes to kill


def supervise(requests: int, replies: int, lifeline: int) -> None:
  """Runs the controller, and cleans up when it or the trainer has ended; does not return.

  lifeline: a pipe that closes when the trainer ends.
  """
  length, _ = HEADER.unpack(read_exactly(requests, HEADER.size))
  setup = json.loads(read_exactly(requests, length))
  user = isolation.new_user_id() if setup['level'] != 'none' else None
  work = isolation.make_folders(setup['folder'], user)
  isolation.before_fork(setup['level'])
  controller_id = os.fork()
  if controller_id == 0:
    os.close(lifeline)
    control(requests, replies, setup, work, user)
  os.close(requests)
  os.close(replies)
  status = _wait_for_end(controller_id, lifeline)
  _kill_descendants()
  try:
    _empty_folder(setup['folder'])
  finally:
    shutil.rmtree(setup['folder'], ignore_errors=True)
    os._exit(_exit_code(status))


def _exit_code(status: int) -> int:
  """Returns the exit code that passes on the wait status of a child."""
  code = os.waitstatus_to_exitcode(status)
  return code if code >= 0 else 128 - code


def control(requests: int, replies: int, setup: dict, work: str, user: int | None) -> None:
  """Loads the source, then replies to calls until requests ends; does not return."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.environ['HOME'] = os.environ['TMPDIR'] = work
  isolation.enter(setup['level'], work, setup['limits'], user)

  def reply(number, kind, score=None, details='', is_last=False):
    body = json.dumps([kind, score, details, is_last]).encode()
    message = HEADER.pack(len(body), number) + body
    while message:
      message = message[os.write(replies, message) :]

  reply(0, 'loading')
  controller = Controller(requests, setup, user)
  try:
    controller.load()
  except MemoryError:
    reply(0, 'memory_limit', None, 'MemoryError at the top level of the source', True)
    os._exit(0)
  except BaseException as error:  # includes SystemExit
    reply(0, 'raised', None, python.end_of_traceback(error), True)
    os._exit(0)
  null = os.open(os.devnull, os.O_RDWR)
  os.dup2(null, 2)  # until here stderr was recorded, to report why a worker does not start
  os.close(null)
  gc.collect()
  gc.freeze()  # keeps the present objects' memory pages shared with the runners (copy on write)
  gc.disable()
  reply(0, 'ready')
  while header := read_exactly(requests, HEADER.size):
    length, number = HEADER.unpack(header)
    try:
      outcome = controller.answer(header, length)
    except OSError as error:  # no process, pipe or descriptor is available
      outcome = 'worker_failed', None, f'{type(error).__name__}: {error}', True
    reply(number, *outcome)
    if outcome[3]:
      break
  os._exit(0)


class Controller:
  """Starts runners, forwards calls to them and ends them."""

  def __init__(self, requests, setup, user):
    self._requests, self._setup = requests, setup
    self._time_limit = setup['time_limit_seconds']
    # Whether kill(-1) reaches the runners and their descendants, and nothing else.
    self._can_kill_all = user is not None or os.getpid() == 1
    self._runner, self._call_count, self._grade = None, 0, None

  def load(self) -> None:
    """Runs the top level of the source in mode python; in mode code imports common modules."""
    if self._setup['mode'] == 'python':
      self._grade = python.load(self._setup['source'], self._setup['filename'])
    else:
      for module in code.COMMON_MODULES:
        __import__(module)

  def answer(self, header: bytes, length: int) -> tuple:
    """Runs one call; returns (kind, score, details, is_last)."""
    if self._setup['mode'] == 'code':
      runners: list[Runner] = []
      try:
        outcome = code.answer(self._start, runners, self._requests, length, self._time_limit)
      finally:
        is_clean = self._kill_and_clean(runners)
      return *outcome, not is_clean
    if self._runner and self._runner.has_ended() and not self._end_runner():
      return 'worker_failed', None, 'a process of an earlier call could not be killed', True
    if self._runner is None:
      self._runner = self._start(lambda *pipes: python.serve(self._grade, *pipes))
      self._call_count = 0
    self._call_count += 1
    deadline = time.monotonic() + self._time_limit
    outcome, is_reusable = python.answer(
      self._runner, self._requests, header, length, deadline, self._time_limit
    )
    if is_reusable and self._call_count < self._setup['calls_per_worker']:
      return *outcome, False
    return *outcome, not self._end_runner()

  def _end_runner(self) -> bool:
    runner, self._runner = self._runner, None
    return self._kill_and_clean([runner])

  def _start(self, run, inherited=()) -> Runner:
    def run_restricted(*pipes):
      if self._setup['level'] == 'landlock':  # at level namespace no signal can reach upward
        syscalls.deny_signals_to_ancestors()
      run(*pipes)

    return Runner(run_restricted, inherited)

  def _kill_and_clean(self, runners) -> bool:
    """Kills runners and their descendants, empties the folder; False if a process may remain."""
    for runner in () if self._can_kill_all else runners:
      runner.kill()
    if self._can_kill_all:
      try:
        os.kill(-1, signal.SIGKILL)
      except ProcessLookupError:
        pass
    for runner in runners:
      runner.close()
    is_clean = _reap(wait=self._can_kill_all)
    try:
      _empty_folder('.')
    except OSError:
      pass  # a process still writes there; the supervisor removes the rest
    return is_clean


def _reap(wait: bool) -> bool:
  """Collects the exit status of ended children; returns whether no child remains."""
  try:
    while os.waitpid(-1, 0 if wait else os.WNOHANG)[0]:
      pass
    return False
  except ChildProcessError:
    return True


def _empty_folder(folder: str) -> None:
  """Removes the contents of folder, whatever their permissions."""
  for place, folders, files in os.walk(folder):
    for name in folders:
      path = os.path.join(place, name)
      # Root needs no permissions, and a link must not make it change those of another folder.
      if os.geteuid() != 0 and not os.path.islink(path):
        os.chmod(path, 0o700)
    for name in files:
      os.unlink(os.path.join(place, name))
  for entry in list(os.scandir(folder)):
    if entry.is_symlink():
      os.unlink(entry.path)
    else:
      shutil.rmtree(entry.path, ignore_errors=True)


def _wait_for_end(controller_id: int, lifeline: int) -> int:
  """Waits for the end of the controller, or kills it when the trainer ends; returns its status."""
  poll = select.poll()
  poll.register(lifeline, select.POLLIN)
  if hasattr(os, 'pidfd_open'):
    poll.register(os.pidfd_open(controller_id), select.POLLIN)
  while True:
    ready = poll.poll(None if hasattr(os, 'pidfd_open') else 50)
    if any(descriptor == lifeline for descriptor, _ in ready):
      os.kill(controller_id, signal.SIGKILL)
      return os.waitpid(controller_id, 0)[1]
    ended_id, status = os.waitpid(controller_id, os.WNOHANG)
    if ended_id:
      return status


def _kill_descendants() -> None:
  """Kills all descendants, also those in sessions of their own, for up to SHUTDOWN_SECONDS."""
  end = time.monotonic() + SHUTDOWN_SECONDS
  while time.monotonic() < end:
    for descendant in _descendants(os.getpid()):
      try:
        os.kill(descendant, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass
    if _reap(wait=False):
      return
    time.sleep(0.001)


def _descendants(process_id: int) -> list[int]:
  """Returns the ids of all descendants of a process, as far as /proc shows them."""
  children: dict[int, list[int]] = {}  # parent id -> ids of its children
  names = os.listdir('/proc') if os.path.isdir('/proc/self') else []
  for name in filter(str.isdigit, names):
    try:
      with open(f'/proc/{name}/stat', encoding='utf-8', errors='replace') as file:
        children.setdefault(int(file.read().rpartition(')')[2].split()[1]), []).append(int(name))
    except OSError:
      pass  # the process has ended
  descendants, stack = [], [process_id]
  while stack:
    ids = children.get(stack.pop(), [])
    descendants += ids
    stack += ids
  return descendants


if __name__ == '__main__':
  descriptors = [int(argument) for argument in sys.argv[1:4]]
  for descriptor in descriptors:
    os.set_inheritable(descriptor, False)  # not for processes that the source starts
  sys.argv = ['grader']
  supervise(*descriptors)
