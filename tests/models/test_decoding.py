"""Prefill and decode with a KV cache against the full forward pass."""

import jax
import numpy as np
import pytest
from tiny_decoders import RICH, TINY, assert_close, count_traces, full_forward_states, make, ragged

from rft_jax.models import decoding, decoding_layers, kv_cache


@pytest.mark.parametrize('config', [TINY, RICH], ids=['tiny', 'rich'])
@pytest.mark.parametrize('width', [3, 8])  # tokens: in chunks, and at once
def test_prefill_and_decode_equal_the_full_forward(config, width):
  model, (prompts, n, completions, _) = make(config), ragged()
  (P, S), (B, T) = prompts.shape, completions.shape
  layers = jax.jit(decoding_layers.layers_of)(model)
  prompt_cache = kv_cache.init_kv_cache(config, P, -(-S // width) * width)
  prefill = jax.jit(decoding.prefill, static_argnames='first')
  padded = np.pad(prompts, [(0, 0), (0, -S % width)])
  for offset in range(0, S, width):
    prompt_cache = prefill(
      model,
      layers,
      prompt_cache,
      np.arange(P)[None],
      padded[None, :, offset : offset + width],
      np.int32(offset),
      first=offset == 0,
    )

  slot_assignment = decoding.SlotAssignment(np.arange(B).reshape(1, P, B // P), np.arange(B)[None])
  own_cache, columns = kv_cache.init_kv_cache(config, B, T), np.arange(T)
  decode, traces = count_traces(lambda *args: decoding.decode(*args))
  last = np.repeat(prompts[np.arange(len(n)), n - 1], B // len(n))
  start = np.repeat(n - 1, B // len(n))
  states = []
  for t in range(T):
    tokens = last if t == 0 else completions[:, t - 1]
    hidden, own_cache = decode(
      model,
      layers,
      tokens,
      start + t,
      own_cache,
      np.int32(t),
      np.broadcast_to(columns <= t, (B, T)),
      prompt_cache,
      n - 1,
      slot_assignment,
    )
    states.append(hidden)
  batch = prompts, n, completions, np.full(B, T)
  assert_close(np.stack(states, 1), jax.jit(lambda m: full_forward_states(m, batch))(model))
  assert traces() == 1
