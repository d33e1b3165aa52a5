"""Who decodes where and when: the host's side of continuous batching, in plain Python.

Requests are taken in order, prompt by prompt. A prompt is read once, into a place, and stays there
until its last sample has ended; its samples go to slots as they become free. Where a mesh holds
slots and places in several parts, prompt p belongs to part p % A. Nothing here depends on time, so
that the same requests with the same lengths are always decoded in the same company.
"""

import collections
import heapq
import math
from typing import NamedTuple

import numpy as np

from rft_jax.models.decoding import Members

SPARE_PLACES = 8  # prompts are read ahead, up to so many at a time


class Admission(NamedTuple):
  """A sample that begins."""

  slot: int
  prompt: int
  sample: int


class Reading(NamedTuple):
  """A prompt that is to be read into a place."""

  part: int
  place: int  # within the part
  prompt: int


def places_for(prompts: int, samples: int, slots: int) -> int:
  """Returns how many places a part needs so that its slots seldom wait for one.

  Those of the prompts whose samples fill the slots, twice as many for prompts of which the
  longest samples still run, and the spare ones; never more than there are prompts.
  """
  return max(1, min(prompts, 3 * math.ceil(slots / samples) + SPARE_PLACES, slots + SPARE_PLACES))


def sizes(slots: int) -> list[int]:
  """Returns the numbers of slots that are decoded with: `slots`, then what it shrinks to.

      64 56 48 40 32 24 16 12 8 6 4 2 1
      512 384 256 192 128 96 64

  Few programs to compile, and seldom more than a quarter of the slots idle in the end.
  """
  powers = [1 << exponent for exponent in range(slots.bit_length())]
  steps = {slots, *powers, *(3 * power for power in powers if power > 1)}
  if slots <= 64:
    steps |= {odd * power for power in powers if power >= 8 for odd in (5, 7)}
  else:  # what is left when so few still run is little beside what has been done
    steps = {size for size in steps if size >= slots // 8}
  return sorted((size for size in steps if size <= slots), reverse=True)


class Schedule:
  """The state of the queue, the slots and the places. See the module's text."""

  def __init__(self, prompts: int, samples: int, *, parts: int, slots: int, places: int):
    """All numbers but `prompts` and `samples` (of each prompt) are those of one part."""
    self.samples, self.parts, self.size, self.places = samples, parts, slots, places
    self.rows = min(samples, slots)  # R, of a place at most at a time
    self._sizes = sizes(slots)
    self._queues = [
      collections.deque((p, g) for p in range(part, prompts, parts) for g in range(samples))
      for part in range(parts)
    ]
    self._unread = [collections.deque(range(part, prompts, parts)) for part in range(parts)]
    self._free_slots = [list(range(slots)) for _ in range(parts)]
    self._free_places = [list(range(places)) for _ in range(parts)]
    self._place_of = {}  # prompt -> place
    self._left = {}  # prompt -> samples that have not ended
    self._running = [{} for _ in range(parts)]  # slot -> (prompt, sample)

  @property
  def live(self) -> int:
    return sum(map(len, self._running))

  @property
  def waiting(self) -> int:
    return sum(map(len, self._queues))

  def read(self) -> list[Reading]:
    """Gives free places to prompts: when a slot would wait for one, or a whole batch fits."""
    readings = []
    for part, unread in enumerate(self._unread):
      free = self._free_places[part]
      if unread and free and (len(free) >= SPARE_PLACES or self._starved(part)):
        for _ in range(min(len(free), len(unread))):
          prompt = unread.popleft()
          self._place_of[prompt] = heapq.heappop(free)
          self._left[prompt] = self.samples
          readings.append(Reading(part, self._place_of[prompt], prompt))
    return readings

  def _starved(self, part) -> bool:
    """Whether the samples of the prompts that have a place do not fill the free slots."""
    queue = self._queues[part]
    ready = len(queue) - self.samples * len(self._unread[part])
    return bool(queue) and ready < len(self._free_slots[part])

  def admit(self) -> list[Admission]:
    """Gives free slots to samples whose prompt has been read."""
    admissions = []
    for part, queue in enumerate(self._queues):
      while queue and self._free_slots[part] and queue[0][0] in self._place_of:
        prompt, sample = queue.popleft()
        slot = heapq.heappop(self._free_slots[part])
        self._running[part][slot] = prompt, sample
        admissions.append(Admission(part * self.size + slot, prompt, sample))
    return admissions

  def running(self) -> list[Admission]:
    """Returns what is in the slots now."""
    return [
      Admission(part * self.size + slot, prompt, sample)
      for part, slots in enumerate(self._running)
      for slot, (prompt, sample) in slots.items()
    ]

  def end(self, slot: int) -> None:
    """Frees a slot, and its prompt's place after the prompt's last sample."""
    part, slot = divmod(slot, self.size)
    prompt, _ = self._running[part].pop(slot)
    heapq.heappush(self._free_slots[part], slot)
    self._left[prompt] -= 1
    if not self._left[prompt]:
      heapq.heappush(self._free_places[part], self._place_of.pop(prompt))

  def floor(self) -> int:
    """Returns with how many live slots in every part shrink() is worth a pause; 0: with none."""
    return 0 if self.waiting else next((n for n in self._sizes if n < self.size), 0)

  def shrink(self) -> np.ndarray | None:
    """Moves what runs to the next smaller number of slots, if nothing waits and it fits there.

    One size at a time, so that there are few pairs of sizes to compile for. Returns which slots
    to keep, i32[A, n], or None: it is as small as it can be.
    """
    size, most = self.floor(), max(map(len, self._running))
    if not 0 < most <= size:
      return None
    kept = np.zeros((self.parts, size), np.int32)
    for part, slots in enumerate(self._running):
      used = sorted(slots)
      kept[part, : len(used)] = used
      self._running[part] = {new: slots[old] for new, old in enumerate(used)}
      self._free_slots[part] = list(range(len(used), size))
    self.size = size
    return kept

  def members(self) -> Members:
    """Returns which slots belong to which places, as decoding.decode wants it."""
    rows = np.zeros((self.parts, self.places, self.rows), np.int32)
    places = np.zeros((self.parts, self.size), np.int32)
    for part, slots in enumerate(self._running):
      count = collections.Counter()
      for slot, (prompt, _) in slots.items():
        place = self._place_of[prompt]
        rows[part, place, count[place]] = slot
        places[part, slot] = place * self.rows + count[place]
        count[place] += 1
    return Members(rows, places)
