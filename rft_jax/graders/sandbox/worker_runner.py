"""Runner: a process forked by the controller of a sandbox, and the pipes to and from it.

Standard library only, because it runs inside the worker.
"""

import gc
import json
import os
import select
import signal
import struct
import time

HEADER = struct.Struct('<II')  # bytes of the body, number of the call
MAX_MESSAGE_BYTES = 1 << 16  # of one message of a runner


def read_exactly(descriptor: int, size: int, read=os.read, len=len) -> bytes:
  """Returns size bytes; b'' if the other end closes before.

  read and len are bound as defaults, because a user's source may replace os.read and the builtin.
  """
  parts = b''
  while len(parts) < size:
    chunk = read(descriptor, size - len(parts))
    if not chunk:
      return b''
    parts += chunk
  return parts


class Runner:
  """One forked process, which executes run(inbox, outbox), and the other ends of these pipes.

  inherited: descriptors of the controller that it keeps, in addition to these two and 0 to 2.

  Raises:
    OSError: no process or pipe is available.
  """

  def __init__(self, run, inherited=()):
    inbox, self.inbox = os.pipe()
    self.outbox, outbox = os.pipe()
    try:
      self.process_id = os.fork()
    except OSError:
      for descriptor in (inbox, self.inbox, self.outbox, outbox):
        os.close(descriptor)
      raise
    if self.process_id == 0:
      self._run_in_child(run, inbox, outbox, inherited)
    os.close(inbox)
    os.close(outbox)
    self.pidfd = os.pidfd_open(self.process_id) if hasattr(os, 'pidfd_open') else None
    self._buffer, self._ended = b'', False

  def _run_in_child(self, run, inbox, outbox, inherited):
    try:
      gc.enable()
      _close_all_except({inbox, outbox, *inherited})
      os.setsid()
      run(inbox, outbox)
    finally:
      os._exit(1)

  def forward(self, requests: int, length: int, deadline: float) -> bool:
    """Moves length bytes of requests into the inbox, unread; False if that misses the deadline."""
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
    is_complete = not length
    while length:  # discard the rest: the next message starts after this one
      length -= len(os.read(requests, min(length, 1 << 16))) or length
    return is_complete

  def receive(self, deadline: float):
    """Returns the next message, parsed from JSON; None if the process ends or at the deadline.

    Raises:
      ValueError: the message cannot be parsed.
    """
    poll = select.poll()
    poll.register(self.outbox, select.POLLIN)
    if self.pidfd is not None:
      poll.register(self.pidfd, select.POLLIN)
    while b'\n' not in self._buffer:
      seconds = deadline - time.monotonic()
      ready = dict(poll.poll(1000 * min(max(0.0, seconds), 3600.0)))
      if seconds < 0 or (not ready and seconds < 3600.0):
        return None
      if self.outbox in ready:
        chunk = os.read(self.outbox, MAX_MESSAGE_BYTES)
        self._buffer += chunk
        if not chunk:
          return None
        if len(self._buffer) > MAX_MESSAGE_BYTES:
          raise ValueError('too long')
      elif self.pidfd in ready:
        return None
    line, _, self._buffer = self._buffer.partition(b'\n')
    try:
      return json.loads(line)
    except RecursionError:
      raise ValueError('nested too deeply') from None

  def exit_description(self) -> str:
    """Returns, in words, how the process ended by itself; '' if it still runs after a moment."""
    for _ in range(100):
      if self.has_ended():
        info = os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOWAIT)
        assert info is not None  # waitid returns None only with WNOHANG
        if info.si_code == os.CLD_EXITED:
          return f'exited with code {info.si_status}'
        return f'was killed by {_signal_name(info.si_status)}'
      time.sleep(0.001)
    return ''

  def has_ended(self) -> bool:
    """Returns whether the process has ended."""
    if not self._ended:
      self._ended = (
        os.waitid(os.P_PID, self.process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
      )
    return self._ended

  def kill(self) -> None:
    """Kills the process and its group, without waiting."""
    for kill in (os.killpg, os.kill):  # it may not have its own session yet
      try:
        kill(self.process_id, signal.SIGKILL)
      except (ProcessLookupError, PermissionError):
        pass

  def close(self) -> None:
    """Waits for the end of the killed process, and closes its pipes."""
    os.waitpid(self.process_id, 0)
    for descriptor in (self.inbox, self.outbox, self.pidfd):
      if descriptor is not None:
        os.close(descriptor)


def send(descriptor: int, value, write=os.write, dumps=json.dumps) -> None:
  """Writes a value as one line of JSON."""
  line = dumps(value).encode() + b'\n'
  while line:
    line = line[write(descriptor, line) :]


def _signal_name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'


def _close_all_except(descriptors: set[int]) -> None:
  last = 2
  for descriptor in sorted(descriptors):
    os.closerange(last + 1, descriptor)
    last = descriptor
  os.closerange(last + 1, 256)


def _move(source: int, target: int, count: int) -> int:
  if hasattr(os, 'splice'):  # moves the bytes without reading them into this process
    return os.splice(source, target, count, flags=2)  # 2: fail instead of blocking
  return os.write(target, os.read(source, min(count, 1 << 12)))
