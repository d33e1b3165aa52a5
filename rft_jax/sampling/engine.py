"""Rollout engine: samples completions of prompts by continuous batching, token ids in and out.

A prompt is prefilled once and its keys and values serve all of its samples. Samples decode in
slots; when one ends, the next takes its slot, and when none waits any more the number of slots
shrinks with the samples that still run. The key of a sampled token depends on (seed, step,
occurrence, sample, position) alone, so that a sample does not depend on the others in its batch, on
the mesh, or on a restart.

The host's side is scheduler.py, the device's decode_session.py and slots.py, the choice of a token
samplers.py.
"""

from typing import NamedTuple

import jax
import numpy as np

from rft_jax.models.decoding_layers import QUANTIZATIONS
from rft_jax.sampling import samplers
from rft_jax.sampling.decode_session import DecodeSession, compile_only
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.types import Sample


class Statistics(NamedTuple):
  """How well the slots were used by one call, see sample()."""

  tokens: int  # of all samples
  decoded: int  # tokens that were computed: slots times steps
  prompt_tokens: int  # prefilled, padding not counted
  runs: int  # of the decoding loop on the device


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
  **options,
) -> list[list[Sample]]:
  """Samples completions: sample() with the sampling settings as keyword arguments.

  Args:
    model, prompts, samples_per_prompt, seed, stop_ids: as in sample().
    max_new_tokens, temperature, top_k, top_p, min_p: as in SamplingConfig.
    options: other keyword arguments of sample().

  Returns:
    P lists of G Samples. Their log-probs are in nats, of the tempered distribution before
    top-k, top-p and min-p.

  Raises:
    ValueError: as sample() does.
  """
  config = SamplingConfig(
    max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
  )
  return sample(
    model,
    prompts,
    config,
    samples_per_prompt=samples_per_prompt,
    seed=seed,
    stop_ids=stop_ids,
    **options,
  )


def sample(
  model,
  prompts,
  config: SamplingConfig,
  *,
  samples_per_prompt=1,
  seed=0,
  stop_ids=None,
  step=0,
  occurrences=None,
  mesh=None,
  limits=None,
  slots_per_shard=0,
  quantization='none',
  on_finished=None,
  on_statistics=None,
) -> list[list[Sample]]:
  """Samples G completions of each prompt; returns P lists of G Samples, log-probs before filters.

  Args:
    model: a Decoder.
    prompts: P lists of token ids, each with at least one.
    config: how each token is sampled, and how many at most; temperature 0 is greedy.
    samples_per_prompt: G.
    seed, step: with occurrences, what the random numbers depend on.
    stop_ids: a sample ends with the first of these; None: every EOS id of the checkpoint.
    occurrences: P integers, the prompts' positions in the data order; None: 0 .. P-1.
    mesh: the mesh on which the model is placed; None: one device.
    limits: P lists of G token budgets, each at most max_new_tokens; None: max_new_tokens.
    slots_per_shard: samples that decode together in each shard of the mesh; 0: slots_for().
    quantization: 'none', or 'int8': of the layers' kernels, which halves what a token reads. The
      log-probs are then those of the rounded policy, from which the samples are.
    on_finished: called as on_finished(prompt, sample index, Sample) when each ends, in that order.
    on_statistics: called at the end with the Statistics of the call.

  Raises:
    ValueError: an empty prompt, ids out of range, or settings out of range; all are named.
  """
  # 1. Check the arguments.
  occurrences = list(range(len(prompts)) if occurrences is None else occurrences)
  _check(model.config, prompts, config, samples_per_prompt, occurrences, limits, quantization)
  if not prompts:
    return []
  # 2. Lay out the slots and the prompts' KV cache on the device.
  session = DecodeSession(
    model, prompts, config, samples_per_prompt, mesh, slots_per_shard, quantization
  )
  # 3. Until all samples have ended: fill the slots, run, read back what has ended.
  stop_ids = sorted(model.config.eos_ids if stop_ids is None else stop_ids) or [-1]
  key = jax.random.fold_in(jax.random.key(seed), step)
  samples, statistics = _decode_all(session, stop_ids, occurrences, limits, key, on_finished)
  # 4. Report.
  if on_statistics:
    on_statistics(statistics)
  return samples


