"""Writes a built-in task: python -m rft_jax.tasks rare_disease --to=runs/rare_disease_demo/data

Into the directory go train.jsonl, validation.jsonl, grader.json, task.json (how the task was made,
and reference scores) and base/, an untrained decoder with a tokenizer as a Hugging Face directory;
with --pairs=N, where the task can make them, also pairs.jsonl, a right and a wrong answer to each
of the last N rows to train on, and pairs_validation.jsonl of those held out.
"""

import argparse
import dataclasses
import pathlib
import sys

from rft_jax.tasks import PAIRS, TASKS, base_checkpoint, files


def add_fields(parser, config_class):
  """Adds one --field for each field of the dataclass; a pair of numbers is written as 3,8."""
  for field in dataclasses.fields(config_class):
    parser.add_argument(
      f'--{field.name}',
      type=_reader(field.default),
      default=field.default,
      metavar=str(field.default).strip('()').replace(' ', ''),
      help='default %(metavar)s',
    )


def _reader(default):
  if not isinstance(default, tuple):
    return type(default)

  def read(text):
    values = tuple(type(one)(part) for one, part in zip(default, text.split(',')))
    if len(values) != len(text.split(',')) or len(values) != len(default):
      raise ValueError(text)
    return values

  read.__name__ = f'{len(default)} values with commas'  # argparse names it in its error
  return read


def _of(config_class, given):
  return config_class(**{f.name: getattr(given, f.name) for f in dataclasses.fields(config_class)})


def main(arguments=None) -> int:
  """Writes the task that the command line asks for; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m rft_jax.tasks',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='task', required=True)
  for name, task in TASKS.items():
    command = commands.add_parser(name, help=task.__doc__.splitlines()[0], allow_abbrev=False)
    command.add_argument('--to', required=True, type=pathlib.Path, help='directory to write into')
    if name in PAIRS:
      command.add_argument(
        '--pairs',
        type=int,
        default=0,
        metavar='N',
        help='pairs of answers to learn preferences from; default 0',
      )
    add_fields(command.add_argument_group('task'), task.Config)
    add_fields(command.add_argument_group('base checkpoint'), base_checkpoint.Config)
  given = parser.parse_args(arguments)
  task, size = _of(TASKS[given.task].Config, given), _of(base_checkpoint.Config, given)
  pairs = getattr(given, 'pairs', 0)
  problems = task.validate() + size.validate()
  if not 0 <= pairs <= given.train_rows:
    problems.append(f'pairs={pairs}, need 0 to train_rows={given.train_rows}')
  if problems:
    print('\n'.join(problems), file=sys.stderr)
    return 2
  made = TASKS[given.task].make(task)
  if pairs:
    made = made._replace(pairs=PAIRS[given.task](task, made, pairs))
  base_checkpoint.make(
    given.to / 'base', files.texts(made), seed=task.seed, **dataclasses.asdict(size)
  )
  files.write(made, given.to)
  print(f'{given.to}: {len(made.train)} rows to train on, {len(made.validation)} held out')
  for name, score in made.facts['reference'].items():
    print(f'  {name:32} {score["mean"]:.3f}  [{score["low"]:.3f}, {score["high"]:.3f}]')
  return 0


if __name__ == '__main__':
  sys.exit(main())
