"""Asks the kernel to shut a process in; runs inside the worker, and as a file tells what works.

Standard library alone: worker.py imports it where nothing of this package can be seen.
The levels, each with all that is below it:

  namespace  PID, mount, IPC, UTS and network namespaces of its own. Its root holds the
             interpreter, its packages and the system's libraries, read-only, and one writable
             folder in memory whose size is the disk limit. No /proc. When its first process
             ends, the kernel ends all.
  landlock   the same files by a Landlock ruleset, on the machine's own root; no signals out.
  rlimits    resource limits; a user id of its own where the trainer is root; no new privileges;
             a filter of system calls without sockets, ptrace, mounts and namespaces.
  none       a process of its own.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import tempfile

sys.path.append(os.path.dirname(os.path.abspath(__file__)))
import worker_rules as rules

sys.path.pop()

LEVELS = ('none', 'rlimits', 'landlock', 'namespace')
PROCESSES, OPEN_FILES = 64, 256
FIRST_USER_ID = 1_900_000_000  # that of a worker is this and its process id: nobody else's

NEW_MOUNT, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_RECURSIVE, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
PARENT_DEATH_SIGNAL, DUMPABLE, KEEP_CAPABILITIES, SUBREAPER = 1, 4, 8, 36
CAPABILITY_READ_SEARCH = 1 << 2

libc = rules.libc


def before_fork(level: str) -> None:
  """Prepares the guard, so that what it forks next, and all below that, can be ended by it."""
  if not sys.platform.startswith('linux'):
    return
  rules.check(libc.prctl(SUBREAPER, 1, 0, 0, 0), 'prctl')
  if level != 'namespace' or libc.unshare(NEW_PID) == 0:
    return
  user, group = os.geteuid(), os.getegid()
  rules.check(libc.unshare(NEW_USER | NEW_PID), 'unshare a user and a PID namespace')
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{user} {user} 1'),
    ('gid_map', f'{group} {group} 1'),
  ):
    with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
      file.write(text)


def user_id() -> int | None:
  """Returns the id that what this process forks shall have; None: it cannot give another."""
  if os.geteuid() != 0 or not sys.platform.startswith('linux'):
    return None
  wanted = FIRST_USER_ID + os.getpid()
  with open('/proc/self/uid_map', encoding='ascii') as file:
    spans = [tuple(map(int, line.split())) for line in file]
  return wanted if any(first <= wanted < first + count for first, _, count in spans) else None


def enter(level: str, work: str, limits: dict[str, int], user: int | None) -> None:
  """Shuts this process in for good. work becomes its current directory.

  Args:
    level: of LEVELS.
    work: the folder that it may write; exists, and belongs to user.
    limits: {'AS': bytes, 'FSIZE': bytes}; at level namespace all files together have FSIZE.
    user: from user_id(), asked in the parent.

  Raises:
    OSError: the level cannot be had here.
  """
  os.chdir(work)
  if level == 'none':
    return
  linux = sys.platform.startswith('linux')
  if linux:
    _die_with_parent()
    _first_to_go()
    rules.check(libc.prctl(SUBREAPER, 1, 0, 0, 0), 'prctl')  # orphans become its own children
  limits = {'CORE': 0, 'NOFILE': OPEN_FILES, **_process_limit(level, user), **limits}
  paths = rules.readable()
  if level == 'namespace':
    rules.check(libc.unshare(NEW_MOUNT | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP), 'unshare')
    _new_root(paths, work, limits['FSIZE'])
  restrict(limits)
  if not linux:
    return
  _drop(user, keep=level != 'namespace' and not rules.open_to_all([*paths, work]))
  _die_with_parent()  # a change of user has cancelled it
  rules.no_new_privileges()
  if level == 'landlock' or (level == 'namespace' and rules.landlock_version()):
    rules.landlock(paths, work)
  rules.filter_system_calls(required=level == 'landlock')
  rules.check(libc.prctl(DUMPABLE, 0, 0, 0, 0), 'prctl')  # no ptrace from what it forks


def restrict(limits: dict[str, int]) -> None:
  """Sets resource limits, {'AS': bytes, ...}, never above those that hold already."""
  for name, value in limits.items():
    which = getattr(resource, 'RLIMIT_' + name)
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _die_with_parent() -> None:
  rules.check(libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), 'prctl')


def _first_to_go() -> None:
  """Makes the kernel, when memory runs out, end the grader before the trainer."""
  try:
    with open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
      file.write('1000')
  except OSError:
    pass


def _process_limit(level: str, user: int | None) -> dict[str, int]:
  """Returns the limit of processes; what counts is all that the user has, threads included."""
  if not sys.platform.startswith('linux'):
    return {}
  if level == 'namespace' or user is not None:
    return {'NPROC': PROCESSES}
  running = 0
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      if os.stat(f'/proc/{name}').st_uid == os.getuid():
        running += len(os.listdir(f'/proc/{name}/task'))
    except OSError:
      pass  # it has ended
  return {'NPROC': running + PROCESSES}


def _drop(user: int | None, keep: bool) -> None:
  """Gives up the rights of root.

  keep: one right stays, to read what only root may, because the interpreter lies there; what
  can be read with it is left to Landlock.
  """
  kept = CAPABILITY_READ_SEARCH if keep and user is not None else 0
  if user is not None:
    rules.check(libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0), 'prctl')
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable, twice
  rules.check(libc.capset(header, sets), 'capset')


def _new_root(paths: list[str], work: str, disk_bytes: int) -> None:
  """Gives this process, alone in its mount namespace, a root with paths and work in it."""
  root = os.path.join(os.path.dirname(work), 'root')
  user = os.stat(work)
  _mount(None, '/', None, MS_RECURSIVE | MS_PRIVATE)
  _mount('tmpfs', root, 'tmpfs', MS_NOSUID | MS_NODEV, 'size=4m,mode=755')
  revealed = []
  for path in paths:
    _reveal(path, root, revealed)
  os.makedirs(root + work)
  os.makedirs(root + '/dev', exist_ok=True)
  os.symlink(work, root + '/dev/shm')
  for folder in (work, *rules.parents(work)):
    os.chmod(root + folder, 0o755)
  # struct mount_attr: set read-only and no set-uid; for all that is mounted below root.
  attributes = (ctypes.c_uint64 * 4)(1 | 2, 0, 0, 0)
  rules.check(libc.syscall(442, -100, root.encode(), 0x8000, attributes, 32), 'mount_setattr')
  _mount(
    'tmpfs',
    root + work,
    'tmpfs',
    MS_NOSUID | MS_NODEV,
    f'size={disk_bytes},nr_inodes=65536,mode=700',
  )
  os.chown(root + work, user.st_uid, user.st_gid)
  os.chdir(root)
  rules.check(libc.pivot_root(b'.', b'.'), 'pivot_root')
  rules.check(libc.umount2(b'.', 2), 'umount2')
  os.chdir(work)


def _reveal(path: str, root: str, revealed: list[str]) -> None:
  """Shows path under root, read from where it is; a symbolic link on the way stays one."""
  for parent in [*reversed(list(rules.parents(path)))][1:] + [path]:
    if any(parent == other or parent.startswith(other + '/') for other in revealed):
      if not os.path.islink(parent):
        continue
      target = os.path.realpath(parent)
    elif os.path.islink(parent):
      target = os.path.realpath(parent)
      if not os.path.lexists(root + parent):
        os.makedirs(os.path.dirname(root + parent), exist_ok=True)
        os.symlink(target, root + parent)
    else:
      continue
    rest = path[len(parent) :]
    _reveal(target + rest, root, revealed)
    return
  if any(path == other or path.startswith(other + '/') for other in revealed):
    return
  if os.path.isdir(path):
    os.makedirs(root + path, exist_ok=True)
  else:
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    with open(root + path, 'ab'):
      pass
  _mount(path, root + path, None, MS_BIND | MS_RECURSIVE)
  revealed.append(path)


def _mount(source, target, kind, flags, options=None) -> None:
  encoded = [text and text.encode() for text in (source, target, kind)]
  rules.check(
    libc.mount(*encoded, ctypes.c_ulong(flags), options and options.encode()), f'mount {target}'
  )


def probe() -> dict[str, str]:
  """Returns, for each level, '' if it can be had here, or why not; tries each in a process."""
  return {level: _why_not(level) for level in LEVELS[1:]}


def _why_not(level: str) -> str:
  folder = tempfile.mkdtemp(prefix='grader-')
  try:
    answer, ours = os.pipe()
    guard = os.fork()
    if guard == 0:
      _say(ours, lambda: _try(level, folder, ours))
    os.close(ours)
    with open(answer, encoding='utf-8') as file:
      said = file.read()
    os.waitpid(guard, 0)
    return '' if said == 'good' else said or 'the process that tried it died'
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _say(descriptor: int, doing) -> None:
  """Does it, ends this process, and writes the exception if there is one."""
  try:
    doing()
  except BaseException as error:
    os.write(descriptor, f'{type(error).__name__}: {error}'.encode())
  finally:
    os._exit(0)


def _try(level: str, folder: str, descriptor: int) -> None:
  user = user_id()
  work = make_folders(folder, user)
  before_fork(level)
  inner = os.fork()
  if inner == 0:

    def inside():
      enter(level, work, {'AS': 1 << 31, 'FSIZE': 1 << 24}, user)
      with open(os.__file__, 'rb'), open('try', 'wb'):
        os.write(descriptor, b'good')

    _say(descriptor, inside)
  os.waitpid(inner, 0)


def make_folders(folder: str, user: int | None) -> str:
  """Makes in folder the one that a worker writes in, for user, and one for a root; returns it."""
  work = os.path.join(folder, 'work')
  os.mkdir(os.path.join(folder, 'root'))
  os.mkdir(work, 0o700)
  if user is not None:
    os.chmod(folder, 0o711)
    os.chown(work, user, user)
  return work


if __name__ == '__main__':
  print(json.dumps(probe()))
