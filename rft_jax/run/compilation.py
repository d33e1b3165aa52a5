"""How many programs JAX has made ready in this process: compiled, or read from its cache on disk.

Each takes seconds, so a run wants them in its first step and none afterwards; metrics.jsonl has the
number of each step.
"""

from jax import monitoring

EVENT = '/jax/core/compile/backend_compile_duration'
_events = []  # its length is the count; filled from the moment of import on


def so_far() -> int:
  return len(_events)


def _listen(name, seconds, **_):
  if name == EVENT:
    _events.append(seconds)


monitoring.register_event_duration_secs_listener(_listen)
