"""The queue, the slots and the places, without a device: everybody is served, in order, once."""

import numpy as np
import pytest

from rft_jax.sampling import scheduler
from rft_jax.sampling.scheduler import Schedule


def _serve(prompts, samples, *, shards=1, slots, prompt_slots, lengths):
  """Runs a schedule to its end; returns what was begun, in order, and slot-steps per token."""
  queue = Schedule(prompts, samples, shards=shards, slots=slots, prompt_slots=prompt_slots)
  begun, left, read, decoded = [], {}, set(), 0
  while queue.waiting or queue.live:
    for shard, prompt_slot, prompt in queue.read():
      assert prompt not in read and prompt % shards == shard and 0 <= prompt_slot < prompt_slots
      read.add(prompt)
    for slot, prompt, sample in queue.admit():
      assert prompt in read and slot not in left
      begun.append((prompt, sample))
      left[slot] = lengths[prompt][sample]
    _check_members(queue)
    target = queue.floor() * shards
    while left and (not queue.waiting or 0 not in left.values()):
      decoded += queue.size * shards
      left = {slot: n - 1 for slot, n in left.items()}
      if any(n == 0 for n in left.values()):
        for slot in [slot for slot, n in left.items() if n == 0]:
          del left[slot]
          queue.end(slot)
        if queue.waiting or len(left) <= target:
          break
    before = {(p, g): left[slot] for slot, p, g in queue.running()}
    while (kept := queue.shrink()) is not None:
      assert kept.shape == (shards, queue.size)
      left = {slot: before[p, g] for slot, p, g in queue.running()}
  return begun, decoded / sum(map(sum, lengths))


def _check_members(queue):
  slot_assignment = queue.slot_assignment()
  for slot, prompt, _ in queue.running():
    shard, slot = divmod(slot, queue.size)
    prompt_slot, row = divmod(int(slot_assignment.prompt_slots[shard, slot]), queue.rows)
    assert slot_assignment.rows[shard, prompt_slot, row] == slot


@pytest.mark.parametrize(
  'prompts, samples, parts, slots',
  [
    (8, 8, 1, 32),
    (8, 8, 1, 64),
    (5, 3, 1, 4),
    (40, 1, 1, 8),
    (1, 1, 1, 1),
    (9, 4, 4, 4),
    (3, 20, 1, 8),
    (2, 5, 4, 16),
  ],
)
def test_every_sample_is_begun_once_and_in_order(prompts, samples, shards, slots):
  lengths = np.random.default_rng(0).integers(1, 30, (prompts, samples)).tolist()
  prompt_slots = scheduler.prompt_slots_for(-(-prompts // shards), samples, slots)
  begun, _ = _serve(prompts, samples, shards=shards, slots=slots, prompt_slots=prompt_slots, lengths=lengths)
  assert sorted(begun) == [(p, g) for p in range(prompts) for g in range(samples)]
  for shard in range(shards):
    mine = [pair for pair in begun if pair[0] % shards == shard]
    assert mine == sorted(mine)


def test_one_place_is_enough_to_finish():
  begun, _ = _serve(4, 3, slots=8, prompt_slots=1, lengths=[[3, 1, 2]] * 4)
  assert len(begun) == 12


def test_long_tails_leave_few_slots_idle():
  rng = np.random.default_rng(1)
  lengths = np.clip(np.exp(rng.normal(np.log(40), 0.7, (16, 8))), 1, 128).astype(int).tolist()
  _, overhead = _serve(16, 8, slots=32, prompt_slots=scheduler.prompt_slots_for(16, 8, 32), lengths=lengths)
  assert overhead < 1.1


def test_slots_shrink_by_few_sizes():
  assert scheduler.sizes(64) == [64, 56, 48, 40, 32, 24, 16, 12, 8, 6, 4, 2, 1]
  assert scheduler.sizes(512) == [512, 384, 256, 192, 128, 96, 64]
  assert scheduler.sizes(20) == [20, 16, 12, 8, 6, 4, 2, 1]
  assert scheduler.sizes(1) == [1]
  queue = Schedule(512, 1, shards=1, slots=512, prompt_slots=512)
  queue.read()
  seen = [queue.size]
  for slot in range(512, 1, -1):
    for admission in queue.admit():
      assert admission.slot < 512
    queue.end(max(running.slot for running in queue.running()))
    while queue.shrink() is not None:
      seen.append(queue.size)
  assert seen == scheduler.sizes(512)
