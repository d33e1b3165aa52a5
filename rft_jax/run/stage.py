"""A stage of training made ready: its state, its algorithm with all it works with, its update."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from rft_jax import hf, sharding
from rft_jax.algorithms import ALGORITHMS, Algorithm, StageContext, reference_policy
from rft_jax.config import Span
from rft_jax.errors import as_input_error
from rft_jax.rollout import rollout, step_rewards
from rft_jax.run import startup
from rft_jax.training import optim
from rft_jax.training.scoring import score_batch, value_batch
from rft_jax.training.update import make_update
from rft_jax.types import TrainState


class StageRun(NamedTuple):
  """What the loop needs of the stage it is in."""

  span: Span
  name: str  # of the algorithm
  algorithm: Algorithm
  update: Any  # (state, batch, names of the models to train) -> (state, metrics)


def start(run, span, state: TrainState, *, fresh: bool) -> tuple[StageRun, TrainState]:
  """Returns a stage made ready to train, and its state.

  Args:
    run: the RunContext.
    fresh: the state has no optimizer of this stage yet.
  """
  stage = run.config.stages[span.number]
  if fresh:
    state = startup.init_stage_state(run.config, stage, state, run.components.mesh)
  algorithm = _algorithm(run, span, state)
  return StageRun(span, stage.algorithm, algorithm, _update(run, span, algorithm)), state


def _update(run, span, algorithm):
  """Returns the jitted update of a stage, its schedules as long as the stage."""
  config = run.config
  optimizers = startup.stage_optimizers(config, config.stages[span.number])
  update_steps = {
    name: algorithm.updates_per_batch
    * sum(name in algorithm.trained_models(step) for step in range(span.first, span.end))
    for name in optimizers
  }
  return make_update(
    algorithm.loss,
    {name: optim.make(optimizers[name], steps) for name, steps in update_steps.items()},
    config=config.update,
    mesh=run.components.mesh,
    temperature=algorithm.temperature,
    skip_zero_advantages=algorithm.skip_zero_advantages,
    is_language_model=algorithm.is_language_model,
    schedule={
      name: optim.make_schedule(optimizers[name], steps) for name, steps in update_steps.items()
    },
  )


def _algorithm(run, span, state) -> Algorithm:
  """Returns the algorithm of a stage, and saves the policy at its start as its reference."""
  config, components = run.config, run.components
  module = ALGORITHMS[config.stages[span.number].algorithm]
  groups = config.groups()
  if state.step == span.first and (span.first or module.REQUIREMENTS.reference(groups)):
    run.checkpoints.save_reference(span.number, state.policy)
  greedy = dataclasses.replace(
    config.rollout, samples_per_prompt=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0
  )
  context = StageContext(
    groups=groups,
    seed=config.seed,
    first_step=span.first,
    examples=components.train[span.number],
    validation=components.validation,
    reference=reference_policy.make(
      run.checkpoints,
      span.number,
      span.first,
      sharding.abstract(state.policy, components.mesh),
      every=config.objective.reference_every,
    ),
    rollout=_rollout(run, config.rollout),
    greedy=_rollout(run, greedy),
    score=lambda model, batch, temperature=config.rollout.temperature: score_batch(
      model, batch, config.update, temperature=jnp.float32(temperature), mesh=components.mesh
    ),
    values=lambda state, batch: value_batch(
      state.policy, state.critic, batch, config.update, mesh=components.mesh
    ),
    record=run.record_samples,
    workdir=run.workdir,
    credit=_credit(run),
    load=lambda source: as_input_error(
      hf.load,
      source,
      dtype=config.model.dtype,
      attention=config.model.attention,
      mesh=components.mesh,
    )[0],
  )
  return as_input_error(module.make, context)


def _rollout(run, settings):
  return rollout.make(
    run.components.chat,
    run.components.grader,
    settings,
    seed=run.config.seed,
    mesh=run.components.mesh,
    response_format=run.components.response_format,
  )


def _credit(run):
  """Returns the credit assignment per reasoning step; None where credit goes to whole samples."""
  config, components = run.config, run.components
  if config.credit.level != 'reasoning_step':
    return None
  return step_rewards.make(
    components.chat,
    config.credit,
    config.rollout,
    grader=components.grader,
    step_grader=components.step_grader,
    seed=config.seed,
    mesh=components.mesh,
    response_format=components.response_format,
  )
