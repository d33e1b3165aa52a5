"""Isolation of a worker process: user id, namespaces, read-only root, resource limits, seccomp.

Standard library only, because it runs inside the worker. The levels, each with all restrictions of
the levels below it:

  namespace  own PID, mount, IPC, UTS and network namespaces. The root contains the interpreter,
             its packages and the system's libraries, read-only, and one writable folder in memory
             whose size is the disk limit. No /proc. When the first process of the PID namespace
             ends, the kernel kills all others.
  landlock   the same files by a Landlock ruleset, on the machine's own root; no signals outward.
  rlimits    resource limits; an own user id if the trainer is root; no new privileges; a filter
             of system calls without sockets, ptrace, mounts and namespaces.
  none       a process of its own.
"""

import ctypes
import os
import resource
import signal
import site
import sys

import worker_syscalls as syscalls

LEVELS = ('none', 'rlimits', 'landlock', 'namespace')
MAX_PROCESSES, MAX_OPEN_FILES = 64, 256
FIRST_USER_ID = 1_900_000_000  # plus the worker's process id: a user id that no one else has

NEW_MOUNT, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_RECURSIVE, MS_PRIVATE = 2, 4, 0x1000, 0x4000, 0x40000
PARENT_DEATH_SIGNAL, DUMPABLE, KEEP_CAPABILITIES, SUBREAPER = 1, 4, 8, 36  # prctl
CAPABILITY_READ_SEARCH = 1 << 2

libc = syscalls.libc


def before_fork(level: str) -> None:
  """Prepares the supervisor, so that it can kill the child it forks next and all descendants."""
  if not sys.platform.startswith('linux'):
    return
  syscalls.check(libc.prctl(SUBREAPER, 1, 0, 0, 0), 'prctl')
  if level != 'namespace' or libc.unshare(NEW_PID) == 0:
    return
  user, group = os.geteuid(), os.getegid()
  syscalls.check(libc.unshare(NEW_USER | NEW_PID), 'unshare a user and a PID namespace')
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{user} {user} 1'),
    ('gid_map', f'{group} {group} 1'),
  ):
    with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
      file.write(text)


def new_user_id() -> int | None:
  """Returns the user id for the processes that this one forks; None: no other can be set."""
  if os.geteuid() != 0 or not sys.platform.startswith('linux'):
    return None
  user = FIRST_USER_ID + os.getpid()
  with open('/proc/self/uid_map', encoding='ascii') as file:
    ranges = [tuple(map(int, line.split())) for line in file]
  return user if any(first <= user < first + count for first, _, count in ranges) else None


def make_folders(folder: str, user: int | None) -> str:
  """Creates in folder `work`, writable by the worker, and `root`; returns the path of work."""
  work = os.path.join(folder, 'work')
  os.mkdir(os.path.join(folder, 'root'))
  os.mkdir(work, 0o700)
  if user is not None:
    os.chmod(folder, 0o711)
    os.chown(work, user, user)
  return work


def enter(level: str, work: str, limits: dict[str, int], user: int | None) -> None:
  """Isolates this process irrevocably. work becomes its current directory.

  Args:
    level: of LEVELS.
    work: the only writable folder; exists, and belongs to user.
    limits: {'AS': bytes, 'FSIZE': bytes}; at level namespace FSIZE holds for all files together.
    user: from new_user_id(), called in the parent.

  Raises:
    OSError: this machine does not offer the level.
  """
  os.chdir(work)
  if level == 'none':
    return
  is_linux = sys.platform.startswith('linux')
  if is_linux:
    _die_with_parent()
    _set_first_oom_victim()
    syscalls.check(libc.prctl(SUBREAPER, 1, 0, 0, 0), 'prctl')  # orphans become its own children
  limits = {'CORE': 0, 'NOFILE': MAX_OPEN_FILES, **_process_limit(level, user), **limits}
  paths = readable_paths()
  if level == 'namespace':
    syscalls.check(libc.unshare(NEW_MOUNT | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP), 'unshare')
    _enter_new_root(paths, work, limits['FSIZE'])
  _set_resource_limits(limits)
  if not is_linux:
    return
  _drop_privileges(
    user, keep_read=level != 'namespace' and not _are_open_to_all_users([*paths, work])
  )
  _die_with_parent()  # the change of user has cancelled it
  syscalls.no_new_privileges()
  if level == 'landlock' or (level == 'namespace' and syscalls.landlock_version()):
    syscalls.landlock(paths, work)
  syscalls.filter_system_calls(required=level == 'landlock')
  syscalls.check(libc.prctl(DUMPABLE, 0, 0, 0, 0), 'prctl')  # no ptrace by the processes it forks


def readable_paths() -> list[str]:
  """Returns what a grader may read: interpreter, packages, libraries, nltk data, devices."""
  prefixes = {sys.prefix, sys.base_prefix}
  paths = [
    os.path.dirname(os.__file__),
    *site.getsitepackages(),
    sys.executable,
    getattr(sys, '_base_executable', sys.executable),
    '/etc/ld.so.cache',
    '/etc/localtime',
    '/lib',
    '/lib64',
    '/usr/lib',
    '/usr/lib64',
    '/usr/local/lib',
    '/usr/share/zoneinfo',
    '/usr/share/nltk_data',
    '/usr/local/share/nltk_data',
  ]
  paths += [
    os.path.join(prefix, name)
    for prefix in sorted(prefixes)
    for name in ('lib', 'lib64', 'pyvenv.cfg', 'nltk_data', 'share/nltk_data')
  ]
  for variable in ('LD_LIBRARY_PATH', 'NLTK_DATA'):
    paths += [path for path in os.environ.get(variable, '').split(os.pathsep) if path]
  devices = [f'/dev/{name}' for name in ('null', 'zero', 'full', 'random', 'urandom')]
  existing = {os.path.abspath(path) for path in (*paths, *devices) if os.path.exists(path)}
  return sorted(existing - {'/', os.path.expanduser('~')})


