"""What wrong training answers cost: held-out truth against their share, plain and robust GRPO.

  python scripts/bench_noise.py --to=runs/noise --prepare    # rows, and the warmed-up models
  python scripts/bench_noise.py --to=runs/noise --cells=1/2  # half of the grid; 2/2 elsewhere
  python scripts/bench_noise.py --to=runs/noise --report     # table and picture so far

Without --prepare, --cells or --report it does all of it. A cell that is done is not run again, and
one that was stopped goes on. configs/noise_grpo.py says what a cell is. Written are noise.md (the
table), noise.png and noise.json into --to.

A figure is the mean true grade of 4 samples at temperature 1 of each held-out row, over the seeds
that are done; its interval is a 95 % bootstrap that draws seeds and rows. Differences are paired by
row and seed. 'found' counts the rows left out at the end, and how many of them are wrong.
"""
import argparse
import dataclasses
import importlib.util
import json
import pathlib
import sys

import numpy as np

from rft_jax.records import atomic, held_out, left_out, metrics
from rft_jax.tasks import TASKS, base_checkpoint, files

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESAMPLES = 4000
COLOURS = {'plain': '#6b7380', 'robust': '#0b766b', 'told': '#5652c9'}  # those of the report
INK, GRID, REFERENCE = '#595f69', '#dcdad4', '#b0500a'


def _grid():
  """Returns configs/noise_grpo.py as a module."""
  spec = importlib.util.spec_from_file_location('noise_grpo', ROOT / 'configs' / 'noise_grpo.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


noise = _grid()


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
  import rft_jax
  place = to / task
  if (place / 'warm_up' / 'export' / 'config.json').is_file():
    return
  if not (place / 'base' / 'config.json').is_file():
    write_rows(task, place)
  rft_jax.train(noise.get_config(f'{task},warm_up', str(to)), place / 'warm_up', quiet=True)


def cells(args) -> list[tuple[str, float, str, int]]:
  """Returns (task, share, arm, seed) of every cell; one seed of all of them before the next."""
  return [(task, share, arm, seed) for seed in args.seeds for share in args.shares
          for task in args.tasks for arm in args.arms
          if share or arm != 'told']  # without wrong rows it is the plain arm


def workdir(to: pathlib.Path, task, share, arm, seed) -> pathlib.Path:
  return to / task / f'{share}_{arm}_{seed}'


def run(to: pathlib.Path, cell) -> None:
  """Trains a cell, or goes on with it; a finished one is left as it is."""
  import rft_jax
  task, share, arm, seed = cell
  if evaluations(to, cell) is None:
    config = noise.get_config(f'{task},{share},{arm},{seed}', str(to))
    rft_jax.train(config, workdir(to, *cell), quiet=True)


# --- figures --------------------------------------------------------------------------------------
def evaluations(to: pathlib.Path, cell):
  """Returns f64[rows, 2], each held-out row's grade before and after; None: not finished."""
  place, task = workdir(to, *cell), cell[0]
  rows = metrics.read(place / metrics.EVALUATION)
  if not rows or rows[-1]['step'] != noise.STEPS[task]:
    return None
  ends = [held_out.read(place, rows[0]), held_out.read(place, rows[-1])]
  return np.array([[held_out.sampled_grade(end[row]) for end in ends] for row in sorted(ends[1])])


def interval(values) -> tuple[float, float, float]:
  """Returns the mean of f64[seeds, rows] with its 95 % interval, drawing seeds and rows."""
  rng = np.random.default_rng(0)
  seeds, rows = values.shape
  by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
  by_row = rng.multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES) / rows
  means = np.einsum('bs,sr,br->b', by_seed, values, by_row, optimize=True)
  low, high = np.quantile(means, [0.025, 0.975])
  return float(values.mean()), float(low), float(high)


def wrong_rows(to: pathlib.Path, task, share) -> tuple[set[int], int]:
  """Returns the lines with a wrong answer among those reinforced, and how many lines there are."""
  text = (to / task / noise.rows_file(str(share), 'plain')).read_text(encoding='utf-8')
  rows = [json.loads(line) for line in text.splitlines()]
  return {n for n, row in enumerate(rows, 1) if row.get('corrupted')}, len(rows)


def found(to: pathlib.Path, cell, wrong: set[int]) -> tuple[int, int]:
  """Returns how many rows a run leaves out at its end, and how many of those are wrong."""
  lines = metrics.read(workdir(to, *cell) / left_out.LEFT_OUT)
  out = {int(line['row'].rpartition(':')[2]) for line in lines}
  return len(out), len(out & wrong)


def collect(args) -> list[dict]:
  """Returns a record for each (task, share) with finished cells."""
  records = []
  for task in args.tasks:
    for share in args.shares:
      columns, outs = {}, []
      for _, _, arm, seed in (cell for cell in cells(args) if cell[:2] == (task, share)):
        cell = (task, share, arm, seed)
        if (grades := evaluations(args.to, cell)) is not None:
          columns.setdefault(arm, {})[seed] = grades
          outs += [found(args.to, cell, wrong_rows(args.to, task, share)[0])] * (arm == 'robust')
      if not columns:
        continue
      wrong, rows = wrong_rows(args.to, task, share)
      record = {'task': task, 'share': share, 'wrong': len(wrong), 'rows': rows, 'found': outs,
                'seeds': {arm: sorted(given) for arm, given in columns.items()},
                'grade': {arm: interval(np.stack([g[:, 1] for g in given.values()]))
                          for arm, given in columns.items()}, 'more': {}}
      record['start'] = float(next(iter(next(iter(columns.values())).values()))[:, 0].mean())
      for arm in columns.keys() - {'plain'}:
        both = sorted(columns[arm].keys() & columns.get('plain', {}).keys())
        if both:
          record['more'][arm] = interval(np.stack(
              [columns[arm][seed][:, 1] - columns['plain'][seed][:, 1] for seed in both]))
      records.append(record)
  return records


