"""What decodes side by side: N slots on the device, each with the state of one completion.

All slots write their keys and values, and their tokens, in the same column: that of a clock that
goes around an array of T columns. So a write is one slice in place, slots may begin and end when
they like, and a slot sees the columns that are not older than its completion. As long as the clock
is young the arrays are narrower: attention reads every column there is.

A slot that is free computes like the others; what comes of it is never read.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rft_jax.models import decoding
from rft_jax.sampling import samplers


class Slots(NamedTuple):
  """The N slots. Donated to admit and run, which give them back changed."""

  clock: jax.Array  # i32[], tokens decoded so far; the next one goes to column clock % T
  inputs: jax.Array  # i32[N], the token that each slot reads next
  starts: jax.Array  # i32[N], the position of the last prompt token
  ages: jax.Array  # i32[N], tokens of the completion sampled so far
  limits: jax.Array  # i32[N], and how many at most
  keys: jax.Array  # key[N], of the completion
  live: jax.Array  # bool[N], whether there is a completion that has not ended
  stopped: jax.Array  # bool[N], whether it ended with a stop token
  tokens: jax.Array  # i32[N, T]
  logprobs: jax.Array  # f32[N, T] nats, before the filters
  filtered_logprobs: jax.Array | None  # f32[N, T] after them; None: nothing is filtered
  completions: tuple[decoding.KVCache, ...]  # for each layer


class Ended(NamedTuple):
  """What the host reads after each run."""

  clock: jax.Array
  ages: jax.Array
  live: jax.Array
  stopped: jax.Array
  tokens: jax.Array
  logprobs: jax.Array
  filtered_logprobs: jax.Array | None


def make(config, N: int, T: int, filtered: bool) -> Slots:
  """Returns N free slots for completions of up to T tokens."""
  integers = lambda: jnp.zeros(N, jnp.int32)
  booleans = lambda: jnp.zeros(N, bool)
  return Slots(
    jnp.int32(0),
    integers(),
    integers(),
    integers(),
    integers(),
    jax.random.split(jax.random.key(0), N),
    booleans(),
    booleans(),
    jnp.zeros((N, T), jnp.int32),
    jnp.zeros((N, T)),
    jnp.zeros((N, T)) if filtered else None,
    decoding.empty(config, N, T),
  )


@functools.partial(jax.jit, donate_argnums=0)
def admit(slots: Slots, which, inputs, starts, limits, occurrences, indices, key) -> Slots:
  """Begins completions in the slots i32[m] `which`; a number of N or more admits nothing.

  Their keys follow from (key, occurrence, index) alone.
  """
  fold = jax.vmap(jax.random.fold_in)
  keys = fold(jax.vmap(jax.random.fold_in, (None, 0))(key, occurrences), indices)
  put = lambda array, new: array.at[which].set(new, mode='drop')
  return slots._replace(
    inputs=put(slots.inputs, inputs),
    starts=put(slots.starts, starts),
    ages=put(slots.ages, 0),
    limits=put(slots.limits, limits),
    keys=put(slots.keys, keys),
    live=put(slots.live, True),
    stopped=put(slots.stopped, False),
  )


@jax.jit
def keep(slots: Slots, which) -> Slots:
  """Returns fewer slots: those of i32[A, n] `which`, numbered within each of A parts."""
  take = lambda array: decoding.take(array, which)
  return jax.tree.map(lambda x: take(x) if x.ndim else x, slots)


def widen(slots: Slots, T: int) -> Slots:
  """Returns slots with T columns, when the clock has filled the fewer ones; gives up the old ones,
  a layer after the other, as two copies of all might not fit."""
  completions = []
  for layer in slots.completions:
    completions.append(_widen_layer(layer, T))
    jax.tree.map(lambda array: array.delete(), layer)
  wide = lambda array: None if array is None else _widen(array, 1, T)
  return slots._replace(
    tokens=wide(slots.tokens),
    logprobs=wide(slots.logprobs),
    filtered_logprobs=wide(slots.filtered_logprobs),
    completions=tuple(completions),
  )


@functools.partial(jax.jit, static_argnames=('T',))
def _widen_layer(layer, T):
  return decoding.KVCache(_widen(layer.k, 3, T), _widen(layer.v, 2, T))


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
  lengths,
  slot_assignment,
  sampler_params,
  stop_ids,
  steps,
  ends,
  floor,
  *,
  filtered: bool,
) -> tuple[Slots, Ended]:
  """Decodes until it is worth the host's while: the one loop in which tokens are made.

  Args:
    model, layers, prompts, lengths, members: as in decoding.decode.
    knobs, filtered: as in samplers.draw.
    stop_ids: i32[any], tokens that end a completion.
    steps, ends, floor: i32[]; the loop returns after so many tokens, when so many completions
      have ended, or when no part has more than `floor` of them left.
  """
  T = slots.tokens.shape[1]
  shards = slot_assignment.rows.shape[0]
  before = slots.live.sum()

  def going(slots_and_step):
    slots, step = slots_and_step
    left = slots.live.reshape(shards, -1).sum(1)
    return (step < steps) & (before - left.sum() < ends) & (left.max() > floor)

  def body(slots_and_step):
    slots, step = slots_and_step
    column = slots.clock % T
    behind = (column - jnp.arange(T)) % T  # how many tokens ago each column was written
    hidden, completions = decoding.decode(
      model,
      layers,
      slots.inputs,
      slots.starts + slots.ages,
      slots.completions,
      column,
      behind <= slots.ages[:, None],
      prompts,
      lengths,
      slot_assignment,
    )
    keys = jax.vmap(jax.random.fold_in)(slots.keys, slots.ages)
    drawn = samplers.draw(
      model.logits(hidden), keys, sampler_params, valid_vocab=model.config.valid_vocab, filtered=filtered
    )
    live = slots.live
    stopped = live & (drawn.tokens[:, None] == stop_ids).any(1)
    ages = slots.ages + live
    put = functools.partial(_put_column, column=column, live=live)
    after = slots._replace(
      clock=slots.clock + 1,
      inputs=drawn.tokens,
      ages=ages,
      completions=completions,
      live=live & ~stopped & (ages < slots.limits),
      stopped=slots.stopped | stopped,
      tokens=put(slots.tokens, drawn.tokens),
      logprobs=put(slots.logprobs, drawn.logprobs),
    )
    if filtered:
      after = after._replace(
        filtered_logprobs=put(slots.filtered_logprobs, drawn.filtered_logprobs)
      )
    return after, step + 1

  slots, _ = jax.lax.while_loop(going, body, (slots, jnp.int32(0)))
  return slots, Ended(*(getattr(slots, name) for name in Ended._fields))


def _put_column(array, values, *, column, live):
  """Writes a column of the live rows: a completion that has ended keeps what it has."""
  old = jax.lax.dynamic_slice_in_dim(array, column, 1, 1)
  new = jnp.where(live[:, None], values[:, None], old)
  return jax.lax.dynamic_update_slice_in_dim(array, new, column, 1)
