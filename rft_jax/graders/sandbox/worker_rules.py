"""What a grader may read and ask of the kernel: Landlock rulesets, a filter of system calls.

Standard library alone, as it runs inside the worker. What is denied answers "not permitted".
"""

import ctypes
import os
import platform
import site
import stat
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)

# Landlock. Numbers of its system calls are the same on every architecture.
CREATE, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the others make sense for folders alone
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version: how many rights it knows; 16 from 5 on
TCP = 0b11  # to bind and to connect, from version 4 on
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # what a domain may not reach outside itself, from version 6 on

NO_NEW_PRIVILEGES, SECCOMP = 38, 22

# Numbers of system calls. What only root may do is here too: a user namespace has its own root.
SAME_EVERYWHERE = (
  425,
  426,
  427,  # io_uring, which opens sockets past this filter
  428,
  429,
  430,
  431,
  432,
  433,
  442,
  438,
  440,
)  # mounts; others' descriptors
DENIED = {
  # socket; ptrace, process_vm_readv and _writev, kcmp; mount, umount2, pivot_root, chroot;
  # unshare, setns; keys (3); perf_event_open, bpf, userfaultfd, open_by_handle_at; shmget
  # (memory that no limit counts), msgget; init_module, finit_module, kexec_load, swapon, reboot
  'x86_64': (
    41,
    101,
    310,
    311,
    312,
    165,
    166,
    155,
    161,
    272,
    308,
    248,
    249,
    250,
    298,
    321,
    323,
    304,
    29,
    68,
    175,
    313,
    246,
    167,
    169,
  ),
  'aarch64': (
    198,
    117,
    270,
    271,
    272,
    40,
    39,
    41,
    51,
    97,
    268,
    217,
    218,
    219,
    241,
    280,
    282,
    265,
    194,
    186,
    105,
    273,
    104,
    224,
    142,
  ),
}
ARCHITECTURE = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
CLONE = {'x86_64': 56, 'aarch64': 220}
PRLIMIT = {'x86_64': 302, 'aarch64': 261}
CLONE3 = 435
NEW_NAMESPACES = 0x7E020000  # flags of clone
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NOT_PERMITTED, NOT_IMPLEMENTED = 1, 38


def check(result: int, what: str) -> int:
  """Returns what a call of libc gave, or raises its OSError."""
  if result < 0:
    error = ctypes.get_errno()
    raise OSError(error, f'{what}: {os.strerror(error)}')
  return result


def no_new_privileges() -> None:
  """Makes set-uid programs ordinary ones, for this process and all that it starts."""
  check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), 'prctl')


def readable() -> list[str]:
  """Returns what a grader may read: interpreter, packages, libraries, data of nltk, devices."""
  prefixes = {sys.prefix, sys.base_prefix}
  named = [
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
  named += [
    os.path.join(prefix, name)
    for prefix in sorted(prefixes)
    for name in ('lib', 'lib64', 'pyvenv.cfg', 'nltk_data', 'share/nltk_data')
  ]
  for variable in ('LD_LIBRARY_PATH', 'NLTK_DATA'):
    named += [path for path in os.environ.get(variable, '').split(os.pathsep) if path]
  devices = [f'/dev/{name}' for name in ('null', 'zero', 'full', 'random', 'urandom')]
  kept = {os.path.abspath(path) for path in (*named, *devices) if os.path.exists(path)}
  return sorted(kept - {'/', os.path.expanduser('~')})


def open_to_all(paths: list[str]) -> bool:
  """Returns whether any user can reach paths: every folder above them may be entered."""
  above = {parent for path in paths for parent in parents(os.path.realpath(path))}
  return all(os.stat(folder).st_mode & 1 for folder in above)


def parents(path: str):
  """Yields the folders above path, the nearest first, / the last."""
  while path != '/':
    path = os.path.dirname(path)
    yield path


def landlock_version() -> int:
  """Returns the version of Landlock that the kernel speaks; 0: none."""
  if not sys.platform.startswith('linux'):
    return 0
  return max(0, libc.syscall(CREATE, None, 0, 1))


def landlock(paths: list[str], work: str) -> None:
  """Leaves of the file system paths to read and run, and work; no TCP, no signals to outside.

  Raises:
    OSError: the kernel has no Landlock.
  """
  version = check(libc.syscall(CREATE, None, 0, 1), 'Landlock')
  every = (1 << RIGHTS.get(version, 16)) - 1
  ruleset = _ruleset(
    every, TCP if version >= 4 else 0, ABSTRACT_SOCKETS | SIGNALS if version >= 6 else 0, version
  )
  try:
    for path in paths:
      _allow(ruleset, path, every & (EXECUTE | READ_FILE | READ_DIR))
    _allow(ruleset, work, every)
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), 'landlock_restrict_self')
  finally:
    os.close(ruleset)


