"""manifest.json: what a run was made of, and whether a later start may continue it.

Gathered once at the start: the config with its overrides, versions, the git commit, seeds,
devices, flags, and the sha256 of everything read from outside (data, base weights, tokenizer,
chat template, grader). A start in a workdir that has one is compared with it field by field.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import NamedTuple

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


class Allowed(NamedTuple):
  """A field that may differ between a run and its continuation."""

  pattern: str  # of the dotted name, matched in full
  reason: str
  warn: bool  # True: results may change by rounding, or from here on; said at the start


# First match wins. What is not here must be the same for the run to go on.
MAY_DIFFER = (
  Allowed(
    r'(started|command|overrides|host|workdir)\b.*', 'describes the start, not the run', False
  ),
  Allowed(r'config\.checkpoints\..*', 'saving changes no result', False),
  Allowed(
    r'isolation|config\.sandbox\.require', 'how well a grader is shut in changes no grade', False
  ),
  Allowed(r'config\.(report|trackers|doctor|notes)\b.*', 'reporting changes no result', False),
  Allowed(
    r'config\.judge\.(concurrency|retries|timeout_seconds|cache|api_key_env)',
    'how a judge is reached changes no verdict',
    False,
  ),
  Allowed(r'config\.judge\.base_url', 'an address is a name; another may hold another judge', True),
  Allowed(
    r'config\.evaluate\..*',
    'evaluation has its own random keys and changes no training; '
    'held-out numbers before and after the change are not of the same measurement',
    True,
  ),
  Allowed(
    r'sha256\.data\.validation\b.*',
    'evaluation changes no training; held-out numbers '
    'before and after the change are not of the same rows',
    True,
  ),
  Allowed(
    r'config\.(data\.(train|validation)|model\.source|distillation\.teacher)\b.*|'
    r'sha256\..*\.file',
    'a path is a name; the content is compared by its sha256',
    False,
  ),
  Allowed(
    r'config\.update\.(microbatch_tokens|remat)',
    'how a step is cut up changes its results only by rounding',
    True,
  ),
  Allowed(
    r'config\.mesh\b.*|mesh\b.*|devices\b.*',
    'another mesh or device gives the same results only up to rounding',
    True,
  ),
  Allowed(
    r'(versions|git|flags)\b.*',
    'other code, libraries or flags give the same results at best up to rounding',
    True,
  ),
)
_LAST_STAGE = Allowed(
  '', 'the last stage may be extended; a schedule that spans the stage is stretched with it', True
)
_ABSENT = '(absent)'


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
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is not JSON ({error}); give another --workdir') from error


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
    overrides: the command line's --config.a.b=value, as typed.
    mesh: a jax Mesh.
    data: {'train': paths, 'validation': paths}; each a path, a list of them, or None. What is
      no file (a hub name) is recorded by name; pass its rows' sha256 through `extra`.
    base: folder of the base weights; its .safetensors and config.json are hashed. It is what a
      continued run is compared by, not model.source.
    tokenizer: folder of the tokenizer; its tokenizer*.json and vocabulary files are hashed.
    template: the chat template's text.
    grader: the grader's JSON.
    teacher: folder of the weights that are learnt from, hashed as base is; None: there are none.
    extra: further sha256 entries, {name: digest or nested dict}.
  """
  import jax

  digests = {
    'data': {name: _digests(_listed(paths)) for name, paths in (data or {}).items()},
    'base': _digests(_matching(base, ('*.safetensors', 'config.json'))),
    'tokenizer': _digests(
      _matching(
        tokenizer,
        (
          'tokenizer*.json',
          'tokenizer.model',
          'vocab.*',
          'merges.txt',
          'special_tokens_map.json',
          'added_tokens.json',
        ),
      )
    ),
    'template': None if template is None else sha256_text(template),
    'grader': None if grader is None else sha256_json(grader),
    **(
      {}
      if teacher is None
      else {'teacher': _digests(_matching(teacher, ('*.safetensors', 'config.json')))}
    ),
    **(extra or {}),
  }
  return _as_json(
    {
      'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
      'command': sys.argv,
      'overrides': list(overrides),
      'config': config,
      'seed': seed,
      'versions': versions(),
      'git': git_state(),
      'host': {'name': platform.node(), 'system': platform.platform(), 'cpus': os.cpu_count()},
      'devices': {
        'kind': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'count': jax.device_count(),
        'processes': jax.process_count(),
      },
      'mesh': None if mesh is None else dict(mesh.shape),
      'flags': {name: os.environ[name] for name in _FLAGS if name in os.environ},
      'prng': {
        'implementation': jax.config.jax_default_prng_impl,
        'partitionable': bool(jax.config.jax_threefry_partitionable),
      },
      'precision': {
        'x64': bool(jax.config.jax_enable_x64),
        'matmul': jax.config.jax_default_matmul_precision,
      },
      'sha256': digests,
    }
  )


