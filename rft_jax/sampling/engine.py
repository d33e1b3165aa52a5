"""Completions from a policy, by continuous batching: ids in, ids out.

A prompt is read once and its keys and values serve all of its samples. Samples decode in slots;
when one ends, the next takes its slot, and when none waits any more the slots shrink with what is
left. The key of a sampled token depends on (seed, step, occurrence, sample, position) alone, so
that a sample does not depend on what else was in its batch, on the mesh, or on a restart.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from rft_jax import sharding
from rft_jax.bucketing import bucket, power_of_two, round_up
from rft_jax.models import decoding
from rft_jax.sampling import samplers, slots
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.sampling.scheduler import Schedule, prompt_slots_for
from rft_jax.types import Sample

PREFILL_WIDTH = 1024  # a longer prompt is read in stretches of so many tokens
PREFILL_TOKENS = 8192  # read at once, on each part of the mesh
LEAST_COLUMNS = 64  # narrower slots are not worth a program of their own
TOKENS_PER_RUN = 64  # decoded at most before the host looks: finished samples wait no longer


class Statistics(NamedTuple):
  """How well the slots were used; see generate's `report`."""

  tokens: int  # that were wanted: all that the samples have
  decoded: int  # that were computed: slots times steps
  prompt_tokens: int  # prefilled, padding not counted
  runs: int  # how often the host looked


def generate(
  model,
  prompts,
  *,
  samples_per_prompt=1,
  max_new_tokens=128,
  temperature=1.0,
  top_k=0,
  top_p=1.0,
  min_p=0.0,
  seed=0,
  stop_ids=None,
  step=0,
  occurrences=None,
  mesh=None,
  limits=None,
  slots_per_shard=0,
  quantization='none',
  finished=None,
  report=None,
) -> list[list[Sample]]:
  """Samples completions.

  Args:
    model: a Decoder.
    prompts: P lists of token ids, each with at least one.
    samples_per_prompt: G.
    max_new_tokens, temperature, top_k, top_p, min_p: as in SamplingConfig; temperature 0 is
      greedy.
    seed, step: with occurrences, what the random numbers depend on.
    stop_ids: a sample ends with the first of these; None: every EOS id of the checkpoint.
    occurrences: P integers that name the prompts in the data order; None: 0 .. P-1.
    mesh: the mesh on which the model lies; None: one device.
    limits: P lists of G token budgets, each at most max_new_tokens; None: max_new_tokens.
    slots_per_part: samples decoded side by side on each part of the mesh; 0: chosen, see
      slots_for.
    quantization: 'none', or 'int8': of the layers' kernels, which halves what a token reads. The
      log-probs are then those of the rounded policy, from which the samples are.
    finished: called as finished(prompt, sample, Sample) when each ends, in that order.
    report: called in the end with the Statistics of the call.

  Returns:
    P lists of G Samples. Their log-probs are in nats, of the tempered distribution before
    top-k, top-p and min-p.

  Raises:
    ValueError: an empty prompt, ids out of range, or settings out of range; all are named.
  """
  settings = SamplingConfig(
    max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
  )
  occurrences = list(range(len(prompts)) if occurrences is None else occurrences)
  _check(model.config, prompts, settings, samples_per_prompt, occurrences, limits, quantization)
  if not prompts:
    return []
  stop_ids = sorted(model.config.eos_ids if stop_ids is None else stop_ids) or [-1]
  session = DecodeSession(model, prompts, samples_per_prompt, settings, mesh, slots_per_shard, quantization)
  key = jax.random.fold_in(jax.random.key(seed), step)
  sampler_params, stop_ids = samplers.sampler_params(settings), np.asarray(stop_ids, np.int32)
  samples = [[None] * samples_per_prompt for _ in prompts]
  began, tokens, decoded, runs = {}, 0, 0, 0
  clock = 0

  schedule = session.schedule
  while schedule.waiting or schedule.live:
    for _, prompt, sample in session.fill(occurrences, limits, key):
      began[prompt, sample] = clock
    ended = jax.device_get(session.run(sampler_params, stop_ids, clock))
    decoded += (int(ended.clock) - clock) * schedule.size * schedule.shards
    clock, runs = int(ended.clock), runs + 1
    for slot, prompt, index in schedule.running():
      if not ended.live[slot]:
        sample = _sample(ended, slot, began.pop((prompt, index)), settings.filtered)
        samples[prompt][index] = sample
        tokens += len(sample.tokens)
        schedule.end(slot)
        if finished:
          finished(prompt, index, sample)
  if report:
    report(Statistics(tokens, decoded, sum(map(len, prompts)), runs))
  return samples


