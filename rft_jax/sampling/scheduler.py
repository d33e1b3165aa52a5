"""Continuous batching on the host: which sample decodes in which slot, in plain Python.

Requests are taken in order, prompt by prompt. A prompt is prefilled once, into a prompt slot, and
stays there until its last sample has ended; its samples go to slots as these become free. Where a
mesh holds slots and prompt slots in A shards, prompt p belongs to shard p % A. Nothing here depends
on time, so that the same requests with the same lengths always decode in the same batches.
"""

import collections
import heapq
import math
from typing import NamedTuple

import numpy as np

from rft_jax.models.decoding import SlotAssignment

SPARE_PROMPT_SLOTS = 8  # at most so many prompts are prefilled ahead at a time


class Admission(NamedTuple):
  """A sample and the slot it decodes in."""

  slot: int
  prompt: int
  sample: int


class Prefill(NamedTuple):
  """A prompt and the prompt slot it is prefilled into."""

  shard: int
  prompt_slot: int  # within the shard
  prompt: int


def prompt_slots_for(prompts: int, samples: int, slots: int) -> int:
  """Returns how many prompt slots a shard needs so that its slots seldom wait for one.

  Those of the prompts whose samples fill the slots, twice as many for prompts of which the
  longest samples still run, and the spare ones; never more than there are prompts.

  Args:
    prompts: of the shard.
    samples: of each prompt.
    slots: of the shard.
  """
  busy = 3 * math.ceil(slots / samples)
  return max(1, min(prompts, busy + SPARE_PROMPT_SLOTS, slots + SPARE_PROMPT_SLOTS))


