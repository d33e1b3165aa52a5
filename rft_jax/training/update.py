"""The update: gradients accumulated over microbatches, divided once, clipped, applied.

A loss sees the log-probs of a microbatch and returns terms: sums with their denominators. As
denominators depend on masks alone, those of the whole step are known before the first gradient,
and the gradients of `sum(coefficient * total / weight of the whole step)` are simply added. How a
batch is cut into microbatches, padded, ordered or spread over devices changes nothing but rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rft_jax import sharding
from rft_jax.data import batching, packing
from rft_jax.data.batching import ROW_FIELDS
from rft_jax.data.packing import Microbatch
from rft_jax.models import REMAT
from rft_jax.objectives.logprobs import TokenStatistics, token_statistics
from rft_jax.objectives.masked import Maximum, Term, Weighted, added, means, over_tokens
from rft_jax.objectives.off_policy import mismatch_figures
from rft_jax.types import Batch, TrainState


@dataclasses.dataclass(slots=True, kw_only=True)
class UpdateConfig:
  """How a step's batch becomes parameter updates."""

  updates_per_batch: int = 1  # optimizer steps per rollout; from 2 on, old log-probs are computed
  # Positions at once in memory, prompts (once a group) and completions. 0: chosen; 2048 on a CPU,
  # whose caches want little at a time, 16384 elsewhere.
  microbatch_tokens: int = 0
  # What the backward pass computes again instead of keeping it: 'none', 'dots' (all but the
  # projections: seldom slower, a third of the memory), 'full' (each layer: least memory).
  remat: str = 'dots'

  def validate(self) -> list[str]:
    checks = (
      (self.updates_per_batch >= 1, f'updates_per_batch={self.updates_per_batch}, need >= 1'),
      (
        self.microbatch_tokens >= 0,
        f'microbatch_tokens={self.microbatch_tokens}, need >= 0 (0: chosen)',
      ),
      (self.remat in REMAT, f'remat={self.remat!r}, need one of {tuple(REMAT)}'),
    )
    return [problem for good, problem in checks if not good]


Loss = Callable[[TokenStatistics, Batch], tuple[dict[str, Term], dict[str, Weighted | Maximum]]]


class TokenScores(NamedTuple):
  """What a model says of the completions of a batch. Host arrays, 0 on padding."""

  logprobs: np.ndarray  # f32[B, T] nats
  entropy: np.ndarray  # f32[B, T] nats, of the distribution each token was drawn from


def completion_statistics(
  model, piece: Microbatch, *, temperature, critic=None, remat='none'
) -> TokenStatistics:
  """Returns log-prob, entropy and rank of every completion token [B, T], prompts computed once.

  With a critic, its values too.
  """
  batch = piece.batch
  inputs = batch.prompts, batch.prompt_lengths, piece.packed, piece.begins
  hidden = model.completion_hidden(*inputs, remat=remat)
  packed = token_statistics(
    hidden,
    model.head(),
    piece.packed,
    temperature=temperature,
    valid_vocab=model.config.valid_vocab,
  )
  if critic is not None:
    packed = packed._replace(values=critic(critic.hidden(hidden, *inputs, remat=remat)))
  unpack = lambda x: jnp.take_along_axis(x.reshape(len(piece.places), -1), piece.places, axis=1)
  return jax.tree.map(lambda x: unpack(x).reshape(batch.completions.shape), packed)


@jax.jit
def _scored(model, piece, temperature):
  statistics = completion_statistics(model, piece, temperature=temperature)
  return TokenScores(statistics.logprobs, statistics.entropy)


def score_batch(model, batch: Batch, config: UpdateConfig, *, temperature, mesh) -> TokenScores:
  """Returns the log-probs of the completions under model, and its entropies beside them."""
  pieces = _pieces(batch, config, mesh)
  parts = [
    _scored(model, _put(_inputs_only(piece), mesh), jnp.float32(temperature)) for piece, _ in pieces
  ]
  return TokenScores(*(_whole(column, pieces, batch) for column in zip(*jax.device_get(parts))))


@jax.jit
def _values(models, piece):
  return completion_statistics(
    models['policy'], piece, temperature=1.0, critic=models['critic']
  ).values


def value_batch(policy, critic, batch: Batch, config: UpdateConfig, *, mesh) -> np.ndarray:
  """Returns the critic's values f32[B, T] of the completions, 0 on padding.

  The value at a token is that of the state before it is read.
  """
  models = {'policy': policy if critic.decoder is None else critic.decoder, 'critic': critic}
  pieces = _pieces(batch, config, mesh)
  parts = [_values(models, _put(_inputs_only(piece), mesh)) for piece, _ in pieces]
  return _whole(jax.device_get(parts), pieces, batch)


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


