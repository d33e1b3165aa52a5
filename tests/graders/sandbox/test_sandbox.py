"""The sandbox: hostile sources at every level of isolation, and what is left of them: nothing.

Each attack is the body of grade(sample, item). What becomes of it is 'raised' (the policy fault), a
type of python_grader_server_error, or a score, which then is that of an attack come to nothing.
"""

import concurrent.futures
import os
import pathlib
import platform
import signal
import socket
import tempfile
import threading
import time

import pytest

from rft_jax import graders
from rft_jax.graders.sandbox import isolation

LEVELS = ('rlimits', 'landlock', 'namespace')
CLOSED = ('landlock', 'namespace')  # where nothing but the own folder and libraries can be read
LINUX = os.path.exists('/proc/self/stat')
ROOT = LINUX and os.geteuid() == 0
READ = 'open(item["path"]).read()\nreturn 1.0'
CALL = 'import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n'
# How many calls succeeded (libc gives -1 for one that failed).
FROM_LIBC = CALL + 'return float({call} >= 0)'
NUMBERS = {'x86_64': (304, 310, 29), 'aarch64': (265, 270, 194)}.get(platform.machine())

# name: (body, {level: what becomes of it}, or one for all levels)
ATTACKS = {
  'endless loop': ('while True: pass', 'timeout'),
  'endless loop that ignores signals': (
    'import signal\nfor number in range(1, 65):\n'
    '  try: signal.signal(number, signal.SIG_IGN)\n  except (OSError, ValueError): pass\n'
    'while True: pass',
    'timeout',
  ),
  'stops itself': ('import os, signal\nos.kill(0, signal.SIGSTOP)\nreturn 1.0', 'timeout'),
  'sleeps in a system call': ('import time\ntime.sleep(1000)\nreturn 1.0', 'timeout'),
  'a list without end': ('kept = []\nwhile True: kept.append(bytes(2 ** 24))', 'memory_limit'),
  'ten gigabytes at once': ('return float(len(bytes(10 * 2 ** 30)))', 'memory_limit'),
  'ten gigabytes mapped': ('import mmap\nmmap.mmap(-1, 10 * 2 ** 30)\nreturn 1.0', 'raised'),
  'os._exit': ('import os\nos._exit(0)', 'worker_killed'),
  'sys.exit': ('import sys\nsys.exit(0)', 'raised'),
  'kills itself': ('import os\nos.kill(os.getpid(), 9)', 'worker_killed'),
  'aborts': ('import os\nos.abort()', 'worker_killed'),
  'reads address 0': ('import ctypes\nctypes.string_at(0)\nreturn 1.0', 'worker_killed'),
  'recursion without a limit': (
    'import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(n): return f(n + 1) + 1\nreturn f(0)',
    dict.fromkeys(LEVELS, ('worker_killed', 'memory_limit', 'timeout')),
  ),
  'kills its parent': (
    'import os\nos.kill(os.getppid(), 9)\nreturn 0.5',
    {'namespace': 0.5, 'landlock': ('raised', 'worker_killed'), 'rlimits': 'worker_killed'},
  ),
  'limits of its parent': (
    'import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NPROC, (0, 0))\n'
    'return 1.0',
    'raised',
  ),
  'fork bomb': ('import os\nwhile True:\n  try: os.fork()\n  except OSError: pass', 'timeout'),
  'fork bomb of sessions': (
    'import os\nwhile True:\n  try:\n    if not os.fork(): os.setsid()\n  except OSError: pass',
    'timeout',
  ),
  'thread bomb': (
    'import threading, time\nwhile True:\n'
    '  threading.Thread(target=time.sleep, args=[1000]).start()',
    'raised',
  ),
  'a daemon stays': (
    'import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork(): os._exit(0)\n'
    '  os.environ.clear()\n  time.sleep(1000)\nreturn 0.5',
    0.5,
  ),
  'a child keeps the pipe when it dies': (
    'import os, time\nif os.fork(): os._exit(0)\ntime.sleep(1000)',
    'worker_killed',
  ),
  'closes all descriptors': ('import os\nos.closerange(0, 256)\nreturn 1.0', 'worker_killed'),
  'prints a result': ('print(\'["score", 1.0, "", true]\', flush=True)\nreturn 0.125', 0.125),
  'writes rubbish to all descriptors': (
    'import os\nfor descriptor in range(3, 256):\n'
    '  try: os.write(descriptor, b"\\0" * 64 + b"\\n")\n  except OSError: pass\nreturn 1.0',
    'worker_failed',
  ),
  'writes without end to all descriptors': (
    'import os\nwhile True:\n  for descriptor in range(3, 16):\n'
    '    try: os.write(descriptor, b"[" * 4096)\n    except OSError: pass',
    'worker_failed',
  ),
  'not a number': ('return float("nan")', 'raised'),
  'a number of its own': (
    'class Number(float):\n  def __float__(self): return "1"\nreturn Number(2)',
    dict.fromkeys(LEVELS, ('raised', 2.0)),
  ),
  'an exception that breaks printing': (
    'class Odd(BaseException):\n  def __str__(self): raise SystemExit\nraise Odd',
    'raised',
  ),
  'an exception of ten megabytes': ('raise ValueError("x" * 10 ** 7)', 'raised'),
  'patches what the worker uses': (
    'import json, os\njson.loads = json.dumps = os.write = os.read = os.waitpid = None\n'
    'json.JSONEncoder.encode = None\nreturn 0.25',
    0.25,
  ),
  'fills the disk': (
    'for name in "abcdef":\n  with open(name, "wb") as file: file.write(bytes(2 ** 20))\n'
    'return 1.0',
    {'namespace': 'raised'},
  ),
  'one file too large': ('open("a", "wb").write(bytes(8 * 2 ** 20))\nreturn 1.0', 'raised'),
  'a folder that cannot be entered': (
    'import os\nos.makedirs("a/b")\nos.symlink("/etc", "a/etc")\nos.chmod("a", 0)\nreturn 0.5',
    0.5,
  ),
  'becomes root': ('import os\nos.setuid(0)\nreturn 1.0', 'raised' if ROOT else {}),
  'TCP': (
    'import socket\nsocket.create_connection(("127.0.0.1", item["port"]))\nreturn 1.0',
    'raised',
  ),
  'UDP': (
    'import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", '
    '("127.0.0.1", item["port"]))\nreturn 1.0',
    'raised',
  ),
  'a socket of the machine': (
    'import socket\nsocket.socket(socket.AF_UNIX).connect("\\0" + item["name"])\nreturn 1.0',
    'raised',
  ),
  'looks up a name': (
    'import socket\nsocket.getaddrinfo("localhost.example", 80)\nreturn 1.0',
    'raised',
  ),
  'ptrace of its parent': (
    FROM_LIBC.format(call='libc.ptrace(16, __import__("os").getppid(), 0, 0)'),
    0.0,
  ),
  'mounts': (FROM_LIBC.format(call='libc.mount(b"tmpfs", b".", b"tmpfs", 0, None)'), 0.0),
  'a namespace in which it is root': (FROM_LIBC.format(call='libc.unshare(0x10000000)'), 0.0),
  'changes the root': ('import os\nos.chroot(".")\nreturn 1.0', 'raised'),
  'reads the memory of its parent': (
    'import os\nopen(f"/proc/{os.getppid()}/mem", "rb").read(1)\nreturn 1.0',
    'raised',
  ),
  'reads the environment of the trainer': (
    'open(f"/proc/{item[\'trainer\']}/environ", "rb").read()\nreturn 1.0',
    'raised' if ROOT else dict.fromkeys(CLOSED, 'raised'),
  ),
  'reads answers of other rows': (READ, dict.fromkeys(CLOSED, 'raised')),
  'lists processes': (
    'import os\nos.listdir("/proc")\nreturn 1.0',
    dict.fromkeys(CLOSED, 'raised'),
  ),
  'lists the home folder': (
    'import os\nos.listdir(item["home"])\nreturn 1.0',
    dict.fromkeys(CLOSED, 'raised'),
  ),
  'reads the users of the machine': (
    'open("/etc/passwd").read()\nreturn 1.0',
    dict.fromkeys(CLOSED, 'raised'),
  ),
  'writes beside its folder': (
    'import os\nopen(os.path.dirname(os.getcwd()) + "/x", "w")\nreturn 1.0',
    dict.fromkeys(CLOSED, 'raised'),
  ),
  'writes into a package': (
    'import os\nopen(os.path.dirname(os.__file__) + "/x", "w")\nreturn 1.0',
    'raised' if ROOT else dict.fromkeys(CLOSED, 'raised'),
  ),
}
if ROOT:  # as the user's own id they would end this session where nothing holds them back
  ATTACKS['kills the trainer'] = ('import os\nos.kill(item["trainer"], 9)\nreturn 0.5', 'raised')
  ATTACKS['kills everything'] = (
    'import os\nos.kill(-1, 9)\nreturn 0.5',
    {'namespace': ('raised', 0.5), 'landlock': ('raised', 0.5), 'rlimits': 'worker_killed'},
  )
