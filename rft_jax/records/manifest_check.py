"""Compares the manifest of a new start with that of its workdir: may it continue the run?"""

import json
import re
from typing import NamedTuple

from rft_jax.records import manifest


class AllowedDifference(NamedTuple):
  """A field that may differ between a run and its continuation."""

  pattern: str  # of the dotted name, matched in full
  reason: str
  warn: bool  # True: results may change, by rounding or from here on; reported at the start


# First match wins. A run with a difference in any other field is not continued.
ALLOWED_DIFFERENCES = (
  AllowedDifference(
    r'(started|command|overrides|host|workdir)\b.*', 'describes the start, not the run', False
  ),
  AllowedDifference(r'config\.checkpoints\..*', 'saving changes no result', False),
  AllowedDifference(
    r'isolation|config\.sandbox\.require', 'the isolation of a grader changes no grade', False
  ),
  AllowedDifference(
    r'config\.(report|trackers|doctor|notes)\b.*', 'reporting changes no result', False
  ),
  AllowedDifference(
    r'config\.judge\.(concurrency|retries|timeout_seconds|cache|api_key_env)',
    'how a judge is reached changes no verdict',
    False,
  ),
  AllowedDifference(
    r'config\.judge\.base_url', 'another address may serve another judge of the same name', True
  ),
  AllowedDifference(
    r'config\.evaluate\..*',
    'evaluation has its own random keys and does not change training, but held-out numbers before '
    'and after the change are not comparable',
    True,
  ),
  AllowedDifference(
    r'sha256\.data\.validation\b.*',
    'evaluation does not change training, but held-out numbers before and after the change are of '
    'other rows',
    True,
  ),
  AllowedDifference(
    r'config\.(data\.(train|validation)|model\.source|distillation\.teacher)\b.*|'
    r'sha256\..*\.file',
    'a path is only a name; the content is compared by its sha256',
    False,
  ),
  AllowedDifference(
    r'config\.update\.(microbatch_tokens|remat)',
    'the microbatches of a step change its results only by rounding',
    True,
  ),
  AllowedDifference(
    r'config\.mesh\b.*|mesh\b.*|devices\b.*',
    'another mesh or device gives the same results only up to rounding',
    True,
  ),
  AllowedDifference(
    r'(versions|git|flags)\b.*',
    'other code, libraries or flags give the same results at best up to rounding',
    True,
  ),
)
_LONGER_LAST_STAGE = AllowedDifference(
  '', 'the last stage may be extended; a schedule over the whole stage is stretched with it', True
)
_ABSENT = '(absent)'


def differences(old: dict, new: dict) -> list[str]:
  """Returns 'field: was A, now B' for every leaf in which two manifests differ."""
  return [_text(*difference) for difference in _differing_leaves(old, new)]


def check_continue(workdir, new: dict) -> list[str]:
  """Compares a new start with the manifest in the workdir, if it has one.

  Returns:
    warnings: the allowed differences that may change results, each with its reason.

  Raises:
    ValueError: fields differ that must be the same; names each with both values, and what to do.
  """
  old = manifest.read(workdir)
  if old is None:
    return []
  version = str(old.get('versions', {}).get('rft_jax', ''))
  if re.match(r'0\.1\b', version):
    raise ValueError(
      f'{workdir} was started with rft_jax {version}, before fields and files were renamed: '
      f'continue it with rft_jax {version}, or start a new run in another --workdir'
    )
  refused, warnings = [], []
  for difference in _differing_leaves(old, new):
    stages = len(old.get('config', {}).get('stages') or ())
    allowed = _allowed(*difference, stages=stages)
    if allowed is None:
      refused.append(_text(*difference))
    elif allowed.warn:
      warnings.append(f'{_text(*difference)} ({allowed.reason})')
  if refused:
    raise ValueError(
      '\n'.join(
        [
          f'{workdir} holds a run that differs from this one, which therefore cannot continue it:',
          *[f'  {line}' for line in refused],
          'give another --workdir, or set these fields back to their old values to continue',
        ]
      )
    )
  return warnings


def _differing_leaves(old, new):
  """Returns [(dotted name, old value, new value)] of the leaves that differ."""
  old, new = (dict(_leaves(manifest.as_plain_json(value))) for value in (old, new))
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


def _allowed(name, before, after, *, stages):
  """Returns the AllowedDifference that covers this field; None if the run must not continue."""
  if name == f'config.stages[{stages - 1}].steps' and _ABSENT not in (before, after):
    return _LONGER_LAST_STAGE if after > before else None
  matches = (allowed for allowed in ALLOWED_DIFFERENCES if re.fullmatch(allowed.pattern, name))
  return next(matches, None)


def _text(name, before, after):
  def shortened(value):
    text = value if value == _ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f'{text[:60]}... ({len(text)} characters)'

  return f'{name}: was {shortened(before)}, now {shortened(after)}'