def make_update(
  loss: Loss,
  tx: dict[str, optax.GradientTransformation],
  *,
  config: UpdateConfig,
  temperature: float,
  mesh,
  schedule=None,
  skip_zero_advantages=False,
  answers=True,
):
  """Returns update(state, batch, trains=('policy',)) -> (state, metrics): one optimizer step.

  What is trained of the state given is donated: its buffers become the new state's. A step whose
  gradient is not finite changes nothing and is counted in 'skipped_nonfinite'.

  Args:
    loss: see Term; called while traced.
    tx: 'policy' and, where there is one, 'critic' -> its optax chain, global-norm clip included;
      state.optimizer has the same keys.
    temperature: what the sampler divided the logits by.
    skip_zero_advantages: leave out groups of which every advantage is 0, for losses in which they
      have no gradient. Their tokens stay in the denominators; metrics are then of the others.
    answers: whether the policy is a language model; if not, its entropy is not worked out.
    schedule: of the same keys, optimizer step -> learning rate, for the metrics.
  """
  temperature = jnp.float32(temperature)

  def objective(trained, frozen, piece, denominators):
    batch, models = piece.batch, trained | frozen
    statistics = completion_statistics(
      models['policy'], piece, temperature=temperature, critic=models['critic'], remat=config.remat
    )
    terms, metrics = loss(statistics, batch)
    value = sum(
      term.coefficient * term.sum.total / jnp.maximum(denominators[name], 1e-9)
      for name, term in terms.items()
    )
    sums = {f'loss/{name}': term.sum for name, term in terms.items()} | metrics
    if answers:
      sums['entropy'] = over_tokens(statistics.entropy, batch.loss_mask)
    return value, (value, sums)

  @jax.jit
  def weights(batch):
    zeros = jnp.zeros(batch.completions.shape, jnp.float32)
    terms, _ = loss(TokenStatistics(zeros, zeros, zeros > 0, zeros), batch)
    return {name: term.sum.weight for name, term in terms.items()}

  @functools.partial(jax.jit, donate_argnums=(2,))
  def accumulate(trained, frozen, gradients, piece, denominators):
    new, aux = jax.grad(objective, has_aux=True)(trained, frozen, piece, denominators)
    return _like(jax.tree.map(jnp.add, gradients, new), mesh), aux

  @jax.jit
  def alone(trained, frozen, piece, denominators):  # without an accumulator's room and pass
    gradients, aux = jax.grad(objective, has_aux=True)(trained, frozen, piece, denominators)
    return _like(gradients, mesh), aux

  @jax.jit
  def zeros(trained):
    return _like(jax.tree.map(jnp.zeros_like, trained), mesh)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def apply(trained, optimizer, gradients):
    norms = {name: optax.tree.norm(of_one) for name, of_one in gradients.items()}
    finite = jnp.isfinite(jnp.stack(list(norms.values()))).all()
    new, new_optimizer = {}, {}
    for name, model in trained.items():
      updates, new_optimizer[name] = tx[name].update(gradients[name], optimizer[name], model)
      new[name] = optax.apply_updates(model, updates)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    trained, optimizer = keep((new, new_optimizer), (trained, optimizer))
    return (
      _like(trained, mesh),
      _like(optimizer, mesh),
      {'skipped_nonfinite': 1.0 - finite}
      | {f'{_PREFIX[name]}grad_norm': norm for name, norm in norms.items()},
    )

  def update(state: TrainState, batch: Batch, trains: tuple[str, ...] = ('policy',)):
    models = {'policy': state.policy, 'critic': state.critic}
    trained, frozen = (
      {name: model for name, model in models.items() if (name in trains) == wanted}
      for wanted in (True, False)
    )
    learnt, idle = _split_idle(batch) if skip_zero_advantages else (batch, None)
    pieces = _pieces(learnt, config, mesh)
    placed = [_put(piece, mesh) for piece, _ in pieces]
    counted = list(placed)
    if idle is not None:
      counted += [_put(piece, mesh) for piece, _ in _pieces(idle, config, mesh)]
    denominators = added(weights(piece.batch) for piece in counted)
    if len(placed) == 1:
      gradients, aux = alone(trained, frozen, placed[0], denominators)
      outputs = [aux]
    else:
      gradients, outputs = zeros(trained), []
      for piece in placed:
        gradients, aux = accumulate(trained, frozen, gradients, piece, denominators)
        outputs.append(aux)
    optimizer = {name: state.optimizer[name] for name in trained}
    rate = {
      f'{_PREFIX[name]}learning_rate': schedule[name](_count(optimizer[name]))
      for name in (trained if schedule else ())
    }
    trained, optimizer, applied = apply(trained, optimizer, gradients)
    values, sums = zip(*outputs)
    metrics = means(added(sums)) | {'loss': sum(values)} | applied | rate
    metrics = mismatch_figures(
      {name: float(value) for name, value in jax.device_get(metrics).items()}
    )
    metrics['token_efficiency'] = packing.token_efficiency(learnt, pieces)
    return state._replace(**trained, optimizer=state.optimizer | optimizer), metrics

  return update


_PREFIX = {'policy': '', 'critic': 'critic/'}  # of the metrics of each model


def _whole(parts, pieces, batch):
  """Returns the arrays of the pieces as one f32[B, T], 0 on padding."""
  inside = np.arange(batch.completions.shape[1]) < batch.completion_lengths[:, None]
  return packing.scatter(parts, pieces, inside.shape) * inside


def _split_idle(batch):
  """Returns (the groups that have an advantage, the others or None); all of them if none has."""
  groups = np.arange(len(batch.prompt_lengths))
  moved = np.bincount(batch.group, np.abs(batch.advantages).sum(1), len(groups)) != 0
  if moved.all() or not moved.any():
    return batch, None
  return batching.select(batch, groups[moved]), batching.select(batch, groups[~moved])


def _count(optimizer):
  """Returns how many updates the optimizer has made, read from its own counter."""
  counts = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer)
    if sharding.name_of(path).endswith('count')
  ]
  return counts[0] if counts else jnp.int32(0)


def _like(tree, mesh):
  """Holds every leaf on the shards the rules give it; without this XLA may choose others."""
  return jax.lax.with_sharding_constraint(tree, sharding.shardings_for(tree, mesh))


def _pieces(batch, config, mesh):
  chosen = 2048 if jax.default_backend() == 'cpu' else 16384
  return packing.plan(
    batch, tokens=config.microbatch_tokens or chosen, shards=sharding.batch_shards(mesh)
  )


def _put(piece, mesh):
  return jax.device_put(piece, sharding.batch_sharding(mesh))


def _inputs_only(piece):
  """Drops what scoring does not read, so that its program has one signature."""
  return piece._replace(batch=piece.batch._replace(**dict.fromkeys(ROW_FIELDS)))