def versions() -> dict[str, str]:
  """Returns the versions of python, this package, and the libraries that compute the results."""
  import rft_jax

  found = {'python': platform.python_version(), 'rft_jax': rft_jax.__version__}
  for package in _PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass  # optional: absent here means it had no part in the run
  return found


def git_state(folder=None) -> dict:
  """Returns {'commit', 'dirty'} of the checkout the code runs from; {} if it is none.

  A git repository round an installed copy does not count: the folder itself must be tracked.
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


def _listed(paths):
  if paths is None:
    return []
  return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


def _matching(folder, patterns):
  """Files of a folder that match one of the patterns, by name; None gives []."""
  if folder is None:
    return []
  return sorted({path for pattern in patterns for path in pathlib.Path(folder).glob(pattern)})


def _digests(paths):
  """Returns [{file, sha256}] with base names, as a moved file is the same; no file: {name}."""
  paths = [pathlib.Path(path) for path in paths]
  return [
    {'file': path.name, 'sha256': sha256_file(path)} if path.is_file() else {'name': str(path)}
    for path in paths
  ]


def _as_json(value):
  """Returns value as it will be read back: tuples become lists, paths and numpy numbers plain."""

  def plain(other):
    return other.item() if hasattr(other, 'item') else str(other)

  return json.loads(json.dumps(value, default=plain, allow_nan=False))


# ------------------------------------------------------------------ comparing


def differences(old: dict, new: dict) -> list[str]:
  """Returns 'field: was A, now B' for every leaf in which two manifests differ."""
  return [_shown(*difference) for difference in _differing(old, new)]


def check_continue(workdir, new: dict) -> list[str]:
  """Compares a new start with the manifest in the workdir; a workdir without one is free.

  Returns:
    warnings: the allowed differences that may show in the results, each with its reason.

  Raises:
    ValueError: fields differ that must not; names each with both values and the ways out.
  """
  old = read(workdir)
  if old is None:
    return []
  refused, warnings = [], []
  for difference in _differing(old, new):
    allowed = _allowance(*difference, stages=len(old.get('config', {}).get('stages') or ()))
    if allowed is None:
      refused.append(_shown(*difference))
    elif allowed.warn:
      warnings.append(f'{_shown(*difference)} ({allowed.reason})')
  if refused:
    raise ValueError(
      '\n'.join(
        [
          f'{workdir} holds a run that differs from this one; its results would be of neither:',
          *[f'  {line}' for line in refused],
          'give another --workdir, or set these fields back to their old values to continue',
        ]
      )
    )
  return warnings


def _differing(old, new):
  old, new = dict(_leaves(_as_json(old))), dict(_leaves(_as_json(new)))
  return [
    (name, old.get(name, _ABSENT), new.get(name, _ABSENT))
    for name in [*old, *(name for name in new if name not in old)]
    if old.get(name, _ABSENT) != new.get(name, _ABSENT)
  ]


def _leaves(value, name=''):
  """Yields (dotted name, leaf); an empty dict or list is a leaf, to differ from an absent one."""
  if isinstance(value, dict) and value:
    for key, inner in value.items():
      yield from _leaves(inner, f'{name}.{key}' if name else str(key))
  elif isinstance(value, list) and value:
    for i, inner in enumerate(value):
      yield from _leaves(inner, f'{name}[{i}]')
  else:
    yield name, value


def _allowance(name, before, after, *, stages):
  """Returns the Allowed that lets this field differ, None if none does."""
  if name == f'config.stages[{stages - 1}].steps' and _ABSENT not in (before, after):
    return _LAST_STAGE if after > before else None
  return next((a for a in MAY_DIFFER if re.fullmatch(a.pattern, name)), None)


def _shown(name, before, after):
  def short(value):
    text = value if value == _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f'{text[:60]}... ({len(text)} characters)'

  return f'{name}: was {short(before)}, now {short(after)}'
