"""How far a run is: one live line on a terminal, plain log lines elsewhere."""

import collections
import statistics
import sys
import time

_WINDOW = 20  # steps over whose durations the median is taken
_SECONDS = 10.0  # between two plain lines, at least


class Progress:
  """Shows stage, step, reward, held-out grade, tokens per second and the time left.

  The time left is the running median of the last steps' seconds times the steps to go: a step
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
      began: when the work began, by the clock: the first line tells how long the first step took
        to come; None: it does not.
      stream: where to, standard error by default; a terminal gets the live line.
      clock: seconds, monotonic.
    """
    self.total_steps, self.quiet, self._clock = total_steps, quiet, clock
    self._stream = sys.stderr if stream is None else stream
    self._seconds = collections.deque(maxlen=_WINDOW)
    self._stepped, self._last, self._stage = clock(), 0.0, None
    self._printed = None
    self._grade = None
    self._live = self._task = None
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
      step: how many steps are done, this one included.
      stage: its name, as people know it.
      values: its metrics; 'reward' (else 'loss') is shown, and the rate of its 'step_tokens'.
    """
    now = self._clock()
    self._last, self._stepped = now - self._stepped, now
    if stage == self._stage:
      self._seconds.append(self._last)
    else:  # the first step of a stage compiles: it tells nothing of the others
      self._stage = stage
      self._seconds.clear()
    if self.quiet:
      return
    line = self._line(step, stage, values or {})
    if self._live is not None:
      self._live.update(self._task, completed=step, description=line)
    elif self._printed is None or now - self._printed >= _SECONDS or step >= self.total_steps:
      self._printed = now
      print(line, file=self._stream, flush=True)

  def evaluated(self, grade: float | None) -> None:
    """Takes the newest held-out grade; the seconds since the last step count for no step."""
    self._grade = grade
    self._stepped = self._clock()

  def seconds_left(self, step: int) -> float | None:
    """Returns the estimated seconds to go after `step` steps; None until a stage's second one.

    The steps of later stages are taken to last as long as those of this one.
    """
    if not self._seconds:
      return None
    return statistics.median(self._seconds) * max(self.total_steps - step, 0)

  def _line(self, step, stage, values):
    parts = [stage, f'step {step}/{self.total_steps}']
    for name in ('reward', 'loss'):
      if isinstance(values.get(name), (int, float)):
        parts.append(f'{name} {values[name]:.3f}')
        break
    if self._grade is not None:
      parts.append(f'held-out {self._grade:.3f}')
    tokens = values.get('step_tokens')
    if tokens is not None and self._last > 0:
      parts.append(f'{tokens / self._last:,.0f} tokens/s')
    left = self.seconds_left(step)
    if left is not None:
      parts.append(f'{duration(left)} left')
    if self._began is not None:  # loading and compiling, most of it
      parts.append(f'first step after {duration(self._clock() - self._began)}')
      self._began = None
    return '  '.join(part for part in parts if part)


def duration(seconds: float) -> str:
  """Returns seconds as people say them: '42 s', '7 min 05 s', '3 h 20 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
