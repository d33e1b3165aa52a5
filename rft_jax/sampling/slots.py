"""Decoding slots on the device: N completions side by side, and the loop that samples tokens.

All slots write their keys and values, and their tokens, in the same column of T, a ring buffer:
column steps % T, where steps counts the tokens decoded so far. So a write is one slice in place,
completions may begin and end at any time, and a slot attends to the columns written since its
completion began. While steps is small the arrays have fewer columns: attention reads all of them.

A slot that is free computes like the others; its results are never read.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.models import decoding, kv_cache
from rft_jax.models.kv_cache import KVCache
from rft_jax.sampling import samplers


class Slots(NamedTuple):
  """The N slots. Donated to admit and run, which return them updated."""

  steps: jax.Array  # i32[], tokens decoded so far; the next one goes to column steps % T
  inputs: jax.Array  # i32[N], the token that each slot reads next
  last_prompt_positions: jax.Array  # i32[N], the position of the last prompt token
  completion_lengths: jax.Array  # i32[N], tokens sampled so far
  limits: jax.Array  # i32[N], tokens at most
  keys: jax.Array  # key[N], of the completion
  live: jax.Array  # bool[N], whether there is a completion that has not ended
  stopped: jax.Array  # bool[N], whether it ended with a stop token
  tokens: jax.Array  # i32[N, T]
  logprobs: jax.Array  # f32[N, T] nats, before the filters
  filtered_logprobs: jax.Array | None  # f32[N, T] after them; None: nothing is filtered
  caches: tuple[KVCache, ...]  # of the completions, for each layer


class RunResult(NamedTuple):
  """The fields of Slots that the host reads after each run."""

  steps: jax.Array
  completion_lengths: jax.Array
  live: jax.Array
  stopped: jax.Array
  tokens: jax.Array
  logprobs: jax.Array
  filtered_logprobs: jax.Array | None


def init_slots(config, N: int, T: int, filtered: bool) -> Slots:
  """Returns N free slots with T columns."""
  integers = lambda: jnp.zeros(N, jnp.int32)
  booleans = lambda: jnp.zeros(N, bool)
  return Slots(
    steps=jnp.int32(0),
    inputs=integers(),
    last_prompt_positions=integers(),
    completion_lengths=integers(),
    limits=integers(),
    keys=jax.random.split(jax.random.key(0), N),
    live=booleans(),
    stopped=booleans(),
    tokens=jnp.zeros((N, T), jnp.int32),
    logprobs=jnp.zeros((N, T)),
    filtered_logprobs=jnp.zeros((N, T)) if filtered else None,
    caches=kv_cache.init_kv_cache(config, N, T),
  )


@functools.partial(jax.jit, donate_argnums=0)
def admit(
  slots: Slots, index, inputs, last_prompt_positions, limits, occurrences, samples, key
) -> Slots:
  """Starts completions in the slots i32[m] `index`; an index of N or more starts nothing.

  Their random keys follow from (key, occurrence, sample) alone.
  """
  fold = jax.vmap(jax.random.fold_in)
  keys = fold(jax.vmap(jax.random.fold_in, (None, 0))(key, occurrences), samples)
  put = lambda array, values: array.at[index].set(values, mode='drop')
  return slots._replace(
    inputs=put(slots.inputs, inputs),
    last_prompt_positions=put(slots.last_prompt_positions, last_prompt_positions),
    completion_lengths=put(slots.completion_lengths, 0),
    limits=put(slots.limits, limits),
    keys=put(slots.keys, keys),
    live=put(slots.live, True),
    stopped=put(slots.stopped, False),
  )


@jax.jit
def shrink(slots: Slots, index) -> Slots:
  """Returns fewer slots: those at index i32[A, n], numbered within each of A shards."""
  return jax.tree.map(lambda x: kv_cache.gather(x, index) if x.ndim else x, slots)


def widen(slots: Slots, T: int) -> Slots:
  """Returns slots with T columns, for when the fewer ones are full.

  Frees the memory of the old caches, one layer after the other, as two copies might not fit.
  """
  caches = []
  for cache in slots.caches:
    caches.append(_widen_cache(cache, T))
    jax.tree.map(lambda array: array.delete(), cache)
  wide = lambda array: None if array is None else _widen(array, 1, T)
  return slots._replace(
    tokens=wide(slots.tokens),
    logprobs=wide(slots.logprobs),
    filtered_logprobs=wide(slots.filtered_logprobs),
    caches=tuple(caches),
  )


@functools.partial(jax.jit, static_argnames=('T',))
def _widen_cache(cache, T):
  return KVCache(_widen(cache.k, 3, T), _widen(cache.v, 2, T))


@functools.partial(jax.jit, static_argnames=('axis', 'T'))
def _widen(array, axis, T):
  return jnp.pad(
    array, [(0, T - size if number == axis else 0) for number, size in enumerate(array.shape)]
  )


@functools.partial(jax.jit, donate_argnums=0, static_argnames=('filtered',))
def run(
  slots: Slots,
  model,
  layers,
  prompts,
  prompt_lengths,
  slot_assignment,
  sampler_params,
  stop_ids,
  max_steps,
  max_ended,
  min_live,
  *,
  filtered: bool,
) -> tuple[Slots, RunResult]:
  """Decodes until the host has something to do: the one loop in which tokens are sampled.

  Args:
    model, layers, prompts, prompt_lengths, slot_assignment: as in decoding.decode.
    sampler_params, filtered: as in samplers.sample_tokens.
    stop_ids: i32[any], tokens that end a completion.
    max_steps, max_ended, min_live: i32[]; the loop returns after max_steps tokens, when max_ended
      completions have ended, or when no shard has more than min_live of them running.
  """
  shards = slot_assignment.rows.shape[0]
  live_before = slots.live.sum()

  def is_running(slots_and_step):
    slots, step = slots_and_step
    live = slots.live.reshape(shards, -1).sum(1)
    return (step < max_steps) & (live_before - live.sum() < max_ended) & (live.max() > min_live)

  def body(slots_and_step):
    slots, step = slots_and_step
    column = slots.steps % slots.tokens.shape[1]
    hidden, slots = _decode(slots, column, model, layers, prompts, prompt_lengths, slot_assignment)
    slots = _sample(slots, column, model, hidden, sampler_params, stop_ids, filtered=filtered)
    return slots, step + 1

  slots, _ = jax.lax.while_loop(is_running, body, (slots, jnp.int32(0)))
  return slots, RunResult(*(getattr(slots, name) for name in RunResult._fields))


def _decode(slots, column, model, layers, prompts, prompt_lengths, slot_assignment):
  """Computes each slot's input token; returns (hidden [N, D], slots with its keys and values)."""
  T = slots.tokens.shape[1]
  age = (column - jnp.arange(T)) % T  # how many tokens ago each column was written
  hidden, caches = decoding.decode(
    model,
    layers,
    slots.inputs,
    slots.last_prompt_positions + slots.completion_lengths,
    slots.caches,
    column,
    age <= slots.completion_lengths[:, None],
    prompts,
    prompt_lengths,
    slot_assignment,
  )
  return hidden, slots._replace(caches=caches)


