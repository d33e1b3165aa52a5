"""Eight simulated devices and the persistent compilation cache, set before jax is imported."""

import gc
import os
import pathlib

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  # Collectives in one order on all eight: a program loaded from the
  # cache ran them in several, and waited for itself.
  ' --xla_cpu_enable_concurrency_optimized_scheduler=false'
  # A busy machine is no deadlock.
  ' --xla_cpu_collective_call_terminate_timeout_seconds=300'
  # Most of a cold run compiles what is then used once: the code
  # that is made soonest, not the code that runs soonest.
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_backend_optimization_level=0'
).strip()
# XLA's pool has a thread for each device and a collective holds all of them: some to spare.
os.environ.setdefault('PJRT_NPROC', '32')
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(__file__).parents[1] / '.cache' / 'jax')
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('HF_HUB_OFFLINE', '1')  # tests read nothing from the network
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')


@pytest.fixture(scope='module', autouse=True)
def programs_of_this_file_alone():
  """Forgets what a file compiled when it ends.

  A worker that keeps the programs of the whole suite grows by gigabytes, and by five of the 65,530
  memory maps that Linux grants a process for each program.
  """
  yield
  import jax

  jax.clear_caches()
  gc.collect()


@pytest.fixture
def base(tmp_path):
  """Writes a tiny checkpoint of our own and returns its directory."""
  import hf_forward  # imports jax: only after the settings above

  record_oracles = hf_forward.record_oracles()

  def write(family='qwen3', **changes):
    record_oracles.write(family, tmp_path / family, **changes)
    return tmp_path / family

  return write