if NUMBERS:
  ATTACKS['opens by handle'] = (
    FROM_LIBC.format(call=f'libc.syscall({NUMBERS[0]}, 0, ctypes.create_string_buffer(64), 0)'),
    0.0,
  )
  ATTACKS['reads the memory of the trainer'] = (
    FROM_LIBC.format(call=f'libc.syscall({NUMBERS[1]}, item["trainer"], None, 0, None, 0, 0)'),
    0.0,
  )
  ATTACKS['memory that no limit counts'] = (
    FROM_LIBC.format(call=f'libc.syscall({NUMBERS[2]}, 0, 2 ** 30, 0o1700)'),
    0.0,
  )


def state() -> dict:
  """Returns of this process what a grader could have changed."""
  own = pathlib.Path('/proc/self')
  return {
    'folder': os.getcwd(),
    'environment': dict(os.environ),
    'children': children(),
    'threads': threading.active_count(),
    'files': len(os.listdir(own / 'fd')),
    'signals': [signal.getsignal(number) for number in (2, 14, 15, 17)],
    'mounts': (own / 'mounts').read_text(),
    'namespaces': {path.name: os.readlink(path) for path in (own / 'ns').iterdir()},
  }


def children() -> list[str]:
  """Returns the ids of processes that have this one as their parent."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      if path.read_text().rpartition(')')[2].split()[1] == str(os.getpid()):
        found.append(path.parent.name)
    except OSError:
      pass  # it has ended
  return found


def processes_of(marker: str, users: set[int]) -> list[str]:
  """Returns the processes started with marker in their environment, or owned by users."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if path.name != str(os.getpid()) and (
        marker.encode() in path.joinpath('environ').read_bytes() or path.stat().st_uid in users
      ):
        found.append(path.name)
    except OSError:
      pass  # it has ended
  return found