def compile_ahead(
  model,
  prompts,
  *,
  samples_per_prompt,
  settings: SamplingConfig,
  stop_ids,
  mesh=None,
  slots_per_shard=0,
  quantization='none',
) -> None:
  """Compiles what generate() begins with, into JAX's cache on disk: while weights are being read.

  Args:
    model: a Decoder of ShapeDtypeStructs with their shardings.
    settings, the others: as generate will be called.
  """
  session = DecodeSession(
    model, prompts, samples_per_prompt, settings, mesh, slots_per_shard, quantization, call=_compile
  )
  session.fill(range(len(prompts)), None, jax.random.key(0))
  session.run(samplers.sampler_params(settings), np.asarray(sorted(stop_ids), np.int32), 0)


def _compile(program, *args, **static):
  """Compiles program for args and returns what it would return, as ShapeDtypeStructs."""
  lowered = program.lower(*args, **static)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    lowered.out_info,
    lowered.compile().output_shardings,
  )


def _execute(program, *args, **static):
  return program(*args, **static)


def slots_for(config, length: int, samples: int, backend: str) -> int:
  """Returns how many slots a part of the mesh decodes with: a power of two, at most 256 or 1024.

  An accelerator wants enough rows to be worth a reading of the weights. A CPU wants products of
  half a GFLOP a token or more, as each has its overhead, and keys and values that stay near 32 MiB,
  about what its caches hold.

  Args:
    config: the model's.
    length: T, positions of a completion.
    samples: that there are to decode.
    backend: of jax.default_backend().
  """
  if backend != 'cpu':
    return min(256, power_of_two(samples))
  flops = 2 * config.matrix_parameters
  cache = 2 * 4 * config.layers * config.kv_heads * config.head_dim * length
  wanted = min(max(2**29 // flops, 16), max(2**25 // cache, 16), 1024)
  return min(1 << (wanted.bit_length() - 1), power_of_two(samples))


def columns_for(T: int) -> list[int]:
  """Returns the numbers of columns that slots have in turn, T first: each is a program more, so
  there are at most three."""
  return [T] + [T // shard for shard in (2, 4) if T // shard >= LEAST_COLUMNS]


class DecodeSession:
  """The device's side of one call: what lies there, and the programs that are run on it."""

  def __init__(
    self, model, prompts, samples, settings, mesh, slots_per_shard, quantization, call=_execute
  ):
    self.model, self.prompts, self.mesh = model, prompts, mesh
    self.settings, self.call = settings, call
    self.shards = sharding.batch_shards(mesh) if mesh else 1
    longest = max(map(len, prompts))
    self.width = min(bucket(longest), PREFILL_WIDTH)
    T = bucket(settings.max_new_tokens)
    each = -(-len(prompts) // self.shards)
    N = slots_per_shard or slots_for(model.config, T, each * samples, jax.default_backend())
    prompt_slots = prompt_slots_for(each, samples, N)
    self.schedule = Schedule(len(prompts), samples, shards=self.shards, slots=N, prompt_slots=prompt_slots)
    self.layers = call(_layers_of, model, mesh, quantization)
    self.columns = columns_for(T)  # the last of them is what the slots have
    self.slots, self.kept_prompts = call(
      _empty,
      model.config,
      mesh,
      self.shards * N,
      self.columns[-1],
      self.shards * prompt_slots,
      round_up(bucket(longest), self.width),
      settings.filtered,
    )
    self.lengths = np.zeros(self.shards * prompt_slots, np.int32)

  def fill(self, occurrences, limits, key):
    """Gives the free slots to what waits, or gives them up; returns the admissions."""
    self._read(self.schedule.read())
    admissions = self.schedule.admit()
    if admissions:
      self._admit(admissions, occurrences, limits, key)
    while (kept := self.schedule.shrink()) is not None:
      self.slots = self.call(slots.keep, self.slots, kept)
    return admissions

  def _read(self, readings):
    """Prefills prompts without their last token, a stretch of all of them at a time."""
    of_part = [[r for r in readings if r.shard == shard] for shard in range(self.shards)]
    most = max(1, PREFILL_TOKENS // self.width)
    for start in range(0, max(map(len, of_part)), most):
      batch = [some[start : start + most] for some in of_part]
      self._read_some(batch, power_of_two(max(map(len, batch))))

  def _read_some(self, batch, rows):
    prompt_slots = np.full((self.shards, rows), self.schedule.prompt_slots, np.int32)
    longest = max(len(self.prompts[r.prompt]) for some in batch for r in some)
    tokens = np.zeros((self.shards, rows, round_up(longest, self.width)), np.int32)
    for shard, some in enumerate(batch):
      for row, (_, prompt_slot, prompt) in enumerate(some):
        prompt_slots[shard, row] = prompt_slot
        ids = self.prompts[prompt]
        tokens[shard, row, : len(ids)] = ids
        self.lengths[shard * self.schedule.prompt_slots + prompt_slot] = len(ids) - 1
    for offset in range(0, max(longest - 1, 1), self.width):
      stretch = tokens[:, :, offset : offset + self.width]
      self.kept_prompts = self.call(
        _prefill,
        self.kept_prompts,
        self.model,
        self.layers,
        prompt_slots,
        stretch,
        np.int32(offset),
        first=offset == 0,
      )

  def _admit(self, admissions, occurrences, limits, key):
    rows = power_of_two(len(admissions))
    N = self.schedule.size * self.shards
    columns = np.full((6, rows), N, np.int64)  # beyond what is admitted: slot N, which is none
    for row, (slot, p, g) in enumerate(admissions):
      limit = self.settings.max_new_tokens if limits is None else limits[p][g]
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

  def run(self, sampler_params, stop_ids, clock) -> slots.Ended:
    """Decodes until samples end whose slots are wanted, or the columns are used up."""
    steps, ends = TOKENS_PER_RUN, 1 if self.schedule.waiting else np.iinfo(np.int32).max
    if len(self.columns) > 1 and clock == self.columns[-1]:
      self.columns.pop()
      self.slots = slots.widen(self.slots, self.columns[-1])
    if len(self.columns) > 1:
      steps = min(steps, self.columns[-1] - clock)
    self.slots, ended = self.call(
      slots.run,
      self.slots,
      self.model,
      self.layers,
      self.kept_prompts,
      self.lengths,
      self.schedule.slot_assignment(),
      sampler_params,
      stop_ids,
      np.int32(steps),
      np.int32(ends),
      np.int32(self.schedule.floor()),
      filtered=self.settings.filtered,
    )
    return ended


def _sample(ended, slot, began, filtered) -> Sample:
  """Reads a completion out of its slot's columns, from the one in which it began."""
  T = ended.tokens.shape[1]
  columns = (began + np.arange(ended.ages[slot])) % T
  of = lambda array: array[slot, columns].tolist()
  return Sample(
    of(ended.tokens),
    of(ended.logprobs),
    of(ended.filtered_logprobs) if filtered else None,
    'stop' if ended.stopped[slot] else 'length',
  )


# --- programs and where their arrays live ---------------------------------------------------------
@functools.partial(jax.jit, static_argnames=('first',), donate_argnums=0)
def _prefill(prompts, model, layers, prompt_slots, tokens, offset, *, first):
  return decoding.prefill(model, layers, prompts, prompt_slots, tokens, offset, first=first)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _layers_of(model, mesh, quantization):
  layers = decoding.layers_of(model, quantization)
  return (
    layers
    if mesh is None
    else jax.lax.with_sharding_constraint(layers, sharding.decoding_shardings(layers, mesh))
  )


@functools.partial(jax.jit, static_argnums=range(7))
def _empty(config, mesh, N, T, prompt_slots, S, filtered):
  """Returns (N free slots, nothing in `places` places of S columns), split over the mesh."""
  made = slots.make(config, N, T, filtered), decoding.empty(config, prompt_slots, S)
  return (
    made
    if mesh is None
    else jax.lax.with_sharding_constraint(
      made, jax.tree.map(lambda x: sharding.rows_sharding(mesh, x.ndim), made)
    )
  )


def compilations() -> int:
  """Returns how many programs the engine has compiled so far, in this process."""
  return sum(program._cache_size() for program in (_prefill, slots.run, slots.admit, slots.keep))


def _check(config, prompts, settings, samples_per_prompt, occurrences, limits, quantization):
  problems = settings.validate()
  if quantization not in decoding.QUANTIZATIONS:
    problems.append(f'quantization={quantization!r}, need one of {decoding.QUANTIZATIONS}')
  if samples_per_prompt < 1:
    problems.append(f'samples_per_prompt={samples_per_prompt}, need >= 1')
  if len(occurrences) != len(prompts):
    problems.append(f'{len(occurrences)} occurrences for {len(prompts)} prompts')
  if limits is not None and (
    len(limits) != len(prompts)
    or any(len(row) != samples_per_prompt for row in limits)
    or not all(1 <= limit <= settings.max_new_tokens for row in limits for limit in row)
  ):
    problems.append(
      f'limits: need {len(prompts)} x {samples_per_prompt} numbers in '
      f'1..max_new_tokens={settings.max_new_tokens}'
    )
  longest = lambda number: (
    settings.max_new_tokens if limits is None or problems else max(limits[number])
  )
  for number, prompt in enumerate(prompts):
    if not prompt:
      problems.append(f'prompt {number} is empty; give it at least one token, such as BOS')
    elif not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
      problems.append(
        f'prompt {number} has id {max(prompt)} or {min(prompt)} outside '
        f"0..{config.vocab_size - 1}: another tokenizer than the model's?"
      )
    elif len(prompt) + (new := longest(number)) > config.max_positions:
      problems.append(
        f'prompt {number} has {len(prompt)} tokens, with {new} new ones more than '
        f"the model's {config.max_positions} positions"
      )
  if problems:
    raise ValueError('generate: ' + '\n'.join(problems[:20]))
