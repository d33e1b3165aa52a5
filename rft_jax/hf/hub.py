"""Local directory of a checkpoint: a path, or a download from the Hugging Face hub."""

import pathlib
import re

HUB_ID = re.compile(r'[\w.-]+(/[\w.-]+)?(@[\w./-]+)?')
ALLOW_PATTERNS = [
  '*.safetensors',
  '*.json',
  '*.jinja',
  '*.model',
  'merges.txt',
  'LICENSE*',
  'NOTICE*',
]
IGNORE_PATTERNS = ['*/*', 'consolidated*']  # copies in other formats: original/, onnx/


def resolve(source) -> pathlib.Path:
  """Returns the local directory of a checkpoint, downloaded or from the cache if it is a hub id.

  Args:
    source: a directory, or a hub id: 'owner/name', 'owner/name@revision'.

  Raises:
    FileNotFoundError: it is neither; says what was tried and what to do.
  """
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return path
  reason = f'{str(source)!r} is ' + (
    'a file, not a directory' if path.exists() else 'no directory here'
  )
  if path.exists() or not HUB_ID.fullmatch(str(source)):
    raise FileNotFoundError(
      f'{reason}, and no hub id (owner/name); give a directory with '
      'config.json and model.safetensors'
    )
  import huggingface_hub  # slow to import, and only needed for downloads

  name, _, revision = str(source).partition('@')
  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        name,
        revision=revision or None,
        allow_patterns=ALLOW_PATTERNS,
        ignore_patterns=IGNORE_PATTERNS,
      )
    )
  except Exception as error:  # the hub client's errors have no common base below Exception
    message = str(error).strip().split('\n')[0]
    raise FileNotFoundError(
      f'{reason}, and as a hub id it failed: {type(error).__name__}: {message}\n'
      'Check the name; log in for a private or gated model (hf auth login); without a network, '
      'copy a checkpoint here and give its directory.'
    ) from error
