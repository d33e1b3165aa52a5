"""Scoring: log-probs, entropies and critic values of given completions, without a gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.data import packing
from rft_jax.data.batching import ROW_FIELDS
from rft_jax.data.packing import Microbatch
from rft_jax.objectives.logprobs import TokenStatistics, token_statistics
from rft_jax.training import microbatches
from rft_jax.types import Batch


class TokenScores(NamedTuple):
  """Log-probs and entropies of the completions of a batch. Host arrays, 0 on padding."""

  logprobs: np.ndarray  # f32[B, T] nats
  entropy: np.ndarray  # f32[B, T] nats, of the distribution each token was drawn from


def completion_statistics(
  model, microbatch: Microbatch, *, temperature, critic=None, remat='none'
) -> TokenStatistics:
  """Returns the TokenStatistics [B, T] of every completion token; prompts are computed once.

  Args:
    critic: whose values are included; None: no values.
  """
  batch = microbatch.batch
  inputs = batch.prompts, batch.prompt_lengths, microbatch.packed, microbatch.completion_starts
  hidden = model.completion_hidden(*inputs, remat=remat)
  packed = token_statistics(
    hidden,
    model.head(),
    microbatch.packed,
    temperature=temperature,
    valid_vocab=model.config.valid_vocab,
  )
  if critic is not None:
    packed = packed._replace(values=critic(critic.hidden(hidden, *inputs, remat=remat)))
  unpack = lambda x: jnp.take_along_axis(
    x.reshape(len(microbatch.unpack_indices), -1), microbatch.unpack_indices, axis=1
  )
  return jax.tree.map(lambda x: unpack(x).reshape(batch.completions.shape), packed)


@jax.jit
def _scored(model, microbatch, temperature):
  statistics = completion_statistics(model, microbatch, temperature=temperature)
  return TokenScores(statistics.logprobs, statistics.entropy)


def score_batch(model, batch: Batch, config, *, temperature, mesh) -> TokenScores:
  """Returns the log-probs of the completions under the model, and its entropies.

  Args:
    config: an UpdateConfig.
  """
  plan = microbatches.plan(batch, config, mesh)
  parts = [
    _scored(model, microbatches.put(_inputs_only(microbatch), mesh), jnp.float32(temperature))
    for microbatch, _ in plan
  ]
  return TokenScores(*(_unpacked(column, plan, batch) for column in zip(*jax.device_get(parts))))


@jax.jit
def _values(models, microbatch):
  return completion_statistics(
    models['policy'], microbatch, temperature=1.0, critic=models['critic']
  ).values


def value_batch(policy, critic, batch: Batch, config, *, mesh) -> np.ndarray:
  """Returns the critic's values f32[B, T] of the completions, 0 on padding.

  The value at a token is that of the state before the token is read.

  Args:
    config: an UpdateConfig.
  """
  models = {'policy': policy if critic.decoder is None else critic.decoder, 'critic': critic}
  plan = microbatches.plan(batch, config, mesh)
  parts = [
    _values(models, microbatches.put(_inputs_only(microbatch), mesh)) for microbatch, _ in plan
  ]
  return _unpacked(jax.device_get(parts), plan, batch)


def _unpacked(parts, plan, batch):
  """Returns the arrays of the microbatches as one f32[B, T], 0 on padding."""
  inside = np.arange(batch.completions.shape[1]) < batch.completion_lengths[:, None]
  return packing.scatter(parts, plan, inside.shape) * inside


def _inputs_only(microbatch):
  """Drops the fields that scoring does not read, so that its program has one signature."""
  return microbatch._replace(batch=microbatch.batch._replace(**dict.fromkeys(ROW_FIELDS)))


# --- single sequences -----------------------------------------------------------------------------


@jax.jit
def _score(model, tokens, lengths, temperature):
  hidden = model.hidden(tokens, lengths=lengths)[:, :-1]
  return token_statistics(
    hidden,
    model.head(),
    tokens[:, 1:],
    temperature=temperature,
    valid_vocab=model.config.valid_vocab,
  ).logprobs


def score(model, tokens, lengths, temperature=1.0) -> jax.Array:
  """Returns f32[B, T-1] nats: log p(tokens[:, t+1] | tokens[:, :t+1]); 0 from lengths on.

  Args:
    model: a Decoder.
    tokens: i32[B, T], right-padded.
    lengths: i32[B].
    temperature: logits are divided by it, as the sampler does; 0 (greedy) counts as 1.

  Raises:
    ValueError: shapes that do not fit, lengths outside 1..T, or ids outside the vocabulary.
  """
  tokens, lengths = np.asarray(tokens, np.int32), np.asarray(lengths, np.int32)
  if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
    raise ValueError(f'score: tokens {tokens.shape} and lengths {lengths.shape}, need [B, T], [B]')
  if lengths.min() < 1 or lengths.max() > tokens.shape[1]:
    raise ValueError(f'score: lengths {lengths.min()}..{lengths.max()}, need 1..{tokens.shape[1]}')
  if tokens.min() < 0 or tokens.max() >= model.config.vocab_size:
    raise ValueError(
      f'score: ids {tokens.min()}..{tokens.max()}, need 0..{model.config.vocab_size - 1}'
    )
  logprobs = _score(model, tokens, lengths, jnp.float32(temperature or 1.0))
  return jnp.where(jnp.arange(1, tokens.shape[1]) < lengths[:, None], logprobs, 0.0)