class Results:
  """What became of every attack at one level, and of the machine."""

  def __init__(self, level: str, folder: pathlib.Path):
    self.level, self.users = level, set()
    secret = folder / 'answers.jsonl'
    secret.write_text('{"answer": "of another row"}')
    secret.chmod(0o644)
    inside = folder / 'inside'
    inside.mkdir()
    name = f'grader-test-{os.getpid()}'
    with (
      socket.create_server(('127.0.0.1', 0)) as tcp,
      socket.socket(socket.AF_UNIX) as unix,
      pytest.MonkeyPatch.context() as patch,
    ):
      unix.bind('\0' + name)
      unix.listen()
      patch.setattr(tempfile, 'tempdir', str(inside))
      patch.setattr(
        isolation,
        'lacking',
        lambda: dict.fromkeys(LEVELS[LEVELS.index(level) + 1 :], 'not for this test'),
      )
      self.item = {
        'trainer': os.getpid(),
        'port': tcp.getsockname()[1],
        'path': str(secret),
        'name': name,
        'home': os.path.expanduser('~'),
      }
      self.before = state()
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        self.grades = dict(zip(ATTACKS, pool.map(self.attack, ATTACKS)))
      self.after = state()
    self.left = processes_of(str(inside), self.users)
    self.files = [str(path) for path in inside.rglob('*')]

  def attack(self, name: str):
    """Returns the grades of an attack, and of a good call to the same grader after it."""
    body, expected = ATTACKS[name]
    slow = expected == 'timeout'
    source = 'def grade(sample, item):\n  if item.get("good"): return 0.75\n' + ''.join(
      f'  {line}\n' for line in body.splitlines()
    )
    limits = graders.SandboxConfig(
      time_limit_seconds=0.5 if slow else 5, memory_limit_mb=512, disk_limit_mb=4
    )
    grader = graders.make(
      {'type': 'python', 'name': 'x', 'source': source}, sandbox=limits, ungradable_reward=-1.0
    )
    try:
      first, second = grader.many([(self.item, {}), ({'good': True}, {})])
      self.users |= {1_900_000_000 + int(child) for child in children()} if ROOT else set()
      assert grader.isolation == self.level
      return first, second
    finally:
      grader.close()