def _decode_all(session, stop_ids, occurrences, limits, key, on_finished):
  """Runs a session to its end; returns (samples, Statistics)."""
  schedule, prompts, config = session.schedule, session.prompts, session.config
  stop_ids, sampler_params = np.asarray(stop_ids, np.int32), samplers.sampler_params(config)
  samples = [[None] * schedule.samples for _ in prompts]
  starts, steps, tokens, decoded, runs = {}, 0, 0, 0, 0
  while schedule.waiting or schedule.live:
    for _, prompt, index in session.fill(occurrences, limits, key):
      starts[prompt, index] = steps
    result = jax.device_get(session.run(sampler_params, stop_ids, steps))
    decoded += (int(result.steps) - steps) * schedule.size * schedule.shards
    steps, runs = int(result.steps), runs + 1
    for slot, prompt, index in schedule.running():
      if not result.live[slot]:
        completion = _read_sample(result, slot, starts.pop((prompt, index)), config.filtered)
        samples[prompt][index] = completion
        tokens += len(completion.tokens)
        schedule.end(slot)
        if on_finished:
          on_finished(prompt, index, completion)
  return samples, Statistics(tokens, decoded, sum(map(len, prompts)), runs)


def compile_ahead(
  model,
  prompts,
  config: SamplingConfig,
  *,
  samples_per_prompt,
  stop_ids,
  mesh=None,
  slots_per_shard=0,
  quantization='none',
) -> None:
  """Compiles the programs that sample() runs first, into JAX's cache on disk.

  Needs no weights, so it can run while they are read.

  Args:
    model: a Decoder of ShapeDtypeStructs with their shardings.
    prompts and the others: as sample() will be called.
  """
  session = DecodeSession(
    model,
    prompts,
    config,
    samples_per_prompt,
    mesh,
    slots_per_shard,
    quantization,
    call=compile_only,
  )
  session.fill(range(len(prompts)), None, jax.random.key(0))
  session.run(samplers.sampler_params(config), np.asarray(sorted(stop_ids), np.int32), 0)


def _read_sample(result, slot, start, filtered) -> Sample:
  """Returns the completion of a slot, from the column in which it started."""
  T = result.tokens.shape[1]
  columns = (start + np.arange(result.completion_lengths[slot])) % T
  values = lambda array: array[slot, columns].tolist()
  return Sample(
    values(result.tokens),
    values(result.logprobs),
    values(result.filtered_logprobs) if filtered else None,
    'stop' if result.stopped[slot] else 'length',
  )


def _check(model_config, prompts, config, samples_per_prompt, occurrences, limits, quantization):
  """Raises ValueError with all problems of the arguments of sample()."""
  # Not config.validate(): a subclass has settings that do not matter here.
  problems = SamplingConfig.validate(config)
  if quantization not in QUANTIZATIONS:
    problems.append(f'quantization={quantization!r}, need one of {QUANTIZATIONS}')
  if samples_per_prompt < 1:
    problems.append(f'samples_per_prompt={samples_per_prompt}, need >= 1')
  if len(occurrences) != len(prompts):
    problems.append(f'{len(occurrences)} occurrences for {len(prompts)} prompts')
  if limits is not None and (
    len(limits) != len(prompts)
    or any(len(row) != samples_per_prompt for row in limits)
    or not all(1 <= limit <= config.max_new_tokens for row in limits for limit in row)
  ):
    problems.append(
      f'limits: need {len(prompts)} x {samples_per_prompt} numbers in '
      f'1..max_new_tokens={config.max_new_tokens}'
    )
  max_new_tokens = lambda number: (
    config.max_new_tokens if limits is None or problems else max(limits[number])
  )
  for number, prompt in enumerate(prompts):
    if not prompt:
      problems.append(f'prompt {number} is empty; give it at least one token, such as BOS')
    elif not 0 <= min(prompt) <= max(prompt) < model_config.vocab_size:
      problems.append(
        f'prompt {number} has id {max(prompt)} or {min(prompt)} outside '
        f"0..{model_config.vocab_size - 1}: another tokenizer than the model's?"
      )
    elif len(prompt) + (new := max_new_tokens(number)) > model_config.max_positions:
      problems.append(
        f'prompt {number} has {len(prompt)} tokens, with {new} new ones more than '
        f"the model's {model_config.max_positions} positions"
      )
  if problems:
    raise ValueError('generate: ' + '\n'.join(problems[:20]))
