"""Completions from a policy: one prefill a prompt, then one jitted decode loop for all samples.

The engine knows nothing about text or tokenizers: prompts come as ids and samples go as ids. The
key of a sampled token depends on (seed, step, occurrence, sample, position) alone, so that a
sample does not depend on what else was in its batch, on the mesh, or on a restart.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import sharding
from rft_jax.sampling import samplers
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.shapes import bucket, round_up
from rft_jax.types import Sample

ROWS_PER_CALL = 1024  # samples decoded side by side; more are done in turns


class _Loop(NamedTuple):
  """What the decode loop carries."""
  t: jax.Array  # i32[], the position that is drawn next
  inputs: jax.Array  # i32[B], the tokens fed next
  done: jax.Array  # bool[B]
  tokens: jax.Array  # i32[B, T]
  logprobs: jax.Array  # f32[B, T]
  filtered_logprobs: jax.Array  # f32[B, T]
  lengths: jax.Array  # i32[B]
  cache: tuple


def generate(model, prompts, *, samples_per_prompt=1, max_new_tokens=128, temperature=1.0,
             top_k=0, top_p=1.0, min_p=0.0, seed=0, stop_ids=None, step=0, occurrences=None,
             mesh=None) -> list[list[Sample]]:
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

  Returns:
    P lists of G Samples. Their log-probs are in nats, of the tempered distribution before
    top-k, top-p and min-p.

  Raises:
    ValueError: an empty prompt, ids out of range, or settings out of range; all are named.
  """
  settings = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                            top_p=top_p, min_p=min_p)
  occurrences = range(len(prompts)) if occurrences is None else occurrences
  _check(model.config, prompts, settings, samples_per_prompt, occurrences)
  if not prompts:
    return []
  stop_ids = sorted(model.config.eos_ids if stop_ids is None else stop_ids)
  key = jax.random.fold_in(jax.random.key(seed), step)
  shards = sharding.batch_shards(mesh) if mesh else 1
  per_call = max(ROWS_PER_CALL // samples_per_prompt // shards, 1) * shards
  results = []
  for start in range(0, len(prompts), per_call):
    some = prompts[start:start + per_call]
    # Full calls have one shape; the last, shorter one gets a shape of its own, also rounded.
    P = per_call if len(prompts) > per_call else round_up(len(some), shards)
    results += _generate_some(model, some, occurrences[start:start + per_call], P,
                              samples_per_prompt, settings, stop_ids, key, mesh)
  return results


def _generate_some(model, prompts, occurrences, P, G, settings, stop_ids, key, mesh):
  """Runs the jitted loop on prompts padded to P rows, and cuts the samples out of its arrays."""
  S = bucket(max(map(len, prompts)))
  ids = np.zeros((P, S), np.int32)
  lengths = np.ones(P, np.int32)  # rows of padding: one token, done from the start
  for row, prompt in enumerate(prompts):
    ids[row, :len(prompt)] = prompt
    lengths[row] = len(prompt)
  rows = np.zeros(P, np.uint32)
  rows[:len(prompts)] = occurrences
  real = np.arange(P) < len(prompts)
  inputs = (ids, lengths, rows, real)
  if mesh:
    inputs = jax.device_put(inputs, sharding.batch_sharding(mesh))
  out = _decode_loop(model, *inputs, key, samplers.knobs(settings),
                     np.asarray(stop_ids or [-1], np.int32),
                     jnp.int32(settings.max_new_tokens), G=G,
                     T=bucket(settings.max_new_tokens), filtered=settings.filtered)
  tokens, logprobs, filtered, n, stopped = jax.device_get(out)
  filtered = filtered if settings.filtered else None

  def sample(b):
    return Sample(tokens[b, :n[b]].tolist(), logprobs[b, :n[b]].tolist(),
                  None if filtered is None else filtered[b, :n[b]].tolist(),
                  'stop' if stopped[b] else 'length')
  return [[sample(p * G + g) for g in range(G)] for p in range(len(prompts))]


@functools.partial(jax.jit, static_argnames=('G', 'T', 'filtered'))
def _decode_loop(model, prompts, lengths, occurrences, real, key, knobs, stop_ids, limit, *, G, T,
                 filtered):
  """Prefills P prompts once and decodes B = P*G samples in lock-step until all have stopped."""
  P, B = prompts.shape[0], prompts.shape[0] * G
  model = model.for_decoding()
  with jax.named_scope('prefill'):
    prefix = model.prefill(prompts, lengths)
  row_keys = jax.vmap(jax.random.fold_in)(
      jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.repeat(occurrences, G)),
      jnp.tile(jnp.arange(G), P))
  last = jnp.take_along_axis(prompts, lengths[:, None] - 1, 1)[:, 0]

  def body(loop):
    hidden, cache = model.decode(loop.inputs, loop.t, prefix, lengths, loop.cache)
    keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, loop.t)
    drawn = samplers.draw(model.logits(hidden), keys, knobs,
                          valid_vocab=model.config.valid_vocab, filtered=filtered)
    put = lambda array, column: jax.lax.dynamic_update_slice(array, column[:, None], (0, loop.t))
    stopped = jnp.isin(drawn.tokens, stop_ids)
    return _Loop(loop.t + 1, drawn.tokens, loop.done | stopped, put(loop.tokens, drawn.tokens),
                 put(loop.logprobs, drawn.logprobs),
                 put(loop.filtered_logprobs, drawn.filtered_logprobs) if filtered
                 else loop.filtered_logprobs,
                 loop.lengths + ~loop.done, cache)

  zeros = jnp.zeros((B, T), jnp.float32)
  loop = jax.lax.while_loop(
      lambda loop: (loop.t < limit) & ~loop.done.all(), body,
      _Loop(jnp.int32(0), jnp.repeat(last, G), jnp.repeat(~real, G), jnp.zeros((B, T), jnp.int32),
            zeros, zeros if filtered else jnp.zeros((), jnp.float32), jnp.zeros(B, jnp.int32),
            model.empty_cache(B, T)))
  return loop.tokens, loop.logprobs, loop.filtered_logprobs, loop.lengths, loop.done


def _check(config, prompts, settings, samples_per_prompt, occurrences):
  problems = settings.validate()
  if samples_per_prompt < 1:
    problems.append(f'samples_per_prompt={samples_per_prompt}, need >= 1')
  if len(occurrences) != len(prompts):
    problems.append(f'{len(occurrences)} occurrences for {len(prompts)} prompts')
  for number, prompt in enumerate(prompts):
    if not prompt:
      problems.append(f'prompt {number} is empty; give it at least one token, such as BOS')
    elif not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
      problems.append(f'prompt {number} has id {max(prompt)} or {min(prompt)} outside '
                      f'0..{config.vocab_size - 1}: another tokenizer than the model\'s?')
    elif len(prompt) + settings.max_new_tokens > config.max_positions:
      problems.append(f'prompt {number} has {len(prompt)} tokens, with '
                      f'max_new_tokens={settings.max_new_tokens} more than the model\'s '
                      f'{config.max_positions} positions')
  if problems:
    raise ValueError('generate: ' + '\n'.join(problems[:20]))
