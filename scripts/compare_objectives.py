"""Trains and compares all arms of configs/arithmetic_objectives.py from the same warm-up model.

  python scripts/compare_objectives.py --to=runs/objectives               # all of it
  python scripts/compare_objectives.py --to=runs/objectives --cells=1/2   # half; 2/2 elsewhere
  python scripts/compare_objectives.py --to=runs/objectives --report      # table and plot so far

A finished arm is not trained again, an interrupted one continues. objectives.md, objectives.json
and objectives.png are written into --to.

Grades are the mean of 4 samples at temperature 1 of each held-out row, over the finished seeds;
intervals are 95 % bootstraps over seeds and rows. "lift" (after - before) and "- response" (after,
minus that of the `response` arm) are paired by row and seed.
Seconds are those of a whole run, evaluations and compilation included, of the fastest seed.
"""

import argparse
import json
import pathlib
import statistics
import sys

import grid
import numpy as np

from rft_jax.bootstrap import interval_over_seeds_and_rows
from rft_jax.records import metrics
from rft_jax.tasks.__main__ import main as make_task

objectives = grid.config_file('arithmetic_objectives')
BASELINE = 'response'  # the arm that the others are compared with


# --- cells ----------------------------------------------------------------------------------------
def prepare(to: pathlib.Path) -> None:
  """Writes the rows and trains the warm-up model, unless they exist."""
  if not (to / 'data' / 'train.jsonl').is_file():
    make_task([*objectives.MAKE.split()[3:], f'--to={to}/data'])
  grid.train(objectives.get_config(f'warm_up:{to}'), to / 'warm_up')


def cells(args) -> list[tuple[str, int]]:
  """Returns (arm, seed) of every cell, ordered by seed."""
  return [(arm, seed) for seed in args.seeds for arm in args.arms]


def workdir(to: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  return to / f'{arm.replace(", ", "_")}_{seed}'


def run(to: pathlib.Path, arm: str, seed: int) -> None:
  config = objectives.get_config(f'{arm}:{to}')
  config.seed = seed
  grid.train(config, workdir(to, arm, seed))


# --- figures --------------------------------------------------------------------------------------
def collect(args) -> list[dict]:
  """Returns a record for each arm that has finished cells."""
  records, after = [], {}
  for arm in args.arms:
    grades_by_seed = {
      seed: grades
      for seed in args.seeds
      if (grades := grid.grades(workdir(args.to, arm, seed), objectives.STEPS)) is not None
    }
    if not grades_by_seed:
      continue
    after[arm] = {seed: grades[:, 1] for seed, grades in grades_by_seed.items()}
    grades = np.stack(list(grades_by_seed.values()))
    lifts = grades[..., 1] - grades[..., 0]
    workdirs = [workdir(args.to, arm, seed) for seed in grades_by_seed]
    runs = [metrics.read(path / metrics.TRAINING) for path in workdirs]
    seconds = [
      json.loads((path / grid.SECONDS).read_text())
      for path in workdirs
      if (path / grid.SECONDS).is_file()
    ]
    records.append(
      {
        'arm': arm,
        'before': float(grades[..., 0].mean()),
        'after': interval_over_seeds_and_rows(grades[..., 1]),
        'lift': interval_over_seeds_and_rows(lifts),
        'seeds': [float(lift.mean()) for lift in lifts],
        'tokens': statistics.median(
          rows[-1]['num_tokens'] + sum(row.get('credit/resampled_tokens', 0) for row in rows)
          for rows in runs
        ),
        'seconds': min(seconds, default=None),
      }
    )
  baseline = after.get(BASELINE, {})
  for record in records:
    arm_after = after[record['arm']]
    seeds = sorted(arm_after.keys() & baseline.keys())
    record['more'] = (  # arm - baseline
      record['arm'] != BASELINE
      and seeds
      and interval_over_seeds_and_rows(np.stack([arm_after[s] - baseline[s] for s in seeds]))
    )
  return records


def table(records) -> str:
  """Returns the table in Markdown."""
  return grid.markdown(
    ['arm', 'before', 'after', 'lift', 'of each seed', f'- {BASELINE}', 'tokens', 'seconds'],
    [
      [
        record['arm'],
        f'{record["before"]:.3f}',
        grid.interval_text(record['after']),
        grid.signed_interval_text(record['lift']),
        ', '.join(f'{lift:+.3f}' for lift in record['seeds']),
        grid.signed_interval_text(record['more']),
        f'{record["tokens"]:,.0f}',
        '' if record['seconds'] is None else f'{record["seconds"]:.0f}',
      ]
      for record in records
    ],
  )


def plot(records, path) -> None:
  """Plots the lift of each arm with its interval, and the seconds and tokens of the run."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(grid.STYLE | {'axes.grid.axis': 'x'}):
    figure = Figure(figsize=(7.6, 1.1 + 0.25 * len(records)), layout='constrained', dpi=160)
    lifts, costs = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    costs.set_axisbelow(True)
    positions = range(len(records), 0, -1)
    mean, low, high = np.array([record['lift'] for record in records]).T
    lifts.axvline(0, color=grid.COLORS[3], linewidth=0.9, linestyle=(0, (4, 3)))
    lifts.errorbar(
      mean,
      positions,
      xerr=(mean - low, high - mean),
      fmt='o',
      markersize=4.5,
      color=grid.COLORS[1],
      elinewidth=1.6,
      label='mean, 95 %',
    )
    for number, (y, record) in enumerate(zip(positions, records)):
      lifts.plot(
        record['seeds'],
        [y] * len(record['seeds']),
        '|',
        color=grid.COLORS[0],
        markersize=8,
        label=None if number else 'each seed',
      )
      costs.text(
        record['seconds'] or 0, y, f' {record["tokens"] / 1e6:.1f} M', va='center', fontsize=7.5
      )
    costs.barh(
      positions,
      [record['seconds'] or 0 for record in records],
      height=0.55,
      color=grid.COLORS[2],
      alpha=0.6,
    )
    costs.margins(x=0.18)
    lifts.set_yticks(list(positions), [record['arm'] for record in records])
    lifts.set_xlabel('lift of the held-out grade')
    costs.set_xlabel('seconds of the run, and tokens sampled')
    lifts.legend(frameon=False, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=2)
    grid.save(figure, path)


def report(args) -> None:
  """Writes objectives.md, .json and .png of the finished cells, and prints the table."""
  records = collect(args)
  grid.report(args.to, 'objectives', records, table(records), lambda path: plot(records, path))


# --- the command ----------------------------------------------------------------------------------
def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--to', type=pathlib.Path, default=pathlib.Path(objectives.FOLDER))
  parser.add_argument(
    '--arms', nargs='+', choices=tuple(objectives.ARMS), default=list(objectives.ARMS)
  )
  grid.add_arguments(parser)
  return parser


def main(arguments=None) -> int:
  args = make_parser().parse_args(arguments)
  try:
    if not args.report:
      prepare(args.to)
      for cell in grid.part(cells(args), args.cells):
        run(args.to, *cell)
        print('done:', *cell, flush=True)
    if args.report or not args.cells:
      report(args)
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
