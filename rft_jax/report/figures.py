"""Draws charts as inline SVG with matplotlib; colours and font are those of the page.

Every colour is drawn as a placeholder and replaced by a CSS variable, so that one SVG suits a
light and a dark page. Text stays text and takes the font of the page.
"""

import hashlib
import io
import math
import re
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Role -> the placeholder matplotlib draws with. The page defines --role.
_ROLES = {
  'ink': '#010101',
  'muted': '#020202',
  'grid': '#030303',
  'before': '#040404',
  'after': '#050505',
  'other': '#060606',
  'reference': '#070707',
}
_INCHES, _POINTS = (4.7, 2.35), 8.5  # small: the page enlarges it, and its text must stay readable
_STYLE: dict[Any, Any] = {  # matplotlib types its keys as literals
  'svg.fonttype': 'none',
  'svg.hashsalt': 'rft_jax',
  'font.size': _POINTS,
  'axes.edgecolor': _ROLES['grid'],
  'axes.labelcolor': _ROLES['muted'],
  'xtick.color': _ROLES['grid'],
  'ytick.color': _ROLES['grid'],
  'xtick.labelcolor': _ROLES['muted'],
  'ytick.labelcolor': _ROLES['muted'],
  'figure.facecolor': 'none',
  'axes.facecolor': 'none',
  'text.color': _ROLES['muted'],
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.spines.left': False,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'grid.color': _ROLES['grid'],
  'grid.linewidth': 0.6,
  'axes.axisbelow': True,
  'ytick.major.size': 0,
  'xtick.major.size': 3,
  'axes.formatter.useoffset': False,
  'axes.formatter.limits': (-3, 5),
  'axes.formatter.use_mathtext': False,
}


class Line(NamedTuple):
  """One curve."""

  label: str
  role: str  # a colour: 'before', 'after', 'other', 'reference'
  steps: list
  values: list  # None where there is no number
  low: list | None = None  # with an interval: dots with a band
  high: list | None = None


@matplotlib.rc_context(_STYLE)
def draw_curves(
  lines: list[Line], *, last: int, stages=(), levels=(), unit_interval: bool = False
) -> str:
  """Returns an SVG of curves over training steps.

  Args:
    lines: at least one. One of more than 40 points without an interval is drawn faint, with its
      running mean on top.
    last: the last step of the run: all its charts have the same step axis.
    stages: (first step, name) of each stage; drawn if there are two or more.
    levels: (label, value) of horizontal lines to compare with.
    unit_interval: the values lie in [0, 1]; so does the axis.
  """
  figure = Figure(figsize=_INCHES, layout='constrained')
  axes = figure.add_subplot()
  for line in lines:
    steps, values = np.asarray(line.steps, float), _numbers(line.values)
    colour = _ROLES[line.role]
    if line.low is not None:
      axes.fill_between(
        steps, _numbers(line.low), _numbers(line.high), color=colour, alpha=0.18, linewidth=0
      )
      axes.plot(steps, values, color=colour, linewidth=1.6, marker='o', markersize=3.4)
    elif len(values) > 40:
      axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
      axes.plot(steps, running_mean(values), color=colour, linewidth=1.8)
    else:
      axes.plot(steps, values, color=colour, linewidth=1.6)
  if unit_interval:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -0.02), min(high, 1.02))
  axes.set_xlim(-0.02 * last, 1.02 * last)
  _mark_levels(axes, levels)
  if len(stages) > 1:
    _mark_stages(axes, stages, last)
  axes.set_xlabel('step')
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:.6g}')  # no separate power of ten
  return _svg(figure)