# --- table and picture ----------------------------------------------------------------------------
def table(records, arms) -> str:
  """Returns the table in Markdown."""
  shown = lambda values: '{:.3f} [{:.3f}, {:.3f}]'.format(*values) if values else ''
  signed = lambda values: '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*values) if values else ''
  others = [arm for arm in arms if arm != 'plain']
  head = ['task', 'wrong answers', 'start', *arms, *(f'{arm} - plain' for arm in others), 'found',
          'seeds']
  lines = ['| ' + ' | '.join(head) + ' |', '|---' * len(head) + '|']
  for one in records:
    out = ', '.join(f'{right} of {total}' for total, right in one['found'])
    lines.append('| ' + ' | '.join([
        one['task'], f'{one["wrong"]} of {one["rows"]}', f'{one["start"]:.3f}',
        *(shown(one['grade'].get(arm)) for arm in arms),
        *(signed(one['more'].get(arm)) for arm in others), out,
        str(max(len(seeds) for seeds in one['seeds'].values()))]) + ' |')
  return '\n'.join(lines) + '\n'


def picture(records, arms, path) -> None:
  """Draws held-out grade against the share of wrong answers, a panel for each task."""
  import matplotlib
  from matplotlib.figure import Figure
  tasks = list(dict.fromkeys(one['task'] for one in records))
  style = {'font.size': 9, 'axes.edgecolor': GRID, 'axes.labelcolor': INK, 'xtick.color': INK,
           'ytick.color': INK, 'text.color': INK, 'axes.spines.top': False,
           'axes.spines.right': False, 'axes.spines.left': False, 'axes.grid': True,
           'axes.grid.axis': 'y', 'grid.color': GRID, 'ytick.major.size': 0}
  with matplotlib.rc_context(style):
    figure = Figure(figsize=(4.2 * len(tasks), 3.1), layout='constrained', dpi=160)
    for number, task in enumerate(tasks, 1):
      axes, mine = figure.add_subplot(1, len(tasks), number), [
          one for one in records if one['task'] == task]
      axes.axhline(mine[0]['start'], color=REFERENCE, linewidth=0.9, linestyle=(0, (4, 3)),
                   label='warmed up, before')
      for shift, arm in enumerate(arm for arm in arms if any(arm in one['grade'] for one in mine)):
        points = [(100 * one['share'] + 0.5 * (shift - 0.5), *one['grade'][arm]) for one in mine
                  if arm in one['grade']]
        x, mean, low, high = map(np.array, zip(*points))
        axes.errorbar(x, mean, (mean - low, high - mean), color=COLOURS[arm], marker='o',
                      markersize=4, linewidth=1.6, elinewidth=1.1, label=arm)
      axes.set(title=task.replace('_', ' '), xlabel='% of training answers wrong',
               xticks=[100 * one['share'] for one in mine])
      if number == 1:
        axes.set_ylabel('held-out true grade')
      axes.legend(frameon=False, fontsize=8)
    with atomic.replacing(path) as partial:
      figure.savefig(partial, format='png', facecolor='white')


def report(args) -> None:
  """Writes noise.md, noise.json and noise.png of the cells that are done, and prints the table."""
  records = collect(args)
  if not records:
    raise ValueError(f'{args.to}: no cell is done yet; run this without --report')
  atomic.write_text(args.to / 'noise.md', text := table(records, args.arms))
  atomic.write_json(args.to / 'noise.json', records)
  picture(records, args.arms, args.to / 'noise.png')
  print(text, end='')


# --- the command ----------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(description=__doc__,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
  made.add_argument('--to', type=pathlib.Path, default=pathlib.Path(noise.HERE))
  made.add_argument('--tasks', nargs='+', choices=tuple(noise.TASKS), default=list(noise.TASKS))
  made.add_argument('--shares', nargs='+', type=float, choices=noise.SHARES,
                    default=list(noise.SHARES))
  made.add_argument('--arms', nargs='+', choices=noise.ARMS, default=['plain', 'robust'])
  made.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  made.add_argument('--prepare', action='store_true', help='rows and warmed-up models alone')
  made.add_argument('--cells', help='K/N: cells alone, each Nth from the Kth on (1 to N)')
  made.add_argument('--report', action='store_true', help='table and picture alone')
  return made


def main(arguments=None) -> int:
  args = parser().parse_args(arguments)
  whole = not (args.prepare or args.cells or args.report)
  try:
    if args.prepare or whole:
      for task in args.tasks:
        prepare(task, args.to)
    if args.cells or whole:
      part, parts = map(int, (args.cells or '1/1').split('/'))
      for cell in cells(args)[part - 1::parts]:
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
