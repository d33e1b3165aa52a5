"""The device's side of one call of the engine: its arrays, and the programs that run on them."""

import functools

import jax
import numpy as np

from rft_jax import platform, sharding
from rft_jax.bucketing import bucket, power_of_two, round_up
from rft_jax.models import decoding, decoding_layers, kv_cache
from rft_jax.sampling import slots
from rft_jax.sampling.scheduler import Schedule, prompt_slots_for

PREFILL_WIDTH = 1024  # tokens; a longer prompt is prefilled in chunks of so many
PREFILL_TOKENS = 8192  # tokens prefilled at once, in each shard of the mesh
MIN_COLUMNS = 64  # fewer columns are not worth a program of their own
TOKENS_PER_RUN = 64  # decoded at most in a run: finished samples wait no longer for the host


def slots_for(config, length: int, samples: int, backend: str) -> int:
  """Returns how many slots a shard of the mesh decodes with: a power of two, at most 256 or 1024.

  An accelerator needs enough rows to be worth reading the weights. A CPU needs products of half a
  GFLOP a token or more, as each has its overhead, and keys and values that stay near 32 MiB,
  about what its caches hold.

  Args:
    config: the model's.
    length: T, positions of a completion.
    samples: to be decoded by the shard.
    backend: of platform.backend().
  """
  if backend != 'cpu':
    return min(256, power_of_two(samples))
  flops = 2 * config.matrix_parameters
  cache = 2 * 4 * config.layers * config.kv_heads * config.head_dim * length
  rows = min(max(2**29 // flops, 16), max(2**25 // cache, 16), 1024)
  return min(1 << (rows.bit_length() - 1), power_of_two(samples))


def columns_for(T: int) -> list[int]:
  """Returns the numbers of columns that slots have in turn, T first, the largest.

  Each of them compiles another program, so there are at most three.
  """
  return [T] + [T // divisor for divisor in (2, 4) if T // divisor >= MIN_COLUMNS]


def execute(program, *args, **static):
  return program(*args, **static)


def compile_only(program, *args, **static):
  """Compiles program for args and returns its results as ShapeDtypeStructs."""
  lowered = program.lower(*args, **static)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    lowered.out_info,
    lowered.compile().output_shardings,
  )


class DecodeSession:
  """Slots, prompts' KV cache and layers on the device, and the schedule of who uses them."""

  def __init__(
    self,
    model,
    prompts,
    config,
    samples_per_prompt,
    mesh,
    slots_per_shard,
    quantization,
    call=execute,
  ):
    """Arguments as in engine.sample; call: execute, or compile_only for a model without weights."""
    self.model, self.prompts, self.config, self.call = model, prompts, config, call
    self.shards = sharding.batch_shards(mesh) if mesh else 1
    longest = max(map(len, prompts))
    self.width = min(bucket(longest), PREFILL_WIDTH)
    T = bucket(config.max_new_tokens)
    shard_prompts = -(-len(prompts) // self.shards)
    N = slots_per_shard or slots_for(
      model.config, T, shard_prompts * samples_per_prompt, platform.backend()
    )
    prompt_slots = prompt_slots_for(shard_prompts, samples_per_prompt, N)
    self.schedule = Schedule(
      len(prompts), samples_per_prompt, shards=self.shards, slots=N, prompt_slots=prompt_slots
    )
    self.layers = call(_layers_of, model, mesh, quantization)
    self.columns = columns_for(T)  # the last of them is what the slots have
    self.slots, self.prompt_cache = call(
      _init_arrays,
      model.config,
      mesh,
      self.shards * N,
      self.columns[-1],
      self.shards * prompt_slots,
      round_up(bucket(longest), self.width),
      config.filtered,
    )
    self.prompt_lengths = np.zeros(self.shards * prompt_slots, np.int32)

  def fill(self, occurrences, limits, key):
    """Assigns the free slots to waiting samples, or drops free slots; returns the admissions."""
    self._prefill_prompts(self.schedule.prefills())
    admissions = self.schedule.admit()
    if admissions:
      self._admit(admissions, occurrences, limits, key)
    while (old_slots := self.schedule.shrink()) is not None:
      self.slots = self.call(slots.shrink, self.slots, old_slots)
    return admissions

  def _prefill_prompts(self, prefills):
    """Prefills prompts without their last token, a batch after the other."""
    by_shard = [[p for p in prefills if p.shard == shard] for shard in range(self.shards)]
    batch_size = max(1, PREFILL_TOKENS // self.width)
    for start in range(0, max(map(len, by_shard)), batch_size):
      batch = [shard[start : start + batch_size] for shard in by_shard]
      self._prefill_batch(batch, power_of_two(max(map(len, batch))))

  def _prefill_batch(self, batch, rows):
    """Prefills the prompts of a batch (a list for each shard) in chunks of self.width tokens."""
    prompt_slots = np.full((self.shards, rows), self.schedule.prompt_slots, np.int32)
    longest = max(len(self.prompts[prefill.prompt]) for shard in batch for prefill in shard)
    tokens = np.zeros((self.shards, rows, round_up(longest, self.width)), np.int32)
    for shard, prefills in enumerate(batch):
      for row, (_, prompt_slot, prompt) in enumerate(prefills):
        prompt_slots[shard, row] = prompt_slot
        ids = self.prompts[prompt]
        tokens[shard, row, : len(ids)] = ids
        self.prompt_lengths[shard * self.schedule.prompt_slots + prompt_slot] = len(ids) - 1
    for offset in range(0, max(longest - 1, 1), self.width):
      self.prompt_cache = self.call(
        _prefill,
        self.prompt_cache,
        self.model,
        self.layers,
        prompt_slots,
        tokens[:, :, offset : offset + self.width],
        np.int32(offset),
        first=offset == 0,
      )

  def _admit(self, admissions, occurrences, limits, key):
    rows = power_of_two(len(admissions))
    N = self.schedule.size * self.shards
    columns = np.full((6, rows), N, np.int64)  # beyond the admissions: slot N, which is none
    for row, (slot, p, g) in enumerate(admissions):
      limit = self.config.max_new_tokens if limits is None else limits[p][g]
      columns[:, row] = (
        slot,
        self.prompts[p][-1],
        len(self.prompts[p]) - 1,
        limit,
        occurrences[p],
        g,
      )
    self.slots = self.call(
      slots.admit, self.slots, *columns[:4].astype(np.int32), *columns[4:].astype(np.uint32), key
    )

  def run(self, sampler_params, stop_ids, steps) -> slots.RunResult:
    """Decodes until samples end whose slots are needed, or the columns are full.

    Args:
      sampler_params: of samplers.sampler_params.
      stop_ids: i32[any].
      steps: tokens decoded so far, as the last RunResult has it; 0 in the first run.
    """
    max_steps, max_ended = TOKENS_PER_RUN, 1 if self.schedule.waiting else np.iinfo(np.int32).max
    if len(self.columns) > 1 and steps == self.columns[-1]:
      self.columns.pop()
      self.slots = slots.widen(self.slots, self.columns[-1])
    if len(self.columns) > 1:
      max_steps = min(max_steps, self.columns[-1] - steps)
    self.slots, result = self.call(
      slots.run,
      self.slots,
      self.model,
      self.layers,
      self.prompt_cache,
      self.prompt_lengths,
      self.schedule.slot_assignment(),
      sampler_params,
      stop_ids,
      np.int32(max_steps),
      np.int32(max_ended),
      np.int32(self.schedule.next_size()),
      filtered=self.config.filtered,
    )
    return result


# --- programs and where their arrays are placed --------------------------------------------------
@functools.partial(jax.jit, static_argnames=('first',), donate_argnums=0)
def _prefill(prompts, model, layers, prompt_slots, tokens, offset, *, first):
  return decoding.prefill(model, layers, prompts, prompt_slots, tokens, offset, first=first)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _layers_of(model, mesh, quantization):
  layers = decoding_layers.layers_of(model, quantization)
  return (
    layers
    if mesh is None
    else jax.lax.with_sharding_constraint(layers, sharding.decoding_shardings(layers, mesh))
  )


@functools.partial(jax.jit, static_argnums=range(7))
def _init_arrays(config, mesh, N, T, prompt_slots, S, filtered):
  """Returns (N free slots, KV cache of prompt_slots prompts of S columns), split over the mesh."""
  arrays = slots.init_slots(config, N, T, filtered), kv_cache.init_kv_cache(config, prompt_slots, S)
  return (
    arrays
    if mesh is None
    else jax.lax.with_sharding_constraint(
      arrays, jax.tree.map(lambda x: sharding.rows_sharding(mesh, x.ndim), arrays)
    )
  )


def compilations() -> int:
  """Returns how many programs have been compiled so far, in this process."""
  return sum(program._cache_size() for program in (_prefill, slots.run, slots.admit, slots.shrink))