@pytest.fixture(scope='module', params=LEVELS)
def results(request, tmp_path_factory):
  if not LINUX:
    pytest.skip('the levels are those of Linux')
  if isolation.lacking()[request.param]:
    pytest.skip(isolation.lacking()[request.param])
  return Results(request.param, tmp_path_factory.mktemp('sandbox'))


def outcome(grade):
  if grade.reward is not None and not grade.errors:
    return grade.reward
  if grade.reward == -1.0 and grade.errors.get('python_grader_runtime_error') is True:
    return 'raised'
  assert grade.reward is None and grade.errors['python_grader_server_error'] is True
  return grade.errors['python_grader_server_error_type']


def test_the_list_has_at_least_25_attacks():
  assert len(ATTACKS) >= 25 and len({body for body, _ in ATTACKS.values()}) == len(ATTACKS)


@pytest.mark.parametrize('name', ATTACKS)
def test_an_attack_costs_its_own_grade_and_nothing_more(results, name):
  first, second = results.grades[name]
  expected = ATTACKS[name][1]
  if isinstance(expected, dict):
    expected = expected.get(results.level)
  if expected is not None:  # otherwise this level does not hold it back, as pool.py says
    assert outcome(first) in (expected if isinstance(expected, tuple) else (expected,)), first
  assert second.reward == 0.75


def test_no_process_is_left(results):
  assert results.left == [] and results.after['children'] == results.before['children']


def test_no_file_is_left(results):
  assert results.files == []


def test_the_trainer_is_as_it_was(results):
  assert {name for name in results.before if results.before[name] != results.after[name]} == set()


# ---------------------------------------------------------------- between calls


def call_many(source, items, **limits):
  grader = graders.make(
    {'type': 'python', 'name': 'x', 'source': source},
    sandbox=graders.SandboxConfig(time_limit_seconds=5, **limits),
  )
  try:
    return [grade.reward for grade in grader.many([(item, {}) for item in items])]
  finally:
    grader.close()


def test_a_fresh_process_for_each_call_cannot_answer_for_others():
  source = (
    'import os\ndef grade(sample, item):\n  if item["n"] != 3: return item["n"]\n'
    '  while True:\n    for descriptor in range(3, 32):\n'
    '      try: os.write(descriptor, b\'["score", 99.0, "", true]\\n\')\n'
    '      except OSError: pass\n'
  )
  rewards = call_many(source, [{'n': n} for n in range(8)], calls_per_worker=1)
  assert rewards[3] == 99.0 and [*rewards[:3], *rewards[4:]] == [0, 1, 2, 4, 5, 6, 7]


def test_a_fresh_process_for_each_call_has_builtins_of_its_own():
  source = (
    'import builtins\ndef grade(sample, item):\n  score = len("abc")\n'
    '  builtins.len = lambda value: 99\n  return score'
  )
  assert call_many(source, [{}] * 3, calls_per_worker=1) == [3.0] * 3


def test_a_call_finds_nothing_of_the_calls_that_wait():
  source = (
    'import os\ndef grade(sample, item):\n  seen = []\n'
    '  for number in range(3, 64):\n    try:\n'
    '      os.set_blocking(number, False)\n      seen.append(os.read(number, 1 << 20))\n'
    '    except OSError: pass\n'
    '    try: os.set_blocking(number, True)\n    except OSError: pass\n'
    '  return float(any(b"secret" in one for one in seen))\n'
  )
  assert call_many(source, [{'n': 'secret'}] * 20) == [0.0] * 20


