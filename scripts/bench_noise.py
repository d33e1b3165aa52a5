"""What wrong training answers cost: held-out truth against their share, plain and robust GRPO.

  python scripts/bench_noise.py --to=runs/noise --prepare    # rows, and the warmed-up models
  python scripts/bench_noise.py --to=runs/noise --cells=1/2  # half of the grid; 2/2 elsewhere
  python scripts/bench_noise.py --to=runs/noise --report     # table and picture so far

Without --prepare, --cells or --report it does all of it. A cell that is done is not run again, and
one that was stopped goes on. configs/noise_grpo.py says what a cell is. Written are noise.md (the
table), noise.png and noise.json into --to.

A figure is the mean true grade of 4 samples at temperature 1 of each held-out row, over the seeds
that are done; its interval is a 95 % bootstrap that draws seeds and rows. Differences are paired by
row and seed.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

import grid
import numpy as np

from rft_jax.records import atomic
from rft_jax.tasks import TASKS, base_checkpoint, files

COLOURS = dict(zip(('plain', 'robust', 'told', 'before'), grid.COLOURS))
noise = grid.config_file('noise_grpo')


# --- making ---------------------------------------------------------------------------------------
def write_rows(task: str, place: pathlib.Path) -> None:
  """Writes the files of a task: base checkpoint, warm_up.jsonl, and answers_SHARE.jsonl of each."""
  settings, first = noise.TASKS[task]['made'], noise.TASKS[task]['warm_up_rows']
  lines = lambda rows: ''.join(json.dumps(row) + '\n' for row in rows)
  for share in noise.SHARES:
    made = TASKS[task].make(TASKS[task].Config(**settings, corrupt=share))
    if share == 0:
      files.write(made, place)
      atomic.write_text(place / 'warm_up.jsonl', lines(made.train[:first]))
      size = dataclasses.asdict(base_checkpoint.Config())
      base_checkpoint.make(place / 'base', files.texts(made), seed=0, **size)
    answers = made.train[first:]
    right = [row for row in answers if not row.get('corrupted')]
    for arm, rows in (('plain', answers), ('told', right)):
      atomic.write_text(place / noise.rows_file(str(share), arm), lines(rows))


def prepare(task: str, to: pathlib.Path) -> None:
  """Makes rows and warmed-up model of a task, unless they are there."""
  place = to / task
  if (place / 'warm_up' / 'export' / 'config.json').is_file():
    return
  if not (place / 'base' / 'config.json').is_file():
    write_rows(task, place)
  grid.train(noise.get_config(f'{task},warm_up', str(to)), place / 'warm_up')


def cells(args) -> list[tuple[str, float, str, int]]:
  """Returns (task, share, arm, seed) of every cell; one seed of all of them before the next."""
  return [
    (task, share, arm, seed)
    for seed in args.seeds
    for share in args.shares
    for task in args.tasks
    for arm in args.arms
    if share or arm != 'told'
  ]  # without wrong rows it is the plain arm


def workdir(to: pathlib.Path, task, share, arm, seed) -> pathlib.Path:
  return to / task / f'{share}_{arm}_{seed}'


def run(to: pathlib.Path, cell) -> None:
  """Trains a cell, or goes on with it; a finished one is left as it is."""
  config = noise.get_config(','.join(map(str, cell)), str(to))
  grid.train(config, workdir(to, *cell))


# --- figures --------------------------------------------------------------------------------------
def evaluations(to: pathlib.Path, cell):
  """Returns f64[rows, 2], each held-out row's grade before and after; None: not finished."""
  return grid.grades(workdir(to, *cell), noise.STEPS[cell[0]])


def wrong_rows(to: pathlib.Path, task, share) -> tuple[int, int]:
  """Returns how many rows that are reinforced have a wrong answer, and how many there are."""
  text = (to / task / noise.rows_file(str(share), 'plain')).read_text(encoding='utf-8')
  rows = [json.loads(line) for line in text.splitlines()]
  return sum(bool(row.get('corrupted')) for row in rows), len(rows)


