"""Scheduler without a device: each sample decodes once, in order, and few slots are idle."""

import numpy as np
import pytest

from rft_jax.sampling import scheduler
from rft_jax.sampling.scheduler import Schedule


def _run(prompts, samples, *, shards=1, slots, prompt_slots, lengths):
  """Runs a schedule to its end; returns the admitted samples in order, and slot-steps per token."""
  schedule = Schedule(prompts, samples, shards=shards, slots=slots, prompt_slots=prompt_slots)
  admitted, remaining, prefilled, decoded = [], {}, set(), 0
  while schedule.waiting or schedule.live:
    for shard, prompt_slot, prompt in schedule.prefills():
      assert prompt not in prefilled and prompt % shards == shard
      assert 0 <= prompt_slot < prompt_slots
      prefilled.add(prompt)
    for slot, prompt, sample in schedule.admit():
      assert prompt in prefilled and slot not in remaining
      admitted.append((prompt, sample))
      remaining[slot] = lengths[prompt][sample]
    _check_slot_assignment(schedule)
    target = schedule.next_size() * shards
    while remaining and (not schedule.waiting or 0 not in remaining.values()):
      decoded += schedule.size * shards
      remaining = {slot: n - 1 for slot, n in remaining.items()}
      ended = [slot for slot, n in remaining.items() if n == 0]
      for slot in ended:
        del remaining[slot]
        schedule.end(slot)
      if ended and (schedule.waiting or len(remaining) <= target):
        break
    before = {(p, g): remaining[slot] for slot, p, g in schedule.running()}
    while (old_slots := schedule.shrink()) is not None:
      assert old_slots.shape == (shards, schedule.size)
      remaining = {slot: before[p, g] for slot, p, g in schedule.running()}
  return admitted, decoded / sum(map(sum, lengths))


def _check_slot_assignment(schedule):
  assignment = schedule.slot_assignment()
  for slot in (admission.slot for admission in schedule.running()):
    shard, slot = divmod(slot, schedule.size)
    prompt_slot, row = divmod(int(assignment.prompt_slots[shard, slot]), schedule.rows)
    assert assignment.rows[shard, prompt_slot, row] == slot


@pytest.mark.parametrize(
  'prompts, samples, shards, slots',
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
def test_every_sample_is_admitted_once_and_in_order(prompts, samples, shards, slots):
  lengths = np.random.default_rng(0).integers(1, 30, (prompts, samples)).tolist()
  prompt_slots = scheduler.prompt_slots_for(-(-prompts // shards), samples, slots)
  admitted, _ = _run(
    prompts, samples, shards=shards, slots=slots, prompt_slots=prompt_slots, lengths=lengths
  )
  assert sorted(admitted) == [(p, g) for p in range(prompts) for g in range(samples)]
  for shard in range(shards):
    of_shard = [pair for pair in admitted if pair[0] % shards == shard]
    assert of_shard == sorted(of_shard)


def test_one_prompt_slot_is_enough_to_finish():
  admitted, _ = _run(4, 3, slots=8, prompt_slots=1, lengths=[[3, 1, 2]] * 4)
  assert len(admitted) == 12


def test_long_tails_leave_few_slots_idle():
  rng = np.random.default_rng(1)
  lengths = np.clip(np.exp(rng.normal(np.log(40), 0.7, (16, 8))), 1, 128).astype(int).tolist()
  prompt_slots = scheduler.prompt_slots_for(16, 8, 32)
  _, overhead = _run(16, 8, slots=32, prompt_slots=prompt_slots, lengths=lengths)
  assert overhead < 1.1


def test_slots_shrink_by_few_sizes():
  assert scheduler.slot_counts(64) == [64, 56, 48, 40, 32, 24, 16, 12, 8, 6, 4, 2, 1]
  assert scheduler.slot_counts(512) == [512, 384, 256, 192, 128, 96, 64]
  assert scheduler.slot_counts(20) == [20, 16, 12, 8, 6, 4, 2, 1]
  assert scheduler.slot_counts(1) == [1]
  schedule = Schedule(512, 1, shards=1, slots=512, prompt_slots=512)
  schedule.prefills()
  sizes = [schedule.size]
  for _ in range(511):
    for admission in schedule.admit():
      assert admission.slot < 512
    schedule.end(max(running.slot for running in schedule.running()))
    while schedule.shrink() is not None:
      sizes.append(schedule.size)
  assert sizes == scheduler.slot_counts(512)
