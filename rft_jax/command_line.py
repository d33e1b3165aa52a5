"""Flags to values; everything wrong with them in one line each, and exit code 2.

ml_collections serves the overrides (--config.a.b=value) but answers a misspelt field with a
KeyError and a missing file with an object that fails later; both become sentences here.
"""

import dataclasses
import difflib
import os
import re
import sys
import traceback

from absl import flags
from ml_collections.config_flags import config_flags

_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]+)(?:=(.*))?', re.DOTALL)
_HELP = {'--help', '-h', '-help', '--helpfull', '--helpshort', '-?'}


def refuse(message) -> None:
  """Says what is wrong and leaves with exit code 2."""
  print(f'rft_jax: {message}', file=sys.stderr)
  sys.exit(2)


def parser(doc: str, *, without_config=()):
  """Returns the flags_parser of an absl app whose --help prints doc.

  Args:
    without_config: the --mode values that need no --config.
  """

  def parse(argv):
    if _HELP & set(argv[1:]):
      print(doc.strip())
      sys.exit(0)
    path = _value(argv, 'config')
    if path is None and _value(argv, 'mode') not in without_config:
      refuse('--config=FILE.py is missing; see configs/, or --help')
    problems = _problems(path, argv) if path else []
    if problems:
      refuse('\nrft_jax: '.join(problems))
    try:
      rest = flags.FLAGS([_quoted(arg) for arg in argv])
    except (flags.Error, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
      refuse(' '.join(str(error.args[0] if error.args else error).split()))
    if len(rest) > 1:
      refuse(f'what is {rest[1]!r}? Options are spelt --name=value; see --help')
    if flags.FLAGS['verbosity'].using_default_value:
      flags.FLAGS.verbosity = -1  # warnings; absl would go on to INFO, Orbax's page a checkpoint
    return rest

  return parse


def _value(argv, name):
  """Returns what --name is set to, with '=' or as the next word; None without one."""
  for arg, following in zip(argv, [*argv[1:], '']):
    if re.match(rf'--?{name}=', arg):
      return arg.partition('=')[2]
    if arg in (f'--{name}', f'-{name}'):
      return following
  return None


def overrides(argv) -> list[str]:
  """Returns the --config.a.b=value arguments, as typed."""
  return [arg for arg in argv if _OVERRIDE.fullmatch(arg)]


def _quoted(arg):
  """Makes --config.grader=PATH a literal, since ml_collections parses fields of any type as one."""
  match = re.fullmatch(r'(--?config\.(?:grader|response_format))=(.*)', arg, re.DOTALL)
  return f'{match[1]}={match[2]!r}' if match and not match[2].startswith('{') else arg


def _problems(path, argv) -> list[str]:
  """Returns what is wrong with the config file and the names of overridden fields."""
  file = path.partition(':')[0]
  if not os.path.isfile(file):
    return [f'--config={path}: there is no file {file}']
  try:
    config = config_flags.ConfigFileFlagParser('config').parse(path)
  except SystemExit:
    raise
  except BaseException as error:  # a config file is the user's own code: it may raise anything
    return [f'--config={path}: {_where(error, file)}']
  if not dataclasses.is_dataclass(config):
    return [f'--config={path}: get_config() gave {type(config).__name__}, need rft_jax.Config']
  found = []
  for arg in argv:
    if match := _OVERRIDE.fullmatch(arg):
      problem = _unknown(config, match[1])
      if problem:
        found.append(f'{arg}: {problem}')
  return found


def _unknown(config, dotted):
  """Walks a.b[1].c through nested dataclasses; returns what it stumbles over."""
  value, walked = config, 'config'
  for part in dotted.split('.'):
    name, *indices = re.split(r'[\[\]]+', part.rstrip(']'))
    if isinstance(value, dict):
      return None  # free keys: the grader's JSON, template variables
    fields = (
      [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    )
    if name not in fields:
      if name.isdecimal() and isinstance(value, (tuple, list)):
        return f'{walked} is a list: write {walked}[{name}]'
      near = difflib.get_close_matches(name, fields, 1)
      return f'{walked} has no field {name!r}' + (
        f', did you mean {near[0]!r}?'
        if near
        else f'; it has {", ".join(fields)}'
        if fields
        else '; it is a single value'
      )
    value, walked = getattr(value, name), f'{walked}.{name}'
    for index in indices:
      if not index.isdecimal() or not isinstance(value, (tuple, list)) or int(index) >= len(value):
        size = len(value) if isinstance(value, (tuple, list)) else 0
        return f'{walked}[{index}]: {walked} has {size} element{"" if size == 1 else "s"}'
      value, walked = value[int(index)], f'{walked}[{index}]'
  return None


def _where(error, file):
  """Returns an exception of a config file in one line, with the line of that file."""
  if isinstance(error, SyntaxError):
    return f'line {error.lineno}: {error.msg}'
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if os.path.basename(frame.filename) == os.path.basename(file)
  ]
  # ml_collections wraps some errors in a text that holds a whole traceback.
  text = str(error).strip().split('\n')[-1].removeprefix(f'{type(error).__name__}: ')
  inside = re.findall(rf'{re.escape(os.path.basename(file))}", line (\d+)', str(error))
  line = lines[-1] if lines else inside[-1] if inside else None
  return (f'line {line}: ' if line else '') + f'{type(error).__name__}: {text}'