def slot_counts(slots: int) -> list[int]:
  """Returns the numbers of slots to decode with: `slots`, then those that it shrinks to in turn.

      64 56 48 40 32 24 16 12 8 6 4 2 1
      512 384 256 192 128 96 64

  Few programs to compile, and seldom more than a quarter of the slots idle at the end.
  """
  powers = [1 << exponent for exponent in range(slots.bit_length())]
  steps = {slots, *powers, *(3 * power for power in powers if power > 1)}
  if slots <= 64:
    steps |= {odd * power for power in powers if power >= 8 for odd in (5, 7)}
  else:  # with fewer slots than an eighth, the rest is little work compared with what is done
    steps = {size for size in steps if size >= slots // 8}
  return sorted((size for size in steps if size <= slots), reverse=True)


class Schedule:
  """The state of the queue, the slots and the prompt slots; see the module's docstring."""

  def __init__(self, prompts: int, samples: int, *, shards: int, slots: int, prompt_slots: int):
    """All numbers but `prompts` and `samples` (of each prompt) are those of one shard."""
    self.samples, self.shards, self.size, self.prompt_slots = samples, shards, slots, prompt_slots
    self.rows = min(samples, slots)  # R, rows of a prompt slot at most at a time
    self._sizes = slot_counts(slots)
    self._queues = [
      collections.deque((p, g) for p in range(shard, prompts, shards) for g in range(samples))
      for shard in range(shards)
    ]
    self._not_prefilled = [
      collections.deque(range(shard, prompts, shards)) for shard in range(shards)
    ]
    self._free_slots = [list(range(slots)) for _ in range(shards)]
    self._free_prompt_slots = [list(range(prompt_slots)) for _ in range(shards)]
    self._prompt_slot_of: dict[int, int] = {}  # prompt -> prompt slot
    self._unfinished: dict[int, int] = {}  # prompt -> number of its samples that have not ended
    # For each shard, slot -> (prompt, sample).
    self._running: list[dict[int, tuple[int, int]]] = [{} for _ in range(shards)]

  @property
  def live(self) -> int:
    """How many samples are in the slots."""
    return sum(map(len, self._running))

  @property
  def waiting(self) -> int:
    """How many samples wait for a slot."""
    return sum(map(len, self._queues))

  def prefills(self) -> list[Prefill]:
    """Assigns free prompt slots: when a slot would wait for a prompt, or a whole batch fits."""
    assigned = []
    for shard, prompts in enumerate(self._not_prefilled):
      free = self._free_prompt_slots[shard]
      if prompts and free and (len(free) >= SPARE_PROMPT_SLOTS or self._needs_prompts(shard)):
        for _ in range(min(len(free), len(prompts))):
          prompt = prompts.popleft()
          self._prompt_slot_of[prompt] = heapq.heappop(free)
          self._unfinished[prompt] = self.samples
          assigned.append(Prefill(shard, self._prompt_slot_of[prompt], prompt))
    return assigned

  def _needs_prompts(self, shard) -> bool:
    """Returns whether the samples of prefilled prompts do not fill the free slots."""
    queue = self._queues[shard]
    ready = len(queue) - self.samples * len(self._not_prefilled[shard])
    return bool(queue) and ready < len(self._free_slots[shard])

  def admit(self) -> list[Admission]:
    """Assigns free slots to samples whose prompt is prefilled."""
    admissions = []
    for shard, queue in enumerate(self._queues):
      while queue and self._free_slots[shard] and queue[0][0] in self._prompt_slot_of:
        prompt, sample = queue.popleft()
        slot = heapq.heappop(self._free_slots[shard])
        self._running[shard][slot] = prompt, sample
        admissions.append(Admission(shard * self.size + slot, prompt, sample))
    return admissions

  def running(self) -> list[Admission]:
    """Returns the samples that are in the slots now."""
    return [
      Admission(shard * self.size + slot, prompt, sample)
      for shard, slots in enumerate(self._running)
      for slot, (prompt, sample) in slots.items()
    ]

  def end(self, slot: int) -> None:
    """Frees a slot, and after the prompt's last sample also the prompt slot."""
    shard, slot = divmod(slot, self.size)
    prompt, _ = self._running[shard].pop(slot)
    heapq.heappush(self._free_slots[shard], slot)
    self._unfinished[prompt] -= 1
    if not self._unfinished[prompt]:
      heapq.heappush(self._free_prompt_slots[shard], self._prompt_slot_of.pop(prompt))

  def next_size(self) -> int:
    """Returns the number of live slots in every shard at which shrink() has an effect; 0: none."""
    return 0 if self.waiting else next((n for n in self._sizes if n < self.size), 0)

  def shrink(self) -> np.ndarray | None:
    """Moves the running samples to the next smaller number of slots, if none waits and they fit.

    One size at a time, so that there are few pairs of sizes to compile for. Returns the old slot of
    each new one, i32[A, n], or None: the number of slots stays.
    """
    size, most = self.next_size(), max(map(len, self._running))
    if not 0 < most <= size:
      return None
    old_slots = np.zeros((self.shards, size), np.int32)
    for shard, slots in enumerate(self._running):
      used = sorted(slots)
      old_slots[shard, : len(used)] = used
      self._running[shard] = {new: slots[old] for new, old in enumerate(used)}
      self._free_slots[shard] = list(range(len(used), size))
    self.size = size
    return old_slots

  def slot_assignment(self) -> SlotAssignment:
    """Returns which slots belong to which prompt slots, as decoding.decode takes it."""
    rows = np.zeros((self.shards, self.prompt_slots, self.rows), np.int32)
    prompt_slots = np.zeros((self.shards, self.size), np.int32)
    for shard, slots in enumerate(self._running):
      count: collections.Counter = collections.Counter()  # of rows, by prompt slot
      for slot, (prompt, _) in slots.items():
        prompt_slot = self._prompt_slot_of[prompt]
        rows[shard, prompt_slot, count[prompt_slot]] = slot
        prompt_slots[shard, slot] = prompt_slot * self.rows + count[prompt_slot]
        count[prompt_slot] += 1
    return SlotAssignment(rows, prompt_slots)
