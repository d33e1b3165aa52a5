"""Isolation levels: which of them this machine offers, and whether that meets a requirement.

What each level restricts is described in worker_isolation.py. Graders run at the strongest level
that works here, which is found once, by trying each level in a process (worker_probe.py).
"""

import functools
import json
import pathlib
import subprocess
import sys

LEVELS = ('none', 'rlimits', 'landlock', 'namespace')  # from the weakest to the strongest
PROBE = pathlib.Path(__file__).with_name('worker_probe.py')
REMEDIES = {
  'rlimits': 'run on Linux or macOS',
  'landlock': 'run a Linux of 5.13 or later with landlock among the values of the kernel '
  'parameter lsm=',
  'namespace': 'run as root with CAP_SYS_ADMIN, or allow user namespaces '
  '(sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, '
  'kernel.apparmor_restrict_unprivileged_userns=0; in a container also its seccomp '
  'profile), on Linux 5.12 or later',
}


@functools.cache
def unavailable_reasons() -> dict[str, str]:
  """Returns, for each level but none, why this machine does not offer it; '' if it does."""
  try:
    process = subprocess.run(
      [sys.executable, '-s', '-P', str(PROBE)],
      capture_output=True,
      text=True,
      timeout=60,
      check=True,
      stdin=subprocess.DEVNULL,
    )
    return json.loads(process.stdout)
  except (OSError, subprocess.SubprocessError, ValueError) as error:
    message = getattr(error, 'stderr', '') or str(error)
    return dict.fromkeys(LEVELS[1:], f'trying it failed: {str(message).strip()[-300:]}')


def isolation_level() -> str:
  """Returns the strongest level of LEVELS that this machine offers; graders run at it."""
  return max((level for level in LEVELS if not unavailable_reasons().get(level)), key=LEVELS.index)


def problems(required: str) -> list[str]:
  """Returns what this machine lacks for the required level; [] if nothing."""
  level = isolation_level()
  if LEVELS.index(level) >= LEVELS.index(required):
    return []
  return [
    f'require={required!r}, and this machine offers {level!r} '
    f'({unavailable_reasons()[required]}): {REMEDIES[required]}; or set '
    f'sandbox.require={level!r}, if that protects enough'
  ]