@pytest.mark.parametrize(
  'count, expected', [(1, [1] * 6), (2, [1, 2, 1, 2, 1, 2]), (100, [1, 2, 3, 4, 5, 6])]
)
def test_a_worker_is_fresh_after_calls_per_worker(count, expected):
  source = 'calls = []\ndef grade(sample, item):\n  calls.append(0)\n  return len(calls)'
  assert call_many(source, [{}] * 6, calls_per_worker=count) == expected


def test_a_worker_is_fresh_after_an_error():
  source = (
    'calls = []\ndef grade(sample, item):\n  calls.append(0)\n'
    '  if item["bad"]: raise ValueError\n  return len(calls)'
  )
  assert call_many(source, [{'bad': bad} for bad in (0, 0, 1, 0, 0)]) == [1, 2, 0.0, 1, 2]


@pytest.mark.parametrize(
  'rest',
  ['threading.Thread(target=time.sleep, args=[100]).start()', 'os.fork() or time.sleep(100)'],
)
def test_a_worker_is_fresh_where_a_call_left_something_running(rest):
  source = (
    'import os, threading, time\ncalls = []\ndef grade(sample, item):\n'
    f'  calls.append(0)\n  {rest}\n  return len(calls)'
  )
  assert call_many(source, [{}] * 3) == [1, 1, 1]


def test_files_of_a_call_that_failed_are_gone():
  source = (
    'import os\ndef grade(sample, item):\n  count = len(os.listdir())\n'
    '  open("left", "w").write("x")\n  if item["bad"]: raise ValueError\n  return count'
  )
  assert call_many(source, [{'bad': bad} for bad in (0, 0, 1, 0)]) == [0, 1, 0.0, 0]


def test_packages_that_are_installed_can_be_imported():
  source = (
    'import ctypes, multiprocessing, numpy, sqlite3, ssl, subprocess, sys, zoneinfo\n'
    'import rapidfuzz\n'
    'def grade(sample, item):\n'
    '  said = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True)\n'
    '  return numpy.arange(4).sum() + (said.stdout == b"7\\n")'
  )
  assert call_many(source, [{}]) == [7.0]


# ---------------------------------------------------------------- levels


def test_each_level_stands_in_the_order_of_its_strength(monkeypatch):
  for count, level in enumerate(isolation.LEVELS):
    absent = dict.fromkeys(isolation.LEVELS[count + 1 :], 'absent')
    monkeypatch.setattr(isolation, 'lacking', lambda absent=absent: absent)
    assert graders.isolation_level() == level


def test_a_weaker_level_than_required_is_refused_with_the_way_out(monkeypatch):
  monkeypatch.setattr(
    isolation,
    'lacking',
    lambda: {'namespace': 'unshare: Operation not permitted', 'landlock': '', 'rlimits': ''},
  )
  given = {'type': 'python', 'name': 'x', 'source': 'def grade(sample, item):\n  return 1.0'}
  with pytest.raises(ValueError) as caught:
    graders.make(given, sandbox=graders.SandboxConfig(require='namespace'))
  message = str(caught.value)
  assert "sandbox.require='namespace', and this machine offers 'landlock'" in message
  assert 'unshare: Operation not permitted' in message and "sandbox.require='landlock'" in message
  graders.make(given, sandbox=graders.SandboxConfig(require='landlock')).close()


@pytest.mark.parametrize('field, value', [('require', 'docker'), ('calls_per_worker', 0)])
def test_settings_out_of_range_are_refused(field, value):
  problems = graders.SandboxConfig(**{field: value}).validate()
  assert [problem for problem in problems if problem.startswith(f'{field}={value!r}')]


def test_the_level_without_isolation_still_grades(monkeypatch):
  monkeypatch.setattr(isolation, 'lacking', lambda: dict.fromkeys(isolation.LEVELS[1:], 'absent'))
  start = time.monotonic()
  source = 'def grade(sample, item):\n  while item["n"] == 1: pass\n  return item["n"]'
  grader = graders.make(
    {'type': 'python', 'name': 'x', 'source': source},
    sandbox=graders.SandboxConfig(require='none', time_limit_seconds=0.5),
  )
  assert [grade.reward for grade in grader.many([({'n': n}, {}) for n in range(3)])] == [0, None, 2]
  grader.close()
  assert time.monotonic() - start < 10
