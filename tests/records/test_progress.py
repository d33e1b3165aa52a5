"""The progress line: time left, how often it is printed, terminals."""

import io

from rft_jax.records.progress import Progress, duration


class Clock:
  """A clock that is set by hand."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def test_time_left_follows_the_median_step_not_the_one_that_compiled():
  clock = Clock()
  progress = Progress(total_steps=10, clock=clock, stream=io.StringIO())
  for step, seconds in enumerate((300.0, 2.0, 2.0), start=1):
    clock.now += seconds
    progress.update(step)
  assert progress.seconds_left(3) == 7 * 2.0


def test_lines_come_at_most_every_ten_seconds_and_at_the_end():
  clock, stream = Clock(), io.StringIO()
  with Progress(total_steps=30, clock=clock, stream=stream) as progress:
    progress.set_grade(0.5)
    for step in range(1, 31):
      clock.now += 1.0
      progress.update(step, stage='grpo', values={'reward': 0.25, 'step_tokens': 100})
  lines = stream.getvalue().splitlines()
  assert [line.split()[2] for line in lines] == ['1/30', '11/30', '21/30', '30/30']
  assert lines[1] == ('grpo  step 11/30  reward 0.250  held-out 0.500  100 tokens/s  19 s left')


def test_a_quiet_run_prints_nothing():
  stream = io.StringIO()
  with Progress(total_steps=1, quiet=True, stream=stream) as progress:
    progress.update(1, values={'reward': 1.0})
  assert stream.getvalue() == ''


def test_a_terminal_gets_one_live_line():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with Progress(total_steps=2, stream=stream) as progress:
    progress.update(2, stage='sft', values={'loss': 1.5})
  assert 'step 2/2' in stream.getvalue() and 'loss 1.500' in stream.getvalue()


def test_durations_are_given_in_the_two_largest_units():
  assert [duration(s) for s in (42.4, 425, 12_000)] == ['42 s', '7 min 05 s', '3 h 20 min']