def _sample(slots, column, model, hidden, sampler_params, stop_ids, *, filtered):
  """Samples the next token of each slot; returns the slots with it written to the column."""
  keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.completion_lengths)
  sampled = samplers.sample_tokens(
    model.logits(hidden),
    keys,
    sampler_params,
    valid_vocab=model.config.valid_vocab,
    filtered=filtered,
  )
  live = slots.live
  stopped = live & (sampled.tokens[:, None] == stop_ids).any(1)
  completion_lengths = slots.completion_lengths + live
  put = functools.partial(_put_column, column=column, live=live)
  updated = slots._replace(
    steps=slots.steps + 1,
    inputs=sampled.tokens,
    completion_lengths=completion_lengths,
    live=live & ~stopped & (completion_lengths < slots.limits),
    stopped=slots.stopped | stopped,
    tokens=put(slots.tokens, sampled.tokens),
    logprobs=put(slots.logprobs, sampled.logprobs),
  )
  if filtered:
    updated = updated._replace(
      filtered_logprobs=put(slots.filtered_logprobs, sampled.filtered_logprobs)
    )
  return updated


def _put_column(array, values, *, column, live):
  """Writes a column of the live rows: a completion that has ended stays as it is."""
  old = jax.lax.dynamic_slice_in_dim(array, column, 1, 1)
  new = jnp.where(live[:, None], values[:, None], old)
  return jax.lax.dynamic_update_slice_in_dim(array, new, column, 1)
