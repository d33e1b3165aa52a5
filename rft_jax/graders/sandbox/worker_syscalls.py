"""Landlock rulesets and a seccomp filter: what a sandboxed process may open, connect to and call.

Standard library only, because it runs inside the worker. A denied system call fails with EPERM.
"""

import ctypes
import os
import platform
import stat
import struct
import sys

libc = ctypes.CDLL(None, use_errno=True)

# Landlock. The numbers of its system calls are the same on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the others apply to folders only
RIGHT_COUNTS = {1: 13, 2: 14, 3: 15, 4: 15}  # by version: number of file rights; 16 from 5 on
TCP = 0b11  # to bind and to connect, from version 4 on
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # scopes: not to reach these outside the domain, from version 6 on

# prctl
NO_NEW_PRIVILEGES, SECCOMP = 38, 22

# Seccomp. Calls that only root may make are denied too: a user namespace has a root of its own.
ARCHITECTURES = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
DENIED_CALLS = {  # name: numbers on the architectures, in the order of ARCHITECTURES
  'socket': (41, 198),
  'ptrace': (101, 117),
  'process_vm_readv': (310, 270),
  'process_vm_writev': (311, 271),
  'kcmp': (312, 272),
  'mount': (165, 40),
  'umount2': (166, 39),
  'pivot_root': (155, 41),
  'chroot': (161, 51),
  'unshare': (272, 97),
  'setns': (308, 268),
  'add_key': (248, 217),
  'request_key': (249, 218),
  'keyctl': (250, 219),
  'perf_event_open': (298, 241),
  'bpf': (321, 280),
  'userfaultfd': (323, 282),
  'open_by_handle_at': (304, 265),
  'shmget': (29, 194),  # memory that no limit counts
  'msgget': (68, 186),
  'init_module': (175, 105),
  'finit_module': (313, 273),
  'kexec_load': (246, 104),
  'swapon': (167, 224),
  'reboot': (169, 142),
}
DENIED_CALLS_OF_ALL_ARCHITECTURES = {
  'io_uring_setup': 425,  # io_uring opens sockets past this filter
  'io_uring_enter': 426,
  'io_uring_register': 427,
  'open_tree': 428,
  'move_mount': 429,
  'fsopen': 430,
  'fsconfig': 431,
  'fsmount': 432,
  'fspick': 433,
  'mount_setattr': 442,
  'pidfd_getfd': 438,
  'process_madvise': 440,
}
CLONE = {'x86_64': 56, 'aarch64': 220}
PRLIMIT = {'x86_64': 302, 'aarch64': 261}
CLONE3 = 435
NEW_NAMESPACES = 0x7E020000  # flags of clone
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NOT_PERMITTED, NOT_IMPLEMENTED = 1, 38  # errno


def check(result: int, what: str) -> int:
  """Returns the result of a libc call; raises OSError from errno if it is negative."""
  if result < 0:
    error = ctypes.get_errno()
    raise OSError(error, f'{what}: {os.strerror(error)}')
  return result


def no_new_privileges() -> None:
  """Disables set-uid for this process and all its descendants."""
  check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), 'prctl')


# --- Landlock -------------------------------------------------------------------------------------
def landlock_version() -> int:
  """Returns the Landlock version (ABI) of the kernel; 0: none."""
  if not sys.platform.startswith('linux'):
    return 0
  return max(0, libc.syscall(CREATE_RULESET, None, 0, 1))


def landlock(paths: list[str], work: str) -> None:
  """Allows reading and executing below paths, all access below work; no TCP, no signals outward.

  Raises:
    OSError: the kernel has no Landlock.
  """
  version = check(libc.syscall(CREATE_RULESET, None, 0, 1), 'Landlock')
  all_rights = (1 << RIGHT_COUNTS.get(version, 16)) - 1
  network = TCP if version >= 4 else 0
  scopes = ABSTRACT_SOCKETS | SIGNALS if version >= 6 else 0
  ruleset = _ruleset(all_rights, network, scopes, version)
  try:
    for path in paths:
      _allow(ruleset, path, all_rights & (EXECUTE | READ_FILE | READ_DIR))
    _allow(ruleset, work, all_rights)
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), 'landlock_restrict_self')
  finally:
    os.close(ruleset)


def deny_signals_to_ancestors() -> None:
  """Keeps this process, already in a sandbox, from signalling the processes that started it."""
  version = landlock_version()
  if version >= 6:
    ruleset = _ruleset(0, 0, SIGNALS, version)
    check(libc.syscall(RESTRICT_SELF, ruleset, 0), 'landlock_restrict_self')
    os.close(ruleset)


def _ruleset(files: int, network: int, scopes: int, version: int) -> int:
  size = 24 if version >= 6 else 16 if version >= 4 else 8
  attributes = struct.pack('<QQQ', files, network, scopes)[:size]
  return check(
    libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0), 'landlock_create_ruleset'
  )


def _allow(ruleset: int, path: str, rights: int) -> None:
  descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
  try:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISDIR(mode):
      rights &= FILE_RIGHTS
    if stat.S_ISCHR(mode):
      rights |= WRITE_FILE
    check(
      libc.syscall(ADD_RULE, ruleset, 1, struct.pack('<Qi', rights, descriptor), 0),
      f'landlock_add_rule {path}',
    )
  finally:
    os.close(descriptor)


# --- seccomp --------------------------------------------------------------------------------------
def filter_system_calls(required: bool) -> None:
  """Denies DENIED_CALLS, namespaces by clone, and limits of other processes.

  Raises:
    OSError: required, and this kernel or processor has no such filter.
  """
  machine = platform.machine()
  if machine not in ARCHITECTURES:
    if required:
      raise OSError(NOT_IMPLEMENTED, f'no filter of system calls is known for {machine}')
    return
  program = b''.join(struct.pack('<HBBI', *step) for step in _filter_program(machine))
  buffer = ctypes.create_string_buffer(program)
  # struct sock_fprog: the number of instructions, padding, the address
  descriptor = struct.pack('<HxxxxxxQ', len(program) // 8, ctypes.addressof(buffer))
  result = libc.prctl(SECCOMP, 2, descriptor, 0, 0)
  if required:
    check(result, 'a filter of system calls (seccomp)')


def _filter_program(machine: str) -> list[tuple[int, int, int, int]]:
  """Returns the BPF instructions (code, jump if true, jump if false, value).

  They read struct seccomp_data: the call's number at 0, the architecture at 4, arguments from 16.
  """
  fail, not_implemented = FAIL | NOT_PERMITTED, FAIL | NOT_IMPLEMENTED
  column = list(ARCHITECTURES).index(machine)
  steps = [
    (LOAD, 0, 0, 4),
    (EQUAL, 1, 0, ARCHITECTURES[machine]),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, 0),
    (AT_LEAST, 0, 1, 0x40000000),
    (RETURN, 0, 0, not_implemented),
  ]
  for number in (
    *(numbers[column] for numbers in DENIED_CALLS.values()),
    *DENIED_CALLS_OF_ALL_ARCHITECTURES.values(),
  ):
    steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, fail)]
  # clone3 passes its flags by address, which a filter cannot read; libraries fall back to clone
  steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, not_implemented)]
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
