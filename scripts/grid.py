"""Shared parts of the scripts that train a grid of small runs: configs, training, tables, plots."""

import importlib.util
import pathlib
import time

import numpy as np

from rft_jax.records import atomic, metrics
from rft_jax.report import held_out

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 'seconds.json'  # in a workdir: seconds of its training, evaluations included
COLORS = ('#6b7380', '#0b766b', '#5652c9', '#b0500a')  # the colors of report.html
STYLE = {
  'font.size': 9,
  'axes.edgecolor': '#dcdad4',
  'axes.labelcolor': '#595f69',
  'xtick.color': '#595f69',
  'ytick.color': '#595f69',
  'text.color': '#595f69',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'axes.grid': True,
  'grid.color': '#dcdad4',
  'ytick.major.size': 0,
}


def config_file(name: str):
  """Returns configs/NAME.py as a module."""
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def train(config, workdir: pathlib.Path) -> None:
  """Trains a run, or continues it; a finished run is not changed."""
  import rft_jax

  if grades(workdir, config.total_steps()) is None:
    start = time.monotonic()
    is_new = not workdir.is_dir()
    rft_jax.train(config, workdir, quiet=True)
    if is_new:
      atomic.write_json(workdir / SECONDS, round(time.monotonic() - start, 1))


def grades(workdir: pathlib.Path, steps: int):
  """Returns f64[rows, 2], the grade of each held-out row before and after; None if not finished."""
  rows = metrics.read(workdir / metrics.EVALUATION)
  if not rows or rows[-1]['step'] != steps:
    return None
  ends = [held_out.read(workdir, rows[0]), held_out.read(workdir, rows[-1])]
  return np.array([[held_out.sampled_grade(end[row]) for end in ends] for row in sorted(ends[1])])


def interval_text(values) -> str:
  return '{:.3f} [{:.3f}, {:.3f}]'.format(*values) if values else ''


def signed_interval_text(values) -> str:
  return '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*values) if values else ''


def save(figure, path: pathlib.Path) -> None:
  """Writes a matplotlib figure as PNG."""
  with atomic.replacing(path) as partial:
    figure.savefig(partial, format='png', facecolor='white')


def report(to: pathlib.Path, name: str, records: list, text: str, draw) -> None:
  """Writes to/NAME.md, to/NAME.json and, with draw(path), to/NAME.png; prints the text.

  Raises:
    ValueError: there are no records.
  """
  if not records:
    raise ValueError(f'{to}: no finished cell; run without --report first')
  atomic.write_text(to / f'{name}.md', text)
  atomic.write_json(to / f'{name}.json', records)
  draw(to / f'{name}.png')
  print(text, end='')


def add_arguments(parser) -> None:
  """Adds the arguments that all grids have."""
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument(
    '--cells', help='K/N: only train every Nth cell from the Kth on (K is 1 to N)'
  )
  parser.add_argument('--report', action='store_true', help='only write table and plot')


def part(cells: list, which: str) -> list:
  """Returns every Nth cell from the Kth on, for which='K/N'; all cells if it is empty."""
  first, _, parts = (which or '1/1').partition('/')
  return cells[int(first) - 1 :: int(parts)]


def markdown(header: list[str], rows: list[list[str]]) -> str:
  """Returns a Markdown table."""
  lines = [header, ['---'] * len(header), *rows]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)