def collect(args) -> list[dict]:
  """Returns a record for each (task, share) with finished cells."""
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
        'seeds': {arm: sorted(given) for arm, given in columns.items()},
        'grade': {
          arm: grid.interval(np.stack([g[:, 1] for g in given.values()]))
          for arm, given in columns.items()
        },
        'more': {},
      }
      record['start'] = float(next(iter(next(iter(columns.values())).values()))[:, 0].mean())
      for arm in columns.keys() - {'plain'}:
        both = sorted(columns[arm].keys() & columns.get('plain', {}).keys())
        if both:
          record['more'][arm] = grid.interval(
            np.stack([columns[arm][seed][:, 1] - columns['plain'][seed][:, 1] for seed in both])
          )
      records.append(record)
  return records


# --- table and picture ----------------------------------------------------------------------------
def table(records, arms) -> str:
  """Returns the table in Markdown."""
  others = [arm for arm in arms if arm != 'plain']
  head = ['task', 'wrong answers', 'start', *arms, *(f'{arm} - plain' for arm in others), 'seeds']
  rows = []
  for one in records:
    rows.append(
      [
        one['task'],
        f'{one["wrong"]} of {one["rows"]}',
        f'{one["start"]:.3f}',
        *(grid.shown(one['grade'].get(arm)) for arm in arms),
        *(grid.signed(one['more'].get(arm)) for arm in others),
        str(max(len(seeds) for seeds in one['seeds'].values())),
      ]
    )
  return grid.markdown(head, rows)


def picture(records, arms, path) -> None:
  """Draws, a column for each task, held-out grade by share of wrong answers, and less plain."""
  import matplotlib
  from matplotlib.figure import Figure

  tasks = list(dict.fromkeys(one['task'] for one in records))
  with matplotlib.rc_context(grid.STYLE | {'axes.grid.axis': 'y'}):
    figure = Figure(figsize=(4.2 * len(tasks), 4.6), layout='constrained', dpi=160)
    rows = figure.subplots(2, len(tasks), sharex='col', squeeze=False, height_ratios=(3, 2))
    for task, (grade, more) in zip(tasks, rows.T):
      mine = [one for one in records if one['task'] == task]
      grade.axhline(
        mine[0]['start'],
        color=COLOURS['before'],
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        label='warmed up, before',
      )
      more.axhline(0, color=COLOURS['plain'], linewidth=1.6)
      for axes, name in ((grade, 'grade'), (more, 'more')):
        for shift, arm in enumerate(arms):
          points = [
            (100 * one['share'] + shift - 1, *one[name][arm]) for one in mine if arm in one[name]
          ]
          if points:
            x, mean, low, high = map(np.array, zip(*points))
            axes.errorbar(
              x,
              mean,
              (mean - low, high - mean),
              color=COLOURS[arm],
              marker='o',
              markersize=4,
              linewidth=1.6,
              elinewidth=1.1,
              label=arm,
            )
      grade.set_title(task.replace('_', ' '))
      more.set(xlabel='% of training answers wrong', xticks=[100 * one['share'] for one in mine])
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
  """Writes noise.md, noise.json and noise.png of the cells that are done, and prints the table."""
  records = collect(args)
  grid.report(
    args.to,
    'noise',
    records,
    table(records, args.arms),
    lambda path: picture(records, args.arms, path),
  )


# --- the command ----------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--to', type=pathlib.Path, default=pathlib.Path(noise.HERE))
  made.add_argument('--tasks', nargs='+', choices=tuple(noise.TASKS), default=list(noise.TASKS))
  made.add_argument(
    '--shares', nargs='+', type=float, choices=noise.SHARES, default=list(noise.SHARES)
  )
  made.add_argument('--arms', nargs='+', choices=noise.ARMS, default=list(noise.ARMS))
  made.add_argument('--prepare', action='store_true', help='rows and warmed-up models alone')
  grid.add_arguments(made)
  return made


def main(arguments=None) -> int:
  args = parser().parse_args(arguments)
  whole = not (args.prepare or args.cells or args.report)
  try:
    if args.prepare or whole:
      for task in args.tasks:
        prepare(task, args.to)
    if args.cells or whole:
      for cell in grid.part(cells(args), args.cells):
        run(args.to, cell)
        print('done:', *cell, flush=True)
    if args.report or whole:
      report(args)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
