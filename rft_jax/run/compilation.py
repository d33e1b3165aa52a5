"""Compilation of programs: JAX's cache on disk, compiling during loading, and their number.

Each program takes seconds to compile, so a run compiles them in its first step and none afterwards;
metrics.jsonl has the number of each step.
"""

import concurrent.futures
import contextlib
import hashlib
import os
import platform
from typing import Any

import jax
from jax import monitoring

from rft_jax import models, sharding
from rft_jax.run import startup

EVENT = '/jax/core/compile/backend_compile_duration'
_jax_flags: Any = jax.config  # which does not declare its flags as attributes
_events: list[float] = []  # its length is the count; filled from the moment of import on


def count() -> int:
  """Returns the number of programs compiled, or read from the cache on disk, in this process."""
  return len(_events)


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
  if event == EVENT:
    _events.append(duration_secs)


monitoring.register_event_duration_secs_listener(_listen)


def use_disk_cache() -> None:
  """Keeps compiled programs for later runs, in ~/.cache unless JAX_COMPILATION_CACHE_DIR is set.

  One folder for each kind of processor: a program compiled for other instructions must not be
  loaded.
  """
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  if _jax_flags.jax_compilation_cache_dir:
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      features = next((line for line in file if line.startswith(('flags', 'Features'))), '')
  except OSError:
    features = platform.processor()
  kind = hashlib.sha256(features.encode()).hexdigest()[:8]
  folder = os.path.join(cache, 'rft_jax', 'compilations', f'{platform.machine()}-{kind}')
  jax.config.update('jax_compilation_cache_dir', folder)


@contextlib.contextmanager
def compile_while_loading(config, components, evaluate, *, fresh: bool):
  """Compiles the first evaluation of a fresh run in a thread, while the block loads the weights.

  Needs JAX's cache on disk: the programs are read from there afterwards.
  """
  if components.grader is None or not (fresh and _jax_flags.jax_compilation_cache_dir):
    yield
    return

  def compile_first_evaluation():
    policy = sharding.abstract(models.abstract(startup.decoder_config(config)), components.mesh)
    evaluate.compile_ahead(policy)

  with concurrent.futures.ThreadPoolExecutor(1, 'compiling') as thread:
    thread.submit(compile_first_evaluation)
    yield  # an error in the thread is raised again, and reported, by the evaluation itself