def _are_open_to_all_users(paths: list[str]) -> bool:
  """Returns whether every folder above paths may be entered by any user."""
  folders = {parent for path in paths for parent in _parents(os.path.realpath(path))}
  return all(os.stat(folder).st_mode & 1 for folder in folders)


def _parents(path: str):
  """Yields the folders above path, the nearest first, / last."""
  while path != '/':
    path = os.path.dirname(path)
    yield path


def _set_resource_limits(limits: dict[str, int]) -> None:
  """Sets resource limits, {'AS': bytes, ...}, never above the present ones."""
  for name, value in limits.items():
    number = getattr(resource, 'RLIMIT_' + name)
    hard = resource.getrlimit(number)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(number, (value, value))


def _die_with_parent() -> None:
  syscalls.check(libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0), 'prctl')


def _set_first_oom_victim() -> None:
  """Makes the kernel kill the grader before the trainer when memory runs out."""
  try:
    with open('/proc/self/oom_score_adj', 'w', encoding='ascii') as file:
      file.write('1000')
  except OSError:
    pass


def _process_limit(level: str, user: int | None) -> dict[str, int]:
  """Returns the limit of processes; the kernel counts all of the user's, threads included."""
  if not sys.platform.startswith('linux'):
    return {}
  if level == 'namespace' or user is not None:
    return {'NPROC': MAX_PROCESSES}
  running = 0
  for name in filter(str.isdigit, os.listdir('/proc')):
    try:
      if os.stat(f'/proc/{name}').st_uid == os.getuid():
        running += len(os.listdir(f'/proc/{name}/task'))
    except OSError:
      pass  # the process has ended
  return {'NPROC': running + MAX_PROCESSES}


def _drop_privileges(user: int | None, keep_read: bool) -> None:
  """Gives up the privileges of root.

  keep_read: keeps the capability to read what only root may read, because the interpreter is
  installed there; Landlock then restricts what can be read with it.
  """
  capabilities = CAPABILITY_READ_SEARCH if keep_read and user is not None else 0
  if user is not None:
    syscalls.check(libc.prctl(KEEP_CAPABILITIES, 1, 0, 0, 0), 'prctl')
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
  header = (ctypes.c_uint32 * 2)(0x20080522, 0)
  # effective, permitted, inheritable; then their upper 32 bits
  sets = (ctypes.c_uint32 * 6)(capabilities, capabilities, 0, 0, 0, 0)
  syscalls.check(libc.capset(header, sets), 'capset')


def _enter_new_root(paths: list[str], work: str, disk_bytes: int) -> None:
  """Changes the root, in this process's own mount namespace, to one with paths and work only."""
  root = os.path.join(os.path.dirname(work), 'root')
  user = os.stat(work)
  _mount(None, '/', None, MS_RECURSIVE | MS_PRIVATE)
  _mount('tmpfs', root, 'tmpfs', MS_NOSUID | MS_NODEV, 'size=4m,mode=755')
  mounted: list[str] = []
  for path in paths:
    _bind_mount(path, root, mounted)
  os.makedirs(root + work)
  os.makedirs(root + '/dev', exist_ok=True)
  os.symlink(work, root + '/dev/shm')
  for folder in (work, *_parents(work)):
    os.chmod(root + folder, 0o755)
  # struct mount_attr: set read-only and no set-uid, for every mount below root.
  attributes = (ctypes.c_uint64 * 4)(1 | 2, 0, 0, 0)
  syscalls.check(libc.syscall(442, -100, root.encode(), 0x8000, attributes, 32), 'mount_setattr')
  _mount(
    'tmpfs',
    root + work,
    'tmpfs',
    MS_NOSUID | MS_NODEV,
    f'size={disk_bytes},nr_inodes=65536,mode=700',
  )
  os.chown(root + work, user.st_uid, user.st_gid)
  os.chdir(root)
  syscalls.check(libc.pivot_root(b'.', b'.'), 'pivot_root')
  syscalls.check(libc.umount2(b'.', 2), 'umount2')
  os.chdir(work)


def _bind_mount(path: str, root: str, mounted: list[str]) -> None:
  """Mounts path at the same place under root; a symbolic link on the way is created as one."""
  for parent in [*reversed(list(_parents(path)))][1:] + [path]:
    if any(parent == other or parent.startswith(other + '/') for other in mounted):
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
    _bind_mount(target + rest, root, mounted)
    return
  if any(path == other or path.startswith(other + '/') for other in mounted):
    return
  if os.path.isdir(path):
    os.makedirs(root + path, exist_ok=True)
  else:
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    with open(root + path, 'ab'):
      pass
  _mount(path, root + path, None, MS_BIND | MS_RECURSIVE)
  mounted.append(path)


def _mount(source, target, kind, flags, options=None) -> None:
  encoded = [text and text.encode() for text in (source, target, kind)]
  syscalls.check(
    libc.mount(*encoded, ctypes.c_ulong(flags), options and options.encode()), f'mount {target}'
  )
