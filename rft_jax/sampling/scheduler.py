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

from rft_jax.models.decoding import SlotAssignment

SPARE_PROMPT_SLOTS = 8  # prompts are read ahead, up to so many at a time


class Admission(NamedTuple):
  """A sample that begins."""

  slot: int
  prompt: int
  sample: int


class Reading(NamedTuple):
  """A prompt that is to be read into a place."""

  shard: int
  prompt_slot: int  # within the part
  prompt: int


def prompt_slots_for(prompts: int, samples: int, slots: int) -> int:
  """Returns how many places a part needs so that its slots seldom wait for one.

  Those of the prompts whose samples fill the slots, twice as many for prompts of which the
  longest samples still run, and the spare ones; never more than there are prompts.
  """
  return max(1, min(prompts, 3 * math.ceil(slots / samples) + SPARE_PROMPT_SLOTS, slots + SPARE_PROMPT_SLOTS))


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

  def __init__(self, prompts: int, samples: int, *, shards: int, slots: int, prompt_slots: int):
    """All numbers but `prompts` and `samples` (of each prompt) are those of one part."""
    self.samples, self.shards, self.size, self.prompt_slots = samples, shards, slots, prompt_slots
    self.rows = min(samples, slots)  # R, of a place at most at a time
    self._sizes = sizes(slots)
    self._queues = [
      collections.deque((p, g) for p in range(shard, prompts, shards) for g in range(samples))
      for shard in range(shards)
    ]
    self._unread = [collections.deque(range(shard, prompts, shards)) for shard in range(shards)]
    self._free_slots = [list(range(slots)) for _ in range(shards)]
    self._free_prompt_slots = [list(range(prompt_slots)) for _ in range(shards)]
    self._prompt_slot_of = {}  # prompt -> place
    self._left = {}  # prompt -> samples that have not ended
    self._running = [{} for _ in range(shards)]  # slot -> (prompt, sample)

  @property
  def live(self) -> int:
    return sum(map(len, self._running))

  @property
  def waiting(self) -> int:
    return sum(map(len, self._queues))

  def read(self) -> list[Reading]:
    """Gives free places to prompts: when a slot would wait for one, or a whole batch fits."""
    readings = []
    for shard, unread in enumerate(self._unread):
      free = self._free_prompt_slots[shard]
      if unread and free and (len(free) >= SPARE_PROMPT_SLOTS or self._starved(shard)):
        for _ in range(min(len(free), len(unread))):
          prompt = unread.popleft()
          self._prompt_slot_of[prompt] = heapq.heappop(free)
          self._left[prompt] = self.samples
          readings.append(Reading(shard, self._prompt_slot_of[prompt], prompt))
    return readings

  def _starved(self, shard) -> bool:
    """Whether the samples of the prompts that have a place do not fill the free slots."""
    queue = self._queues[shard]
    ready = len(queue) - self.samples * len(self._unread[shard])
    return bool(queue) and ready < len(self._free_slots[shard])

  def admit(self) -> list[Admission]:
    """Gives free slots to samples whose prompt has been read."""
    admissions = []
    for shard, queue in enumerate(self._queues):
      while queue and self._free_slots[shard] and queue[0][0] in self._prompt_slot_of:
        prompt, sample = queue.popleft()
        slot = heapq.heappop(self._free_slots[shard])
        self._running[shard][slot] = prompt, sample
        admissions.append(Admission(shard * self.size + slot, prompt, sample))
    return admissions

  def running(self) -> list[Admission]:
    """Returns what is in the slots now."""
    return [
      Admission(shard * self.size + slot, prompt, sample)
      for shard, slots in enumerate(self._running)
      for slot, (prompt, sample) in slots.items()
    ]

  def end(self, slot: int) -> None:
    """Frees a slot, and its prompt's place after the prompt's last sample."""
    shard, slot = divmod(slot, self.size)
    prompt, _ = self._running[shard].pop(slot)
    heapq.heappush(self._free_slots[shard], slot)
    self._left[prompt] -= 1
    if not self._left[prompt]:
      heapq.heappush(self._free_prompt_slots[shard], self._prompt_slot_of.pop(prompt))

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
    kept = np.zeros((self.shards, size), np.int32)
    for shard, slots in enumerate(self._running):
      used = sorted(slots)
      kept[shard, : len(used)] = used
      self._running[shard] = {new: slots[old] for new, old in enumerate(used)}
      self._free_slots[shard] = list(range(len(used), size))
    self.size = size
    return kept

  def slot_assignment(self) -> SlotAssignment:
    """Returns which slots belong to which places, as decoding.decode wants it."""
    rows = np.zeros((self.shards, self.prompt_slots, self.rows), np.int32)
    prompt_slots = np.zeros((self.shards, self.size), np.int32)
    for shard, slots in enumerate(self._running):
      count = collections.Counter()
      for slot, (prompt, _) in slots.items():
        prompt_slot = self._prompt_slot_of[prompt]
        rows[shard, prompt_slot, count[prompt_slot]] = slot
        prompt_slots[shard, slot] = prompt_slot * self.rows + count[prompt_slot]
        count[prompt_slot] += 1
    return SlotAssignment(rows, prompt_slots)
