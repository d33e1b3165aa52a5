"""The update: gradients accumulated over microbatches, divided once, clipped, applied.

A loss gets the log-probs of a microbatch and returns terms: sums with their denominators. As
denominators depend on masks alone, those of the whole step are known before the first gradient,
and the gradients of `sum(coefficient * total / weight of the whole step)` are added. How a batch is
split into microbatches, padded, ordered or sharded changes nothing but rounding.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rft_jax import sharding
from rft_jax.data import batching, packing
from rft_jax.models import REMAT
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.objectives.masked import Maximum, Term, Weighted, add_sums, means, over_tokens
from rft_jax.objectives.off_policy import finish_mismatch_metrics
from rft_jax.training import microbatches
from rft_jax.training.scoring import completion_statistics
from rft_jax.types import Batch, TrainState


@dataclasses.dataclass(slots=True, kw_only=True)
class UpdateConfig:
  """How the batch of a step becomes parameter updates."""

  updates_per_batch: int = 1  # optimizer steps per rollout; from 2 on, old log-probs are computed
  # Tokens of a microbatch: prompts (once for each group) and completions. 0: chosen, 2048 on a CPU
  # (what fits into its caches), 16384 elsewhere.
  microbatch_tokens: int = 0
  # Gradient checkpointing, what the backward pass computes again: 'none', 'dots' (all but the
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


def make_update(
  loss: Loss,
  tx: dict[str, optax.GradientTransformation],
  *,
  config: UpdateConfig,
  temperature: float,
  mesh,
  schedule=None,
  skip_zero_advantages=False,
  is_language_model=True,
):
  """Returns update(state, batch, trained=('policy',)) -> (state, metrics): one optimizer step.

  The buffers of the trained models are donated to the new state. A step whose gradient is not
  finite changes nothing and is counted in 'skipped_nonfinite'.

  Args:
    loss: see Term; called while traced.
    tx: 'policy' and, where there is one, 'critic' -> its optax chain with the global-norm clip;
      state.optimizer has the same keys.
    temperature: the logits are divided by it, as in the rollout.
    schedule: of the same keys, optimizer step -> learning rate, for the metrics.
    skip_zero_advantages: do not compute groups whose advantages are all 0, for losses in which they
      have no gradient. Their tokens stay in the denominators; metrics are of the other groups.
    is_language_model: False leaves out the entropy.
  """
  gradient = _gradient(loss, config, jnp.float32(temperature), is_language_model)
  accumulated, apply = _accumulated(gradient, mesh), _apply_program(tx, mesh)
  weights = _weights_program(loss)

  def update(state: TrainState, batch: Batch, trained: tuple[str, ...] = ('policy',)):
    models = {'policy': state.policy, 'critic': state.critic}
    learners = {name: model for name, model in models.items() if name in trained}
    frozen = {name: model for name, model in models.items() if name not in trained}
    computed, skipped = _without_zero_advantages(batch) if skip_zero_advantages else (batch, None)
    plan = microbatches.plan(computed, config, mesh)
    placed = [microbatches.put(microbatch, mesh) for microbatch, _ in plan]
    counted = list(placed)
    if skipped is not None:
      skipped_plan = microbatches.plan(skipped, config, mesh)
      counted += [microbatches.put(microbatch, mesh) for microbatch, _ in skipped_plan]
    denominators = add_sums(weights(microbatch.batch) for microbatch in counted)
    gradients, outputs = accumulated(learners, frozen, placed, denominators)
    optimizer = {name: state.optimizer[name] for name in learners}
    rates = {
      f'{_PREFIX[name]}learning_rate': schedule[name](_updates_made(optimizer[name]))
      for name in (learners if schedule else ())
    }
    learners, optimizer, applied = apply(learners, optimizer, gradients)
    values, sums = zip(*outputs)
    metrics = means(add_sums(sums)) | {'loss': sum(values)} | applied | rates
    metrics = finish_mismatch_metrics(
      {name: float(value) for name, value in jax.device_get(metrics).items()}
    )
    metrics['token_efficiency'] = packing.token_efficiency(computed, plan)
    return state._replace(**learners, optimizer=state.optimizer | optimizer), metrics

  return update


_PREFIX = {'policy': '', 'critic': 'critic/'}  # of the metrics of each model


# --- programs -------------------------------------------------------------------------------------


def _weights_program(loss):
  """Returns the jitted batch -> {term: its weight}: denominators depend on masks alone."""

  @jax.jit
  def weights(batch):
    zeros = jnp.zeros(batch.completions.shape, jnp.float32)
    terms, _ = loss(TokenStatistics(zeros, zeros, zeros > 0, zeros), batch)
    return {name: term.sum.weight for name, term in terms.items()}

  return weights


def _gradient(loss, config, temperature, is_language_model):
  """Returns (trained, frozen, microbatch, denominators) -> (gradients, (value, metric sums))."""

  def objective(trained, frozen, microbatch, denominators):
    batch, models = microbatch.batch, trained | frozen
    statistics = completion_statistics(
      models['policy'],
      microbatch,
      temperature=temperature,
      critic=models['critic'],
      remat=config.remat,
    )
    terms, metrics = loss(statistics, batch)
    value = sum(
      term.coefficient * term.sum.total / jnp.maximum(denominators[name], 1e-9)
      for name, term in terms.items()
    )
    sums = {f'loss/{name}': term.sum for name, term in terms.items()} | metrics
    if is_language_model:
      sums['entropy'] = over_tokens(statistics.entropy, batch.loss_mask)
    return value, (value, sums)

  return jax.grad(objective, has_aux=True)


def _accumulated(gradient, mesh):
  """Returns (trained, frozen, microbatches, denominators) -> (gradients, output of each)."""

  @functools.partial(jax.jit, donate_argnums=(2,))
  def accumulate(trained, frozen, gradients, microbatch, denominators):
    new, aux = gradient(trained, frozen, microbatch, denominators)
    return _sharded(jax.tree.map(jnp.add, gradients, new), mesh), aux

  @jax.jit
  def single(trained, frozen, microbatch, denominators):  # saves the memory of an accumulator
    gradients, aux = gradient(trained, frozen, microbatch, denominators)
    return _sharded(gradients, mesh), aux

  @jax.jit
  def zeros(trained):
    return _sharded(jax.tree.map(jnp.zeros_like, trained), mesh)

  def accumulated(trained, frozen, placed, denominators):
    if len(placed) == 1:
      gradients, output = single(trained, frozen, placed[0], denominators)
      return gradients, [output]
    gradients, outputs = zeros(trained), []
    for microbatch in placed:
      gradients, output = accumulate(trained, frozen, gradients, microbatch, denominators)
      outputs.append(output)
    return gradients, outputs

  return accumulated


def _apply_program(tx, mesh):
  """Returns the jitted (trained, optimizer, gradients) -> (trained, optimizer, metrics)."""

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def apply(trained, optimizer, gradients):
    norms = {name: optax.tree.norm(gradient) for name, gradient in gradients.items()}
    finite = jnp.isfinite(jnp.stack(list(norms.values()))).all()
    new, new_optimizer = {}, {}
    for name, model in trained.items():
      updates, new_optimizer[name] = tx[name].update(gradients[name], optimizer[name], model)
      new[name] = optax.apply_updates(model, updates)
    if_finite = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    trained, optimizer = if_finite((new, new_optimizer), (trained, optimizer))
    metrics = {f'{_PREFIX[name]}grad_norm': norm for name, norm in norms.items()}
    metrics = {'skipped_nonfinite': 1.0 - finite} | metrics
    return _sharded(trained, mesh), _sharded(optimizer, mesh), metrics

  return apply


def _sharded(tree, mesh):
  """Constrains every leaf to the sharding of the rules; without this XLA may choose another."""
  return jax.lax.with_sharding_constraint(tree, sharding.shardings_for(tree, mesh))


# --- on the host ----------------------------------------------------------------------------------


def _without_zero_advantages(batch):
  """Returns (the groups with an advantage, the others or None); all of them if none has any."""
  groups = np.arange(len(batch.prompt_lengths))
  nonzero = np.bincount(batch.group, np.abs(batch.advantages).sum(1), len(groups)) != 0
  if nonzero.all() or not nonzero.any():
    return batch, None
  return batching.select(batch, groups[nonzero]), batching.select(batch, groups[~nonzero])


def _updates_made(optimizer):
  """Returns the number of updates that the optimizer has made, read from its own counter."""
  counts = [
    leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer)
    if sharding.name_of(path).endswith('count')
  ]
  return counts[0] if counts else jnp.int32(0)
