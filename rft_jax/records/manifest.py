"""manifest.json: everything that a run depends on, for provenance and for continuing it.

Gathered once at the start: the config with its overrides, versions, the git commit, seeds,
devices, flags, and the sha256 of everything read from outside (data, base weights, tokenizer,
chat template, grader). manifest_check.py compares it with that of a later start.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from rft_jax.json_files import read_json
from rft_jax.records import atomic

FILE = 'manifest.json'
_PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'transformers',
  'tokenizers',
  'numpy',
  'datasets',
  'safetensors',
)
_FLAGS = (
  'XLA_FLAGS',
  'LIBTPU_INIT_ARGS',
  'JAX_PLATFORMS',
  'JAX_DEFAULT_MATMUL_PRECISION',
  'JAX_ENABLE_X64',
  'JAX_DEFAULT_PRNG_IMPL',
  'NVIDIA_TF32_OVERRIDE',
)
_WEIGHT_FILES = ('*.safetensors', 'config.json')
_TOKENIZER_FILES = (
  'tokenizer*.json',
  'tokenizer.model',
  'vocab.*',
  'merges.txt',
  'special_tokens_map.json',
  'added_tokens.json',
)


def write(workdir, manifest: dict) -> pathlib.Path:
  """Writes manifest.json by rename and returns its path."""
  path = pathlib.Path(workdir) / FILE
  atomic.write_json(path, manifest)
  return path


def read(workdir) -> dict | None:
  """Returns a workdir's manifest, None if it has none.

  Raises:
    ValueError: the file is not JSON.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.is_file():
    return None
  return read_json(path)


# ------------------------------------------------------------------ gathering


def gather(
  config: dict,
  *,
  seed: int,
  overrides=(),
  mesh=None,
  data=None,
  base=None,
  tokenizer=None,
  template: str | None = None,
  grader=None,
  teacher=None,
  extra=None,
) -> dict:
  """Returns the manifest of a run that is about to start.

  Args:
    config: the whole config as nested dicts (dataclasses.asdict), overrides applied.
    seed: the one integer from which all keys derive.
    overrides: --config.a.b=value of the command line, as typed.
    mesh: a jax Mesh.
    data: {'train': paths, 'validation': paths}; each a path, a list of them, or None. What is
      not a file (a hub name) is recorded by name; pass the sha256 of its rows through `extra`.
    base: folder of the base weights; its .safetensors and config.json are hashed. A continued
      run is compared by these, not by model.source.
    tokenizer: folder of the tokenizer; its tokenizer*.json and vocabulary files are hashed.
    template: the chat template's text.
    grader: the grader's JSON.
    teacher: folder of the weights that are distilled, hashed like base; None: there are none.
    extra: further sha256 entries, {name: digest or nested dict}.
  """
  digests = {
    'data': {name: _digests(_as_list(paths)) for name, paths in (data or {}).items()},
    'base': _digests(_matching(base, _WEIGHT_FILES)),
    'tokenizer': _digests(_matching(tokenizer, _TOKENIZER_FILES)),
    'template': None if template is None else sha256_text(template),
    'grader': None if grader is None else sha256_json(grader),
  }
  if teacher is not None:
    digests['teacher'] = _digests(_matching(teacher, _WEIGHT_FILES))
  return as_plain_json(
    {
      'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'command': sys.argv,
      'overrides': list(overrides),
      'config': config,
      'seed': seed,
      'versions': versions(),
      'git': git_state(),
      'host': {'name': platform.node(), 'system': platform.platform(), 'cpus': os.cpu_count()},
      **_devices(mesh),
      'sha256': digests | (extra or {}),
    }
  )


def _devices(mesh) -> dict:
  """Returns the devices and the settings of JAX that decide how it computes on them."""
  import jax

  from rft_jax.platform import backend  # imports jax

  flags: Any = jax.config  # which does not declare its flags as attributes
  return {
    'devices': {
      'kind': jax.devices()[0].device_kind,
      'platform': backend(),
      'count': jax.device_count(),
      'processes': jax.process_count(),
    },
    'mesh': None if mesh is None else dict(mesh.shape),
    'flags': {name: os.environ[name] for name in _FLAGS if name in os.environ},
    'prng': {
      'implementation': flags.jax_default_prng_impl,
      'partitionable': bool(flags.jax_threefry_partitionable),
    },
    'precision': {'x64': bool(flags.jax_enable_x64), 'matmul': flags.jax_default_matmul_precision},
  }


def versions() -> dict[str, str]:
  """Returns the versions of python, this package, and the libraries that compute the results."""
  import rft_jax

  packages = {'python': platform.python_version(), 'rft_jax': rft_jax.__version__}
  for package in _PACKAGES:
    try:
      packages[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass  # optional: the run did not use it
  return packages


def git_state(folder=None) -> dict:
  """Returns {'commit', 'dirty'} of the checkout that the code runs from; {} if there is none.

  A git repository around an installed copy does not count: the folder itself must be tracked.
  """
  folder = pathlib.Path(__file__).resolve().parent if folder is None else pathlib.Path(folder)

  def git(*arguments):
    return subprocess.run(
      ['git', '-C', str(folder), *arguments], capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()

  try:
    if not git('ls-files', '.'):
      return {}
    return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
  except (OSError, subprocess.SubprocessError):
    return {}


def sha256_file(path) -> str:
  """Returns the hex digest of a file's bytes."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def sha256_text(text: str) -> str:
  """Returns the hex digest of a text in UTF-8."""
  return hashlib.sha256(text.encode('utf-8')).hexdigest()


def sha256_json(value) -> str:
  """Returns the hex digest of a JSON value, whatever the order of its keys."""
  return sha256_text(json.dumps(value, sort_keys=True, separators=(',', ':'), ensure_ascii=False))


def as_plain_json(value):
  """Returns value as json.load would give it: tuples as lists, paths as text, numpy as numbers."""

  def plain(leaf):
    return leaf.item() if hasattr(leaf, 'item') else str(leaf)

  return json.loads(json.dumps(value, default=plain, allow_nan=False))


def _as_list(paths):
  if paths is None:
    return []
  return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _matching(folder, patterns):
  """Files of a folder that match one of the patterns, by name; None gives []."""
  if folder is None:
    return []
  return sorted({path for pattern in patterns for path in pathlib.Path(folder).glob(pattern)})


def _digests(paths):
  """Returns [{file, sha256}] with base names, as a moved file is the same; {name} if not a file."""
  paths = [pathlib.Path(path) for path in paths]
  return [
    {'file': path.name, 'sha256': sha256_file(path)} if path.is_file() else {'name': str(path)}
    for path in paths
  ]
