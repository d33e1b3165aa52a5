"""Isolation levels: hostile sources at every level, and what remains of them on the machine.

Each attack is the body of grade(sample, item). Its outcome is 'raised' (the policy fault), a type
of python_grader_server_error, or a score, which then is that of a call without effect.
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
from processes import children

from rft_jax import graders
from rft_jax.graders.sandbox import isolation

LEVELS = ('rlimits', 'landlock', 'namespace')
FILE_LEVELS = ('landlock', 'namespace')  # that restrict reading to libraries and the own folder
LINUX = os.path.exists('/proc/self/stat')
ROOT = LINUX and os.geteuid() == 0
READ = 'open(item["path"]).read()\nreturn 1.0'
CALL = 'import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n'
# Scores 1 if the call succeeds (libc returns -1 for one that fails).
FROM_LIBC = CALL + 'return float({call} >= 0)'
CALL_NUMBERS = {  # of open_by_handle_at, process_vm_readv, shmget
  'x86_64': (304, 310, 29),
  'aarch64': (265, 270, 194),
}.get(platform.machine())

# name: (body, {level: outcome}, or one outcome for all levels); a tuple: any of these outcomes
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
  'a list that grows forever': (
    'blocks = []\nwhile True: blocks.append(bytes(2 ** 24))',
    'memory_limit',
  ),
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
  'writes forever to all descriptors': (
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
    'raised' if ROOT else dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
  'reads answers of other rows': (READ, dict.fromkeys(FILE_LEVELS, 'raised')),
  'lists processes': (
    'import os\nos.listdir("/proc")\nreturn 1.0',
    dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
  'lists the home folder': (
    'import os\nos.listdir(item["home"])\nreturn 1.0',
    dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
  'reads the users of the machine': (
    'open("/etc/passwd").read()\nreturn 1.0',
    dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
  'writes outside its folder': (
    'import os\nopen(os.path.dirname(os.getcwd()) + "/x", "w")\nreturn 1.0',
    dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
  'writes into a package': (
    'import os\nopen(os.path.dirname(os.__file__) + "/x", "w")\nreturn 1.0',
    'raised' if ROOT else dict.fromkeys(FILE_LEVELS, 'raised'),
  ),
}
if ROOT:  # under the id of the user who runs the tests they could kill this session
  ATTACKS['kills the trainer'] = ('import os\nos.kill(item["trainer"], 9)\nreturn 0.5', 'raised')
  ATTACKS['kills everything'] = (
    'import os\nos.kill(-1, 9)\nreturn 0.5',
    {'namespace': ('raised', 0.5), 'landlock': ('raised', 0.5), 'rlimits': 'worker_killed'},
  )
if CALL_NUMBERS:
  ATTACKS['opens by handle'] = (
    FROM_LIBC.format(
      call=f'libc.syscall({CALL_NUMBERS[0]}, 0, ctypes.create_string_buffer(64), 0)'
    ),
    0.0,
  )
  ATTACKS['reads the memory of the trainer'] = (
    FROM_LIBC.format(call=f'libc.syscall({CALL_NUMBERS[1]}, item["trainer"], None, 0, None, 0, 0)'),
    0.0,
  )
  ATTACKS['memory that no limit counts'] = (
    FROM_LIBC.format(call=f'libc.syscall({CALL_NUMBERS[2]}, 0, 2 ** 30, 0o1700)'),
    0.0,
  )


def process_state() -> dict:
  """Returns the properties of this process that a grader could have changed."""
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


def processes_of(marker: str, users: set[int]) -> list[str]:
  """Returns the processes started with marker in their environment, or owned by users."""
  ids = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if path.name != str(os.getpid()) and (
        marker.encode() in path.joinpath('environ').read_bytes() or path.stat().st_uid in users
      ):
        ids.append(path.name)
    except OSError:
      pass  # the process has ended
  return ids


class Results:
  """The grades of every attack at one level, and the state of the machine before and after."""

  def __init__(self, level: str, folder: pathlib.Path):
    self.level, self.users = level, set()
    secret = folder / 'answers.jsonl'
    secret.write_text('{"answer": "of another row"}')
    secret.chmod(0o644)
    temporary = folder / 'temporary'  # for the folders of the workers
    temporary.mkdir()
    name = f'grader-test-{os.getpid()}'
    with (
      socket.create_server(('127.0.0.1', 0)) as tcp,
      socket.socket(socket.AF_UNIX) as unix,
      pytest.MonkeyPatch.context() as patch,
    ):
      unix.bind('\0' + name)
      unix.listen()
      patch.setattr(tempfile, 'tempdir', str(temporary))
      patch.setattr(
        isolation,
        'unavailable_reasons',
        lambda: dict.fromkeys(LEVELS[LEVELS.index(level) + 1 :], 'not for this test'),
      )
      self.item = {
        'trainer': os.getpid(),
        'port': tcp.getsockname()[1],
        'path': str(secret),
        'name': name,
        'home': os.path.expanduser('~'),
      }
      self.before = process_state()
      with concurrent.futures.ThreadPoolExecutor(4) as pool:
        self.grades = dict(zip(ATTACKS, pool.map(self.attack, ATTACKS)))
      self.after = process_state()
    self.remaining_processes = processes_of(str(temporary), self.users)
    self.remaining_files = [str(path) for path in temporary.rglob('*')]

  def attack(self, name: str):
    """Returns the grades of an attack, and of a harmless call to the same grader after it."""
    body, expected = ATTACKS[name]
    is_timeout = expected == 'timeout'
    source = 'def grade(sample, item):\n  if item.get("harmless"): return 0.75\n' + ''.join(
      f'  {line}\n' for line in body.splitlines()
    )
    limits = graders.SandboxConfig(
      time_limit_seconds=0.5 if is_timeout else 5, memory_limit_mb=512, disk_limit_mb=4
    )
    grader = graders.make(
      {'type': 'python', 'name': 'x', 'source': source}, sandbox=limits, ungradable_reward=-1.0
    )
    try:
      first, second = grader.many([(self.item, {}), ({'harmless': True}, {})])
      self.users |= {1_900_000_000 + child for child in children()} if ROOT else set()
      assert grader.isolation == self.level
      return first, second
    finally:
      grader.close()


@pytest.fixture(scope='module', params=LEVELS)
def results(request, tmp_path_factory):
  if not LINUX:
    pytest.skip('the levels are those of Linux')
  if isolation.unavailable_reasons()[request.param]:
    pytest.skip(isolation.unavailable_reasons()[request.param])
  return Results(request.param, tmp_path_factory.mktemp('sandbox'))


def outcome(grade):
  if grade.reward is not None and not grade.errors:
    return grade.reward
  if grade.reward == -1.0 and grade.errors.get('python_grader_runtime_error') is True:
    return 'raised'
  assert grade.reward is None and grade.errors['python_grader_server_error'] is True
  return grade.errors['python_grader_server_error_type']


def test_attacks_are_at_least_25_and_differ():
  assert len(ATTACKS) >= 25 and len({body for body, _ in ATTACKS.values()}) == len(ATTACKS)


def test_an_attack_affects_only_its_own_grade(results):
  offenders = []
  for name, (first, second) in results.grades.items():
    expected = ATTACKS[name][1]
    if isinstance(expected, dict):
      expected = expected.get(results.level)  # None: the level does not prevent it, see pool.py
    if expected is not None:
      expected = expected if isinstance(expected, tuple) else (expected,)
      if outcome(first) not in expected:
        offenders.append(f'{name}: {first}, need {expected}')
    if second.reward != 0.75:
      offenders.append(f'{name}: then a harmless call gives {second}')
  assert not offenders


def test_no_process_remains(results):
  assert results.remaining_processes == []
  assert results.after['children'] == results.before['children']


def test_no_file_remains(results):
  assert results.remaining_files == []


def test_the_trainer_process_is_unchanged(results):
  assert {name for name in results.before if results.before[name] != results.after[name]} == set()


# ---------------------------------------------------------------- levels


def test_the_strongest_available_level_is_used(monkeypatch):
  for count, level in enumerate(isolation.LEVELS):
    absent = dict.fromkeys(isolation.LEVELS[count + 1 :], 'absent')
    monkeypatch.setattr(isolation, 'unavailable_reasons', lambda absent=absent: absent)
    assert graders.isolation_level() == level


def test_a_weaker_level_than_required_is_refused_with_a_remedy(monkeypatch):
  monkeypatch.setattr(
    isolation,
    'unavailable_reasons',
    lambda: {'namespace': 'unshare: Operation not permitted', 'landlock': '', 'rlimits': ''},
  )
  grader_json = {'type': 'python', 'name': 'x', 'source': 'def grade(sample, item):\n  return 1.0'}
  with pytest.raises(ValueError) as caught:
    graders.make(grader_json, sandbox=graders.SandboxConfig(require='namespace'))
  message = str(caught.value)
  assert "sandbox.require='namespace', and this machine offers 'landlock'" in message
  assert 'unshare: Operation not permitted' in message and "sandbox.require='landlock'" in message
  graders.make(grader_json, sandbox=graders.SandboxConfig(require='landlock')).close()


def test_the_level_without_isolation_still_grades(monkeypatch):
  monkeypatch.setattr(
    isolation, 'unavailable_reasons', lambda: dict.fromkeys(isolation.LEVELS[1:], 'absent')
  )
  start = time.monotonic()
  source = 'def grade(sample, item):\n  while item["n"] == 1: pass\n  return item["n"]'
  grader = graders.make(
    {'type': 'python', 'name': 'x', 'source': source},
    sandbox=graders.SandboxConfig(require='none', time_limit_seconds=0.5),
  )
  assert [grade.reward for grade in grader.many([({'n': n}, {}) for n in range(3)])] == [0, None, 2]
  grader.close()
  assert time.monotonic() - start < 10
