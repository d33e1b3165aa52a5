"""The arms of configs/arithmetic_objectives.py, each from the same model: what each one learns.

  python scripts/compare_objectives.py --to=runs/objectives               # all of it
  python scripts/compare_objectives.py --to=runs/objectives --cells=1/2   # half; 2/2 elsewhere
  python scripts/compare_objectives.py --to=runs/objectives --report      # table and picture so far

An arm that is done is not trained again, and one that was stopped goes on. Written are
objectives.md, objectives.json and objectives.png into --to.

Grades are the mean of 4 samples at temperature 1 of each held-out row, over the seeds that are
done; intervals are 95 % bootstraps that draw seeds and rows; "lift", and "- response", what an arm
ends above credit by whole responses, are paired by row and seed.
Seconds are of a whole run, evaluations and compilation included, that of the fastest seed.
"""

import argparse
import json
import pathlib
import statistics
import sys

import grid
import numpy as np

from rft_jax.records import metrics
from rft_jax.tasks.__main__ import main as make_task

objectives = grid.config_file('arithmetic_objectives')
BASE = 'response'  # the arm that the others are compared with


# --- cells ----------------------------------------------------------------------------------------
def prepare(to: pathlib.Path) -> None:
  """Makes the rows and the warmed-up model, unless they are there."""
  if not (to / 'data' / 'train.jsonl').is_file():
    make_task([*objectives.MAKE.split()[3:], f'--to={to}/data'])
  grid.train(objectives.get_config(f'warm_up:{to}'), to / 'warm_up')


def cells(args) -> list[tuple[str, int]]:
  """Returns (arm, seed) of every cell; one seed of all arms before the next."""
  return [(arm, seed) for seed in args.seeds for arm in args.arms]


def workdir(to: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
  return to / f'{arm.replace(", ", "_")}_{seed}'


def run(to: pathlib.Path, arm: str, seed: int) -> None:
  config = objectives.get_config(f'{arm}:{to}')
  config.seed = seed
  grid.train(config, workdir(to, arm, seed))


# --- figures --------------------------------------------------------------------------------------
def collect(args) -> list[dict]:
  """Returns a record for each arm with finished cells."""
  records, after = [], {}
  for arm in args.arms:
    done = {
      seed: grades
      for seed in args.seeds
      if (grades := grid.grades(workdir(args.to, arm, seed), objectives.STEPS)) is not None
    }
    if not done:
      continue
    after[arm] = {seed: of_one[:, 1] for seed, of_one in done.items()}
    grades = np.stack(list(done.values()))
    lifts = grades[..., 1] - grades[..., 0]
    places = [workdir(args.to, arm, seed) for seed in done]
    rows = [metrics.read(place / metrics.TRAINING) for place in places]
    seconds = [
      json.loads((place / grid.SECONDS).read_text())
      for place in places
      if (place / grid.SECONDS).is_file()
    ]
    records.append(
      {
        'arm': arm,
        'before': float(grades[..., 0].mean()),
        'after': grid.interval(grades[..., 1]),
        'lift': grid.interval(lifts),
        'seeds': [float(one.mean()) for one in lifts],
        'tokens': statistics.median(
          one[-1]['num_tokens'] + sum(row.get('credit/resampled_tokens', 0) for row in one)
          for one in rows
        ),
        'seconds': min(seconds, default=None),
      }
    )
  for one in records:
    both = sorted(after[one['arm']].keys() & after.get(BASE, {}).keys())
    one['more'] = (
      one['arm'] != BASE
      and both
      and grid.interval(np.stack([after[one['arm']][seed] - after[BASE][seed] for seed in both]))
    )
  return records


def table(records) -> str:
  """Returns the table in Markdown."""
  return grid.markdown(
    ['arm', 'before', 'after', 'lift', 'of each seed', f'- {BASE}', 'tokens', 'seconds'],
    [
      [
        one['arm'],
        f'{one["before"]:.3f}',
        grid.shown(one['after']),
        grid.signed(one['lift']),
        ', '.join(f'{lift:+.3f}' for lift in one['seeds']),
        grid.signed(one['more']),
        f'{one["tokens"]:,.0f}',
        '' if one['seconds'] is None else f'{one["seconds"]:.0f}',
      ]
      for one in records
    ],
  )


def picture(records, path) -> None:
  """Draws, a line for each arm, the lift with its interval and beside it what the run has cost."""
  import matplotlib
  from matplotlib.figure import Figure

  with matplotlib.rc_context(grid.STYLE | {'axes.grid.axis': 'x'}):
    figure = Figure(figsize=(7.6, 1.1 + 0.25 * len(records)), layout='constrained', dpi=160)
    lifts, costs = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    costs.set_axisbelow(True)
    places = range(len(records), 0, -1)
    mean, low, high = np.array([one['lift'] for one in records]).T
    lifts.axvline(0, color=grid.COLOURS[3], linewidth=0.9, linestyle=(0, (4, 3)))
    lifts.errorbar(
      mean,
      places,
      xerr=(mean - low, high - mean),
      fmt='o',
      markersize=4.5,
      color=grid.COLOURS[1],
      elinewidth=1.6,
      label='mean, 95 %',
    )
    for number, (place, one) in enumerate(zip(places, records)):
      lifts.plot(
        one['seeds'],
        [place] * len(one['seeds']),
        '|',
        color=grid.COLOURS[0],
        markersize=8,
        label=None if number else 'each seed',
      )
      costs.text(
        one['seconds'] or 0, place, f' {one["tokens"] / 1e6:.1f} M', va='center', fontsize=7.5
      )
    costs.barh(
      places,
      [one['seconds'] or 0 for one in records],
      height=0.55,
      color=grid.COLOURS[2],
      alpha=0.6,
    )
    costs.margins(x=0.18)
    lifts.set_yticks(list(places), [one['arm'] for one in records])
    lifts.set_xlabel('lift of the held-out grade')
    costs.set_xlabel('seconds of the run, and tokens sampled')
    lifts.legend(frameon=False, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncols=2)
    grid.save(figure, path)


def report(args) -> None:
  """Writes objectives.md, .json and .png of the cells that are done, and prints the table."""
  records = collect(args)
  grid.report(args.to, 'objectives', records, table(records), lambda path: picture(records, path))


# --- the command ----------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--to', type=pathlib.Path, default=pathlib.Path(objectives.FOLDER))
  made.add_argument(
    '--arms', nargs='+', choices=tuple(objectives.ARMS), default=list(objectives.ARMS)
  )
  grid.add_arguments(made)
  return made


def main(arguments=None) -> int:
  args = parser().parse_args(arguments)
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
