"""Parses the command line; each problem becomes one line on stderr, and exit code 2.

ml_collections handles the overrides (--config.a.b=value) but answers a misspelt field with a
KeyError and a missing file with an object that fails later; both become clear messages here.
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
# Config fields of version 0.1 and their names since 0.2.
RENAMED_FIELDS = {
  'config.robust': 'config.noisy_grades',
  'config.rollout.refill_rounds': 'config.rollout.dynamic_sampling_rounds',
  'config.doctor.max_still_rows': 'config.doctor.max_zero_variance_rows',
  'config.credit.steps': 'config.credit.step_boundary',
  'config.credit.max_steps': 'config.credit.max_reasoning_steps',
}
_HELP = {'--help', '-h', '-help', '--helpfull', '--helpshort', '-?'}


def refuse(message) -> None:
  """Prints what is wrong and exits with code 2."""
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
      refuse(f'unknown argument {rest[1]!r}: options are written --name=value; see --help')
    if flags.FLAGS['verbosity'].using_default_value:
      flags.FLAGS.verbosity = -1  # warnings only; INFO has a page of Orbax's for each checkpoint
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
  """Quotes --config.grader=PATH: ml_collections reads a field of any type as a literal."""
  match = re.fullmatch(r'(--?config\.(?:grader|response_format))=(.*)', arg, re.DOTALL)
  return f'{match[1]}={match[2]!r}' if match and not match[2].startswith('{') else arg


def _problems(path, argv) -> list[str]:
  """Returns the problems of the config file and of the names of overridden fields."""
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
    found_type = type(config).__name__
    return [f'--config={path}: get_config() returned {found_type}, need a rft_jax.config.Config']
  problems = []
  for arg in argv:
    if match := _OVERRIDE.fullmatch(arg):
      problem = _unknown_field(config, match[1])
      if problem:
        problems.append(f'{arg}: {problem}')
  return problems


def _unknown_field(config, dotted):
  """Returns why a field such as a.b[1].c does not exist; None if it does."""
  value, path = config, 'config'
  for part in dotted.split('.'):
    name, *indices = re.split(r'[\[\]]+', part.rstrip(']'))
    if isinstance(value, dict):
      return None  # free keys: the grader's JSON, template variables
    fields = []
    if dataclasses.is_dataclass(value):
      fields = [field.name for field in dataclasses.fields(value)]
    if name not in fields:
      return _no_such_field(value, path, name, fields)
    value, path = getattr(value, name), f'{path}.{name}'
    for index in indices:
      if not index.isdecimal() or not isinstance(value, (tuple, list)) or int(index) >= len(value):
        size = len(value) if isinstance(value, (tuple, list)) else 0
        return f'{path}[{index}]: {path} has {size} element{"" if size == 1 else "s"}'
      value, path = value[int(index)], f'{path}[{index}]'
  return None


def _no_such_field(value, path, name, fields):
  if name.isdecimal() and isinstance(value, (tuple, list)):
    return f'{path} is a list: write {path}[{name}]'
  message = f'{path} has no field {name!r}'
  if renamed := RENAMED_FIELDS.get(f'{path}.{name}'):
    return f'{message}: since version 0.2 it is {renamed}'
  if close := difflib.get_close_matches(name, fields, 1):
    return f'{message}, did you mean {close[0]!r}?'
  return message + (f'; it has {", ".join(fields)}' if fields else '; it is a single value')


def _where(error, file):
  """Returns an exception of a config file in one line, with its line number in that file."""
  if isinstance(error, SyntaxError):
    return f'line {error.lineno}: {error.msg}'
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if os.path.basename(frame.filename) == os.path.basename(file)
  ]
  # ml_collections wraps some errors in a text that contains a whole traceback.
  text = str(error).strip().split('\n')[-1].removeprefix(f'{type(error).__name__}: ')
  inside = re.findall(rf'{re.escape(os.path.basename(file))}", line (\d+)', str(error))
  line = lines[-1] if lines else inside[-1] if inside else None
  return (f'line {line}: ' if line else '') + f'{type(error).__name__}: {text}'
