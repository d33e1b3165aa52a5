"""Trains the grid of configs/noise_grpo.py: held-out grade against the fraction of wrong answers.

  python scripts/bench_noise.py --to=runs/noise --prepare    # rows, and the warm-up models
  python scripts/bench_noise.py --to=runs/noise --cells=1/2  # half of the grid; 2/2 elsewhere
  python scripts/bench_noise.py --to=runs/noise --report     # table and plot so far

Without --prepare, --cells or --report it does all three. A finished cell is not trained again, an
interrupted one continues. configs/noise_grpo.py defines a cell. noise.md (the table), noise.png and
noise.json are written into --to.

A figure is the mean grade by the right answers, of 4 samples at temperature 1 of each held-out row,
over the finished seeds; its interval is a 95 % bootstrap over seeds and rows. Differences are
paired by row and seed.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import grid
import numpy as np

from rft_jax.bootstrap import interval_over_seeds_and_rows
from rft_jax.records import atomic
from rft_jax.tasks import TASKS, base_checkpoint, files

COLORS = dict(zip(('plain', 'robust', 'oracle', 'before'), grid.COLORS))
noise = grid.config_file('noise_grpo')


# --- cells ----------------------------------------------------------------------------------------
def write_rows(task: str, path: pathlib.Path) -> None:
  """Writes the base checkpoint of a task, warm_up.jsonl, and answers_SHARE.jsonl for each share."""
  settings, warm_up_rows = noise.TASKS[task]['task_config'], noise.TASKS[task]['warm_up_rows']
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  for share in noise.SHARES:
    task_files = TASKS[task].make(TASKS[task].Config(**settings, corrupt=share))
    if share == 0:
      files.write(task_files, path)
      atomic.write_text(path / 'warm_up.jsonl', lines(task_files.train[:warm_up_rows]))
      size = dataclasses.asdict(base_checkpoint.Config())
      texts = files.tokenizer_texts(task_files)
      base_checkpoint.make(path / 'base', texts, seed=0, **size)
    rows = task_files.train[warm_up_rows:]
    right_rows = [row for row in rows if not row.get('corrupted')]
    for arm, arm_rows in (('plain', rows), ('oracle', right_rows)):
      atomic.write_text(path / noise.rows_file(str(share), arm), lines(arm_rows))


def prepare(task: str, to: pathlib.Path) -> None:
  """Writes the rows of a task and trains its warm-up model, unless they exist."""
  path = to / task
  if (path / 'warm_up' / 'export' / 'config.json').is_file():
    return
  if not (path / 'base' / 'config.json').is_file():
    write_rows(task, path)
  grid.train(noise.get_config(f'{task},warm_up', str(to)), path / 'warm_up')


def cells(args) -> list[tuple[str, float, str, int]]:
  """Returns (task, share, arm, seed) of every cell, ordered by seed."""
  return [
    (task, share, arm, seed)
    for seed in args.seeds
    for share in args.shares
    for task in args.tasks
    for arm in args.arms
    if share or arm != 'oracle'  # without wrong rows it equals the plain arm
  ]


def workdir(to: pathlib.Path, task, share, arm, seed) -> pathlib.Path:
  return to / task / f'{share}_{arm}_{seed}'


def run(to: pathlib.Path, cell) -> None:
  """Trains a cell, or continues it; a finished cell is not changed."""
  config = noise.get_config(','.join(map(str, cell)), str(to))
  grid.train(config, workdir(to, *cell))


# --- figures --------------------------------------------------------------------------------------
def evaluations(to: pathlib.Path, cell):
  """Returns f64[rows, 2], the grade of each held-out row before and after; None if not finished."""
  return grid.grades(workdir(to, *cell), noise.STEPS[cell[0]])


def wrong_rows(to: pathlib.Path, task, share) -> tuple[int, int]:
  """Returns the number of GRPO rows with a wrong answer, and the number of GRPO rows."""
  text = (to / task / noise.rows_file(str(share), 'plain')).read_text(encoding='utf-8')
  rows = [json.loads(line) for line in text.splitlines()]
  return sum(bool(row.get('corrupted')) for row in rows), len(rows)


def collect(args) -> list[dict]:
  """Returns a record for each (task, share) that has finished cells."""
  records = []
  for task in args.tasks:
    for share in args.shares:
      columns = {}
      for _, _, arm, seed in (cell for cell in cells(args) if cell[:2] == (task, share)):
        if (grades := evaluations(args.to, (task, share, arm, seed))) is not None:
          columns.setdefault(arm, {})[seed] = grades
      if not columns:
        continue
      wrong, rows = wrong_rows(args.to, task, share)
      record = {
        'task': task,
        'share': share,
        'wrong': wrong,
        'rows': rows,
        'seeds': {arm: sorted(by_seed) for arm, by_seed in columns.items()},
        'grade': {
          arm: interval_over_seeds_and_rows(np.stack([g[:, 1] for g in by_seed.values()]))
          for arm, by_seed in columns.items()
        },
        'more': {},  # arm - plain
      }
      record['start'] = float(next(iter(next(iter(columns.values())).values()))[:, 0].mean())
      for arm in [arm for arm in columns if arm != 'plain']:
        seeds = sorted(columns[arm].keys() & columns.get('plain', {}).keys())
        if seeds:
          record['more'][arm] = interval_over_seeds_and_rows(
            np.stack([columns[arm][seed][:, 1] - columns['plain'][seed][:, 1] for seed in seeds])
          )
      records.append(record)
  return records


# --- table and plot -------------------------------------------------------------------------------
def table(records, arms) -> str:
  """Returns the table in Markdown."""
  others = [arm for arm in arms if arm != 'plain']
  header = ['task', 'wrong answers', 'start', *arms, *(f'{arm} - plain' for arm in others), 'seeds']
  rows = []
  for record in records:
    rows.append(
      [
        record['task'],
        f'{record["wrong"]} of {record["rows"]}',
        f'{record["start"]:.3f}',
        *(grid.interval_text(record['grade'].get(arm)) for arm in arms),
        *(grid.signed_interval_text(record['more'].get(arm)) for arm in others),
        str(max(len(seeds) for seeds in record['seeds'].values())),
      ]
    )
  return grid.markdown(header, rows)


def plot(records, arms, path) -> None:
  """Plots grade and difference to plain against the share of wrong answers, a column per task."""
  import matplotlib
  from matplotlib.figure import Figure

  tasks = list(dict.fromkeys(record['task'] for record in records))
  with matplotlib.rc_context(grid.STYLE | {'axes.grid.axis': 'y'}):
    figure = Figure(figsize=(4.2 * len(tasks), 4.6), layout='constrained', dpi=160)
    rows = figure.subplots(2, len(tasks), sharex='col', squeeze=False, height_ratios=(3, 2))
    for task, (grade, difference) in zip(tasks, rows.T):
      task_records = [record for record in records if record['task'] == task]
      grade.axhline(
        task_records[0]['start'],
        color=COLORS['before'],
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        label='warmed up, before',
      )
      difference.axhline(0, color=COLORS['plain'], linewidth=1.6)
      for axes, name in ((grade, 'grade'), (difference, 'more')):
        for shift, arm in enumerate(arms):
          points = [
            (100 * record['share'] + shift - 1, *record[name][arm])
            for record in task_records
            if arm in record[name]
          ]
          if points:
            x, mean, low, high = map(np.array, zip(*points))
            axes.errorbar(
              x,
              mean,
              (mean - low, high - mean),
              color=COLORS[arm],
              marker='o',
              markersize=4,
              linewidth=1.6,
              elinewidth=1.1,
              label=arm,
            )
      grade.set_title(task.replace('_', ' '))
      difference.set(
        xlabel='% of training answers wrong',
        xticks=[100 * record['share'] for record in task_records],
      )
    rows[0, 0].set_ylabel('held-out true grade')
    rows[1, 0].set_ylabel('difference to plain')
    figure.legend(
      *rows[0, 0].get_legend_handles_labels(),
      loc='outside upper center',
      ncols=len(arms) + 1,
      frameon=False,
      fontsize=8,
    )
    grid.save(figure, path)


def report(args) -> None:
  """Writes noise.md, noise.json and noise.png of the finished cells, and prints the table."""
  records = collect(args)
  grid.report(
    args.to,
    'noise',
    records,
    table(records, args.arms),
    lambda path: plot(records, args.arms, path),
  )


# --- the command ----------------------------------------------------------------------------------
def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--to', type=pathlib.Path, default=pathlib.Path(noise.FOLDER))
  parser.add_argument('--tasks', nargs='+', choices=tuple(noise.TASKS), default=list(noise.TASKS))
  parser.add_argument(
    '--shares', nargs='+', type=float, choices=noise.SHARES, default=list(noise.SHARES)
  )
  parser.add_argument('--arms', nargs='+', choices=noise.ARMS, default=list(noise.ARMS))
  parser.add_argument(
    '--prepare', action='store_true', help='only write rows and train warm-up models'
  )
  grid.add_arguments(parser)
  return parser


def main(arguments=None) -> int:
  args = make_parser().parse_args(arguments)
  run_all = not (args.prepare or args.cells or args.report)
  try:
    if args.prepare or run_all:
      for task in args.tasks:
        prepare(task, args.to)
    if args.cells or run_all:
      for cell in grid.part(cells(args), args.cells):
        run(args.to, cell)
        print('done:', *cell, flush=True)
    if args.report or run_all:
      report(args)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
