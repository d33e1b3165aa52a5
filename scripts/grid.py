"""What scripts share that train many small runs: a config file as a module, cells, intervals."""

import importlib.util
import pathlib
import time

import numpy as np

from rft_jax.records import atomic, metrics
from rft_jax.report import held_out

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESAMPLES = 4000
SECONDS = 'seconds.json'  # in a workdir: how long its training took, evaluations included
COLOURS = ('#6b7380', '#0b766b', '#5652c9', '#b0500a')  # those of the report
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


def train(config, place: pathlib.Path) -> None:
  """Trains a run, or goes on with it; one that is done is left as it is."""
  import rft_jax

  if grades(place, config.total_steps()) is None:
    began = time.monotonic()
    fresh = not place.is_dir()
    rft_jax.train(config, place, quiet=True)
    if fresh:
      atomic.write_json(place / SECONDS, round(time.monotonic() - began, 1))


def grades(place: pathlib.Path, steps: int):
  """Returns f64[rows, 2], each held-out row's grade before and after; None: not finished."""
  rows = metrics.read(place / metrics.EVALUATION)
  if not rows or rows[-1]['step'] != steps:
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


def shown(values) -> str:
  return '{:.3f} [{:.3f}, {:.3f}]'.format(*values) if values else ''


def signed(values) -> str:
  return '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*values) if values else ''


def save(figure, path: pathlib.Path) -> None:
  """Writes a matplotlib figure as PNG."""
  with atomic.replacing(path) as partial:
    figure.savefig(partial, format='png', facecolor='white')


def report(to: pathlib.Path, name: str, records: list, text: str, draw) -> None:
  """Writes to/NAME.md, .json and, by draw(path), .png, and prints the text.

  Raises:
    ValueError: there are no records.
  """
  if not records:
    raise ValueError(f'{to}: no cell is done yet; run this without --report')
  atomic.write_text(to / f'{name}.md', text)
  atomic.write_json(to / f'{name}.json', records)
  draw(to / f'{name}.png')
  print(text, end='')


def add_arguments(parser) -> None:
  """Adds what every grid of runs can be asked for."""
  parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
  parser.add_argument('--cells', help='K/N: cells alone, each Nth from the Kth on (1 to N)')
  parser.add_argument('--report', action='store_true', help='table and picture alone')


def part(cells: list, which: str) -> list:
  """Returns the Kth of N parts of the cells, as 'K/N' says; every one where it is empty."""
  first, _, parts = (which or '1/1').partition('/')
  return cells[int(first) - 1 :: int(parts)]


def markdown(head: list[str], rows: list[list[str]]) -> str:
  """Returns a table."""
  lines = [head, ['---'] * len(head), *rows]
  return ''.join('| ' + ' | '.join(line) + ' |\n' for line in lines)
