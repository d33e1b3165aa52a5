"""A process forked by the keeper of a sandbox, and the pipes to and from it.

Standard library alone, as it runs inside the worker.
"""

import gc
import json
import os
import select
import signal
import struct
import time

HEADER = struct.Struct('<II')  # bytes of the body, number of the call
LONGEST = 1 << 16  # bytes of what a runner may say at once


def read_exactly(descriptor: int, size: int, read=os.read, len=len) -> bytes:
  """Returns size bytes; b'' if the other end closes before.

  Its means are bound here, because a user's source may replace those that it finds.
  """
  parts = b''
  while len(parts) < size:
    more = read(descriptor, size - len(parts))
    if not more:
      return b''
    parts += more
  return parts


class Runner:
  """One forked process, which does run(inbox, outbox), and the other ends of those two pipes.

  Of the keeper's descriptors it has none but these, 0 to 2, and those of kept.

  Raises:
    OSError: no process or pipe is to be had.
  """

  def __init__(self, run, kept=()):
    inbox, self.inbox = os.pipe()
    self.outbox, outbox = os.pipe()
    try:
      self.process_id = os.fork()
    except OSError:
      for descriptor in (inbox, self.inbox, self.outbox, outbox):
        os.close(descriptor)
      raise
    if self.process_id == 0:
      self._be(run, inbox, outbox, kept)
    os.close(inbox)
    os.close(outbox)
    self.watch = os.pidfd_open(self.process_id) if hasattr(os, 'pidfd_open') else None
    self._said, self._ended = b'', False

  def _be(self, run, inbox, outbox, kept):
    try:
      gc.enable()
      _close_all_but({inbox, outbox, *kept})
      os.setsid()
      run(inbox, outbox)
    finally:
      os._exit(1)

  def give(self, requests: int, length: int, deadline: float) -> bool:
    """Moves length bytes of requests to it, unread; False if it does not take them in time."""
    poll = select.poll()
    poll.register(self.inbox, select.POLLOUT)
    while length:
      ready = poll.poll(1000 * min(max(0.0, deadline - time.monotonic()), 3600.0))
      if not ready or ready[0][1] & ~select.POLLOUT:
        break
      try:
        length -= _move(requests, self.inbox, length)
      except BrokenPipeError:
        break
      except BlockingIOError:
        wait = select.poll()
        wait.register(requests, select.POLLIN)
        wait.poll()
    taken = not length
    while length:  # the next message starts after this one
      length -= len(os.read(requests, min(length, 1 << 16))) or length
    return taken

  def said(self, deadline: float):
    """Returns the next thing that it says, from JSON; None if it ends or does not speak in time.

    Raises:
      ValueError: it says what cannot be read.
    """
    poll = select.poll()
    poll.register(self.outbox, select.POLLIN)
    if self.watch is not None:
      poll.register(self.watch, select.POLLIN)
    while b'\n' not in self._said:
      left = deadline - time.monotonic()
      ready = dict(poll.poll(1000 * min(max(0.0, left), 3600.0)))
      if left < 0 or (not ready and left < 3600.0):
        return None
      if self.outbox in ready:
        more = os.read(self.outbox, LONGEST)
        self._said += more
        if not more:
          return None
        if len(self._said) > LONGEST:
          raise ValueError('too long')
      elif self.watch in ready:
        return None
    line, _, self._said = self._said.partition(b'\n')
    try:
      return json.loads(line)
    except RecursionError:
      raise ValueError('nested too deeply') from None

  def how_it_ended(self) -> str:
    """Returns, in words, how it ended by itself; '' if it is there still, after a moment."""
    for _ in range(100):
      if self.has_ended():
        info = os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOWAIT)
        if info.si_code == os.CLD_EXITED:
          return f'exited with code {info.si_status}'
        return f'was killed by {signal_name(info.si_status)}'
      time.sleep(0.001)
    return ''

  def has_ended(self) -> bool:
    """Returns whether it is gone."""
    if not self._ended:
      self._ended = (
        os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
      )
    return self._ended

  def kill(self) -> None:
    """Kills it and its group, without waiting."""
    for kill in (os.killpg, os.kill):  # it may not have made its own session yet
      try:
        kill(self.process_id, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass

  def close(self) -> None:
    """Waits for the end of what has been killed, and frees its pipes."""
    os.waitpid(self.process_id, 0)
    for descriptor in (self.inbox, self.outbox, self.watch):
      if descriptor is not None:
        os.close(descriptor)


def signal_name(number: int) -> str:
  """Returns 'SIGKILL' for 9."""
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'


def tell(descriptor: int, value, write=os.write, dumps=json.dumps) -> None:
  """Says a JSON value, as one line."""
  line = dumps(value).encode() + b'\n'
  while line:
    line = line[write(descriptor, line) :]


def _close_all_but(kept: set[int]) -> None:
  last = 2
  for descriptor in sorted(kept):
    os.closerange(last + 1, descriptor)
    last = descriptor
  os.closerange(last + 1, 256)


def _move(source: int, target: int, count: int) -> int:
  if hasattr(os, 'splice'):  # the bytes do not come through this process
    return os.splice(source, target, count, flags=2)  # 2: rather fail than wait
  return os.write(target, os.read(source, min(count, 1 << 12)))