@matplotlib.rc_context(_STYLE)
def draw_histogram(before: list, after: list, *, label: str, bins: int = 20) -> str:
  """Returns an SVG of two distributions as shares of their samples, over common bins."""
  figure = Figure(figsize=_INCHES, layout='constrained')
  axes = figure.add_subplot()
  pooled = np.concatenate([before, after]).astype(float)
  edges = np.histogram_bin_edges(pooled, bins=bins, range=_histogram_range(pooled))
  for values, role, alpha in ((before, 'before', 0.30), (after, 'after', 0.22)):
    share, _ = np.histogram(values, bins=edges)
    share = 100 * share / max(len(values), 1)
    axes.stairs(share, edges, color=_ROLES[role], fill=True, alpha=alpha, linewidth=0)
    axes.stairs(share, edges, color=_ROLES[role], linewidth=1.4)
  axes.set_xlabel(label)
  axes.yaxis.set_major_formatter(lambda value, _: f'{value:g} %')
  axes.set_ylim(bottom=0)
  return _svg(figure)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns round numbers that cover [low, high]; none outside [0, 1] if both lie inside."""
  if high <= low:
    low, high = (0.0, 1.0) if 0 <= low <= 1 else (low - 0.5, low + 0.5)
  values = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
  if low >= 0 and high <= 1:
    values = [value for value in values if -1e-9 <= value <= 1 + 1e-9]
  return [float(f'{value:.6g}') + 0.0 for value in values]


def running_mean(values: np.ndarray) -> np.ndarray:
  """Returns the centred running mean over a fifteenth of the points; ignores NaN."""
  width = max(len(values) // 15, 3) | 1
  finite = np.isfinite(values)
  window = np.ones(width)
  total = np.convolve(np.where(finite, values, 0.0), window, 'full')
  count = np.convolve(finite.astype(float), window, 'full')
  cut = slice(width // 2, width // 2 + len(values))
  return np.where(count[cut] > 0, total[cut] / np.maximum(count[cut], 1), np.nan)


def _mark_levels(axes, levels):
  """Draws dashed lines, labelled above, or below where the next one is close above."""
  values = sorted(value for _, value in levels)
  low, high = axes.get_ylim()
  height = high - low
  low = min([low, *(value - 0.04 * height for value in values)])
  high = max([high, *(value + 0.12 * height for value in values)])  # the label fits inside
  axes.set_ylim(low, high)
  for label, value in levels:
    above = next((other for other in values if other > value), math.inf)
    below = above - value < 0.12 * (high - low)
    axes.axhline(value, color=_ROLES['reference'], linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
      label,
      (1, value),
      xycoords=('axes fraction', 'data'),
      ha='right',
      xytext=(-2, -2.5 if below else 2.5),
      textcoords='offset points',
      va='top' if below else 'bottom',
      color=_ROLES['reference'],
      parse_math=False,
    )


def _mark_stages(axes, stages, last):
  """Draws a dotted line where each later stage begins, and the names of all along the top."""
  for number, (first, name) in enumerate(stages):
    if first >= last:
      continue
    if number:
      axes.axvline(first, color=_ROLES['muted'], linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
      name,
      (first, 1),
      xycoords=('data', 'axes fraction'),
      xytext=(2, 1.5),
      textcoords='offset points',
      ha='left',
      va='bottom',
      color=_ROLES['muted'],
      parse_math=False,
    )


def _histogram_range(values):
  """Returns [0, 1] for values within it (grades), otherwise from 0 to the largest (lengths)."""
  low, high = float(values.min()), float(values.max())
  if low >= 0 and high <= 1:
    return 0.0, 1.0
  return (min(low, 0.0), high) if high > low else (low - 0.5, low + 0.5)


def _numbers(values):
  return np.asarray([np.nan if value is None else value for value in values], float)


def _svg(figure):
  """Returns the figure as an <svg> element that scales with its column."""
  buffer = io.StringIO()
  FigureCanvasSVG(figure).print_svg(
    buffer, metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
  )
  text = buffer.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(
    r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1
  )
  text = re.sub(
    r'<style type="text/css">.*?</style>', '', text, flags=re.S
  )  # would style the whole page
  text = re.sub(r' font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"', '', text)
  # One page holds many figures: group ids are removed, referenced ids get a prefix of the figure.
  text = re.sub(r'<g id="[^"]*"', '<g', text)
  prefix = hashlib.sha256(text.encode()).hexdigest()[:8]
  text = re.sub(r'(id="|href="#|url\(#)([mp][0-9a-f]{6,})', rf'\1f{prefix}-\2', text)
  for role, placeholder in _ROLES.items():
    text = text.replace(placeholder, f'var(--{role})')
  return re.sub(r'\s*\n\s*', ' ', text).strip()
