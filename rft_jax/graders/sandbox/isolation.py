"""How far this machine lets graders be shut in, and whether that is far enough.

worker_kernel.py says what each level holds. The strongest that works here is used; which that is
is found out once, by trying them in a process of its own.
"""

import functools
import json
import pathlib
import subprocess
import sys

LEVELS = ('none', 'rlimits', 'landlock', 'namespace')  # each stronger than the one before
KERNEL = pathlib.Path(__file__).with_name('worker_kernel.py')
WAYS_OUT = {
  'rlimits': 'run on Linux or macOS',
  'landlock': 'run a Linux of 5.13 or later with landlock among the values of the kernel '
  'parameter lsm=',
  'namespace': 'run as root with CAP_SYS_ADMIN, or allow user namespaces '
  '(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, '
  'kernel.apparmor_restrict_unprivileged_userns=0; in a container also its seccomp '
  'profile), on Linux 5.12 or later',
}


@functools.cache
def lacking() -> dict[str, str]:
  """Returns, for each level but none, why it cannot be had on this machine; '' if it can."""
  try:
    done = subprocess.run(
      [sys.executable, '-s', '-P', str(KERNEL)],
      capture_output=True,
      text=True,
      timeout=60,
      check=True,
      stdin=subprocess.DEVNULL,
    )
    return json.loads(done.stdout)
  except (OSError, subprocess.SubprocessError, ValueError) as error:
    said = getattr(error, 'stderr', '') or str(error)
    return dict.fromkeys(LEVELS[1:], f'trying it failed: {str(said).strip()[-300:]}')


def isolation_level() -> str:
  """Returns the strongest level of LEVELS that this machine offers; graders run at that."""
  return max((level for level in LEVELS if not lacking().get(level)), key=LEVELS.index)


def problems(required: str) -> list[str]:
  """Returns what is missing on this machine for a required level; [] if nothing."""
  level = isolation_level()
  if LEVELS.index(level) >= LEVELS.index(required):
    return []
  return [
    f'require={required!r}, and this machine offers {level!r} ({lacking()[required]}): '
    f'{WAYS_OUT[required]}; or set sandbox.require={level!r}, if that protects enough'
  ]
