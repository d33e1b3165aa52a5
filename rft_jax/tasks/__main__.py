"""Writes a built-in task: python -m rft_jax.tasks rare_disease --to=runs/rare_disease_demo/data

The directory gets train.jsonl, validation.jsonl, grader.json, task.json (the config of the task,
and reference scores) and base/, an untrained decoder with a tokenizer as a Hugging Face directory.
With --pairs=N also pairs.jsonl, a chosen and a rejected answer to each of the last N training rows,
and pairs_validation.jsonl, the same for the validation rows.
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
      type=_value_parser(field.default),
      default=field.default,
      metavar=str(field.default).strip('()').replace(' ', ''),
      help='default %(metavar)s',
    )


def _value_parser(default):
  """Returns text -> value, of the type of the default: a number, or a tuple of numbers."""
  if not isinstance(default, tuple):
    return type(default)

  def parse(text):
    parts = text.split(',')
    try:
      values = tuple(type(number)(part) for number, part in zip(default, parts))
    except ValueError:
      values = ()
    if not len(values) == len(parts) == len(default):
      example = ','.join(map(str, default))
      raise argparse.ArgumentTypeError(f'{text!r}, need {len(default)} numbers such as {example}')
    return values

  return parse


def _config(config_class, args):
  return config_class(**{f.name: getattr(args, f.name) for f in dataclasses.fields(config_class)})


def _parser() -> argparse.ArgumentParser:
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
        help='number of training rows to generate preference pairs for; default 0',
      )
    add_fields(command.add_argument_group('task'), task.Config)
    add_fields(command.add_argument_group('base checkpoint'), base_checkpoint.Config)
  return parser


def main(arguments=None) -> int:
  """Writes the task that the command line selects; returns the exit code."""
  args = _parser().parse_args(arguments)
  config = _config(TASKS[args.task].Config, args)
  size = _config(base_checkpoint.Config, args)
  pairs = getattr(args, 'pairs', 0)
  problems = config.validate() + size.validate()
  if not 0 <= pairs <= args.train_rows:
    problems.append(f'pairs={pairs}, need 0 to train_rows={args.train_rows}')
  if problems:
    print('\n'.join(problems), file=sys.stderr)
    return 2
  task_files = TASKS[args.task].make(config)
  if pairs:
    task_files = task_files._replace(pairs=PAIRS[args.task](config, task_files, pairs))
  texts = files.tokenizer_texts(task_files)
  base_checkpoint.make(args.to / 'base', texts, seed=config.seed, **dataclasses.asdict(size))
  files.write(task_files, args.to)
  train, validation = len(task_files.train), len(task_files.validation)
  print(f'{args.to}: {train} training rows, {validation} validation rows')
  for name, score in task_files.metadata['reference'].items():
    print(f'  {name:32} {score["mean"]:.3f}  [{score["low"]:.3f}, {score["high"]:.3f}]')
  return 0


if __name__ == '__main__':
  sys.exit(main())
