"""Oracle of the rollout engine: one sequence at a time, a whole forward pass for every token.

Slow, without KV cache, slots or batches: the definition of what the engine samples.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.sampling import samplers
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.types import Sample


def generate(
  model,
  prompts,
  *,
  samples_per_prompt,
  stop_ids,
  seed=0,
  step=0,
  occurrences=None,
  limits=None,
  **settings,
) -> list[list[Sample]]:
  """Samples as rft_jax.generate; the arguments are the same."""
  config = SamplingConfig(**settings)
  occurrences = occurrences or range(len(prompts))
  limit = lambda p, g: config.max_new_tokens if limits is None else limits[p][g]
  key = jax.random.fold_in(jax.random.key(seed), step)
  width = max(map(len, prompts)) + config.max_new_tokens
  return [
    [
      _sample(
        model,
        prompt,
        jax.random.fold_in(jax.random.fold_in(key, occurrences[p]), g),
        config,
        stop_ids,
        limit(p, g),
        width,
      )
      for g in range(samples_per_prompt)
    ]
    for p, prompt in enumerate(prompts)
  ]


def _sample(model, prompt, key, config, stop_ids, limit, width) -> Sample:
  ids, sampled = list(prompt), []
  while len(sampled) < limit and not (sampled and int(sampled[-1].tokens[0]) in stop_ids):
    row = np.zeros((1, width), np.int32)
    row[0, : len(ids)] = ids
    sampled.append(
      jax.device_get(
        _next(
          model,
          row,
          np.int32(len(ids)),
          jax.random.fold_in(key, len(sampled)),
          samplers.sampler_params(config),
          filtered=config.filtered,
        )
      )
    )
    ids.append(int(sampled[-1].tokens[0]))
  tokens = ids[len(prompt) :]
  values = lambda name: [float(getattr(token, name)[0]) for token in sampled]
  return Sample(
    tokens,
    values('logprobs'),
    values('filtered_logprobs') if config.filtered else None,
    'stop' if tokens[-1] in stop_ids else 'length',
  )


@functools.partial(jax.jit, static_argnames='filtered')
def _next(model, row, length, key, sampler_params, *, filtered):
  logits = model(row, lengths=length[None])[:, length - 1]
  return samplers.sample_tokens(
    logits,
    jnp.stack([key]),
    sampler_params,
    valid_vocab=model.config.valid_vocab,
    filtered=filtered,
  )
