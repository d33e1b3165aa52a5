"""Progress line of a run: a live line on a terminal, plain log lines elsewhere."""

import collections
import statistics
import sys
import time
from typing import Any

_WINDOW = 20  # steps, of the running median of seconds per step
_SECONDS = 10.0  # between two plain lines, at least


class Progress:
  """Shows stage, step, reward, held-out grade, tokens per second and the time left.

  The time left is the running median of the seconds per step times the remaining steps: a step
  that compiled or evaluated does not distort it.

      with Progress(total_steps=300) as progress:
        progress.update(step, stage='grpo', values=metrics)
  """

  def __init__(
    self,
    total_steps: int,
    quiet: bool = False,
    *,
    began: float | None = None,
    stream=None,
    clock=time.monotonic,
  ):
    """Starts the clock.

    Args:
      total_steps: of all stages.
      quiet: show nothing.
      began: start of the program by the clock: the first line then shows the time until the first
        step was done. None: it does not.
      stream: to write to, standard error by default; a terminal gets the live line.
      clock: seconds, monotonic.
    """
    self.total_steps, self.quiet, self._clock = total_steps, quiet, clock
    self._stream = sys.stderr if stream is None else stream
    # seconds, of the stage's last steps
    self._durations: collections.deque[float] = collections.deque(maxlen=_WINDOW)
    self._last_update, self._step_seconds = clock(), 0.0
    self._stage: str | None = None
    self._last_print: float | None = None
    self._grade: float | None = None
    self._live: Any = None  # on a terminal a rich.progress.Progress, and its task
    self._task: Any = None
    self._began = began

  def __enter__(self):
    if not self.quiet and self._stream.isatty():
      from rich import console, progress

      self._live = progress.Progress(
        progress.SpinnerColumn(),
        progress.BarColumn(bar_width=24),
        progress.TextColumn('{task.description}'),
        console=console.Console(file=self._stream),
        transient=False,
      )
      self._live.start()
      self._task = self._live.add_task('starting', total=self.total_steps)
    return self

  def __exit__(self, *_):
    if self._live is not None:
      self._live.stop()
      self._live = None

  def update(self, step: int, *, stage: str = '', values: dict | None = None) -> None:
    """Reports a finished step.

    Args:
      step: number of steps done, this one included.
      stage: its name, for the line.
      values: metrics of the step: shows 'reward' (else 'loss'), and 'step_tokens' per second.
    """
    now = self._clock()
    self._step_seconds, self._last_update = now - self._last_update, now
    if stage == self._stage:
      self._durations.append(self._step_seconds)
    else:  # the first step of a stage compiles: not representative of the others
      self._stage = stage
      self._durations.clear()
    if self.quiet:
      return
    line = self._line(step, stage, values or {})
    if self._live is not None:
      self._live.update(self._task, completed=step, description=line)
    elif self._last_print is None or now - self._last_print >= _SECONDS or step >= self.total_steps:
      self._last_print = now
      print(line, file=self._stream, flush=True)

  def set_grade(self, grade: float | None) -> None:
    """Sets the newest held-out grade. The time it took to evaluate counts for no step."""
    self._grade = grade
    self._last_update = self._clock()

  def seconds_left(self, step: int) -> float | None:
    """Returns the estimated seconds left after `step` steps; None before a stage's second step.

    Assumes that the steps of later stages take as long as those of this one.
    """
    if not self._durations:
      return None
    return statistics.median(self._durations) * max(self.total_steps - step, 0)

  def _line(self, step, stage, values):
    parts = [stage, f'step {step}/{self.total_steps}']
    for name in ('reward', 'loss'):
      if isinstance(values.get(name), (int, float)):
        parts.append(f'{name} {values[name]:.3f}')
        break
    if self._grade is not None:
      parts.append(f'held-out {self._grade:.3f}')
    tokens = values.get('step_tokens')
    if tokens is not None and self._step_seconds > 0:
      parts.append(f'{tokens / self._step_seconds:,.0f} tokens/s')
    seconds_left = self.seconds_left(step)
    if seconds_left is not None:
      parts.append(f'{duration(seconds_left)} left')
    if self._began is not None:  # mostly loading and compiling
      parts.append(f'first step after {duration(self._clock() - self._began)}')
      self._began = None
    return '  '.join(part for part in parts if part)


def duration(seconds: float) -> str:
  """Returns seconds as text: '42 s', '7 min 05 s', '3 h 20 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