def no_signals_up() -> None:
  """Keeps this process, inside a sandbox already, from signalling those that it came from."""
  version = landlock_version()
  if version >= 6:
    ruleset = _ruleset(0, 0, SIGNALS, version)
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), 'landlock_restrict_self')
    os.close(ruleset)


def _ruleset(files: int, network: int, scopes: int, version: int) -> int:
  size = 24 if version >= 6 else 16 if version >= 4 else 8
  attributes = struct.pack('<QQQ', files, network, scopes)[:size]
  return check(
    libc.syscall(CREATE, attributes, ctypes.c_size_t(size), 0), 'landlock_create_ruleset'
  )


def _allow(ruleset: int, path: str, rights: int) -> None:
  descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
  try:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISDIR(mode):
      rights &= ON_FILES
    if stat.S_ISCHR(mode):
      rights |= WRITE_FILE
    check(
      libc.syscall(ADD_RULE, ruleset, 1, struct.pack('<Qi', rights, descriptor), 0),
      f'landlock_add_rule {path}',
    )
  finally:
    os.close(descriptor)


def filter_system_calls(required: bool) -> None:
  """Denies the system calls of DENIED, namespaces by clone, and limits of other processes.

  Raises:
    OSError: required, and this kernel or processor cannot.
  """
  machine = platform.machine()
  if machine not in DENIED:
    if required:
      raise OSError(NOT_IMPLEMENTED, f'no filter of system calls is known for {machine}')
    return
  program = b''.join(struct.pack('<HBBI', *step) for step in _program(machine))
  kept = ctypes.create_string_buffer(program)
  # struct sock_fprog: the number of steps, padding, the address
  descriptor = struct.pack('<HxxxxxxQ', len(program) // 8, ctypes.addressof(kept))
  result = libc.prctl(SECCOMP, 2, descriptor, 0, 0)
  if required:
    check(result, 'a filter of system calls (seccomp)')


def _program(machine: str) -> list[tuple[int, int, int, int]]:
  """Returns the steps (what, jump if true, jump if false, value).

  They read struct seccomp_data: the call's number at 0, the architecture at 4, arguments from 16.
  """
  fail, not_there = FAIL | NOT_PERMITTED, FAIL | NOT_IMPLEMENTED
  steps = [
    (LOAD, 0, 0, 4),
    (EQUAL, 1, 0, ARCHITECTURE[machine]),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, 0),
    (AT_LEAST, 0, 1, 0x40000000),
    (RETURN, 0, 0, not_there),
  ]
  for number in (*DENIED[machine], *SAME_EVERYWHERE):
    steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, fail)]
  # clone3 hides its flags behind an address; without it libraries take clone
  steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, not_there)]
  steps += [
    (EQUAL, 0, 4, CLONE[machine]),
    (LOAD, 0, 0, 16),
    (ANY_BIT, 0, 1, NEW_NAMESPACES),
    (RETURN, 0, 0, fail),
    (RETURN, 0, 0, ALLOW),
  ]
  steps += [
    (EQUAL, 0, 4, PRLIMIT[machine]),
    (LOAD, 0, 0, 16),
    (EQUAL, 1, 0, 0),
    (RETURN, 0, 0, fail),
    (RETURN, 0, 0, ALLOW),
  ]
  return steps + [(RETURN, 0, 0, ALLOW)]
