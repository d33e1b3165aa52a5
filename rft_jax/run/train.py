"""THE loop: collect -> update -> report -> evaluate -> save, stage after stage."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rft_jax import graders, hf, sharding
from rft_jax.algorithms import ALGORITHMS, Algorithm, StageContext, noisy_grades
from rft_jax.config import Config
from rft_jax.data import batching
from rft_jax.errors import as_input_error
from rft_jax.records import episodes, excluded_rows, manifest
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.records.events import Events, GradedSamples
from rft_jax.records.metrics import Metrics
from rft_jax.records.progress import Progress
from rft_jax.rollout import credit, rollout
from rft_jax.run import build, compilation, startup
from rft_jax.run.evaluate import Evaluation, intervals
from rft_jax.run.evaluate import make as make_evaluate
from rft_jax.run.results import finish, last_evaluation
from rft_jax.training import optim
from rft_jax.training.update import make_update, score_batch, value_batch
from rft_jax.types import TrainState


class RunContext(NamedTuple):
  """What a run writes to and reads from while it trains."""

  config: Config
  workdir: pathlib.Path
  components: build.RunComponents
  checkpoints: Checkpoints
  metrics: Metrics
  events: Events
  progress: Progress
  evaluate: Any  # policy -> Evaluation


def train(
  config: Config, workdir, *, stop_at_step: int | None = None, overrides=(), quiet: bool = False
) -> dict[str, dict[str, float]]:
  """Trains, or continues where the workdir's newest checkpoint stands.

  Args:
    config: is validated first.
    workdir: made if it is not there; see the README for what lies in it afterwards.
    stop_at_step: save and return after this step; calling again continues bit for bit.
    overrides: the command line's, for the manifest.
    quiet: no progress line.

  Returns:
    The last held-out evaluation: {metric: {'mean', 'low', 'high'}}.

  Raises:
    build.Refused: something given is not fit, or the workdir belongs to another run.
    GraderFaults: the grader failed too often; the run can be continued once mended.
  """
  began, workdir = time.monotonic(), pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    components = stack.enter_context(build.components(config, workdir=workdir))
    tell = (lambda *_: None) if quiet else _tell
    checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
    about = startup.about(config, components, overrides)
    warnings = []
    if checkpoints.latest() is not None:
      warnings = as_input_error(manifest.check_continue, workdir, about)
    evaluate = make_evaluate(
      components.chat, components.grader, config, mesh=components.mesh, response_format=components.response_format
    )
    with startup.compiling(config, components, evaluate, fresh=checkpoints.latest() is None):
      state, stage, tokens = startup.state(config, components, checkpoints)
    # Nothing is written before everything given has been read.
    startup.write_manifest(workdir, about)
    for warning in warnings + components.warnings:
      tell(f'warning: {warning}')
    for line in startup.run_summary(config, components, state):
      tell(line)
    episodes.truncate(workdir, state.step + 1)
    episodes.truncate(workdir / 'evaluations', state.step + 1)
    metrics = stack.enter_context(
      Metrics(
        workdir, resume_step=state.step + 1, resume_evaluation=state.step + 1 if state.step else 0
      )
    )
    events = stack.enter_context(Events(workdir, resume_step=state.step + 1))
    events.message(
      f'The run continues from step {state.step}' if state.step else 'The run has started'
    )
    progress = stack.enter_context(Progress(config.total_steps(), quiet, began=began))
    run = RunContext(
      config,
      workdir,
      components,
      checkpoints,
      metrics,
      events,
      progress,
      lambda policy: evaluate(policy, components.validation),
    )
    last = min(config.total_steps(), stop_at_step or config.total_steps())
    for span in config.spans():
      if span.first < last and state.step < span.end:
        state, tokens = _run_stage(run, span, state, tokens, last, fresh=stage != span.number)
        stage = span.number
    if state.step == config.total_steps():
      events.message('The run has completed all its steps')
  if state.step == config.total_steps():
    finish(config, workdir, tell)
  return last_evaluation(workdir)


# ------------------------------------------------------------------ one stage, one step


def _run_stage(run, span, state, tokens, last, *, fresh):
  """Trains one stage from where state stands; returns the state and the tokens seen so far."""
  config, mesh = run.config, run.components.mesh
  stage = config.stages[span.number]
  kept = {}  # what the newest step has sampled

  def keep(step, sampled):
    episodes.write(run.workdir, step + 1, sampled.episodes())
    kept[step + 1] = GradedSamples(sampled.episodes(), sampled.counts)

  if fresh:
    state = _begin(config, stage, state, mesh)
  algorithm = _algorithm(run, span, state, keep)
  if state.step == 0:
    _evaluate(run, state, algorithm)
  optimizers = startup.optimizers(config, stage)
  update_steps = {
    name: algorithm.updates_per_batch
    * sum(name in algorithm.trains(step) for step in range(span.first, span.end))
    for name in optimizers
  }
  update = make_update(
    algorithm.loss,
    {name: optim.make(chosen, update_steps[name]) for name, chosen in optimizers.items()},
    config=config.update,
    mesh=mesh,
    temperature=algorithm.temperature,
    skip_zero_advantages=algorithm.zero_advantages_teach_nothing,
    answers=algorithm.answers,
    schedule={
      name: optim.make_schedule(chosen, update_steps[name]) for name, chosen in optimizers.items()
    },
  )
  while state.step < min(span.end, last):
    state, values = _step(algorithm, update, state)
    tokens += int(values['step_tokens'])
    run.metrics.write(state.step, values | {'num_tokens': tokens, 'stage': span.number})
    excluded_rows.write(run.workdir, noisy_grades.excluded_rows(state.algorithm_state))
    run.progress.update(state.step, stage=stage.algorithm, values=values)
    held_out, seconds = None, 0.0
    if state.step == span.end or _due(state.step, config.evaluate.every):
      held_out, seconds = _evaluate(run, state, algorithm)
    _tell_events(run, state.step, values, kept.pop(state.step, None), held_out, seconds)
    if held_out or state.step == last or _due(state.step, config.checkpoints.every):
      # A reward model is not compared with the policies that led to it.
      ranked = state.step > config.spans()[-1].first or not config.ends_in_reward_model()
      run.checkpoints.save(
        state.step,
        state,
        stage=span.number,
        metric=_measure(held_out) if ranked else None,
        position={'num_tokens': tokens},
      )
      run.events.message(f'Checkpoint created at step {state.step}', step=state.step)
  return state, tokens


def _step(algorithm: Algorithm, update, state: TrainState):
  """One step: make the batch, then the optimizer steps on its parts."""
  began, compiled = time.monotonic(), compilation.so_far()
  batch, values, algorithm_state = algorithm.collect(state, state.step)
  state = state._replace(algorithm_state=state.algorithm_state if algorithm_state is None else algorithm_state)
  collected = time.monotonic()
  learned = []
  if batch is not None:
    for part in batching.split(batch, min(algorithm.updates_per_batch, len(batch.prompts))):
      state, one = update(state, part, algorithm.trains(state.step))
      if batch.sampler_logprobs is not None:  # how many updates ago its samples were drawn
        one['sampling/staleness'] = len(learned)
      learned.append(one)
  if learned:
    together = lambda name: np.max if name.endswith('/max') else np.mean
    values |= {name: float(together(name)([one[name] for one in learned])) for name in learned[0]}
  values['seconds/collect'] = collected - began
  values['seconds/update'] = time.monotonic() - collected
  values['compilations'] = compilation.so_far() - compiled
  return state._replace(step=state.step + 1), values


def _algorithm(run, span, state, keep) -> Algorithm:
  """Furnishes the algorithm of a stage, with the policy at its start as reference if it asks."""
  config, components = run.config, run.components
  module = ALGORITHMS[config.stages[span.number].algorithm]
  compared = module.REQUIREMENTS.reference(groups := startup.groups(config))
  if state.step == span.first and (span.first or compared):
    run.checkpoints.save_reference(span.number, state.policy)
  sampling = lambda settings: rollout.make(
    components.chat,
    components.grader,
    settings,
    seed=config.seed,
    mesh=components.mesh,
    response_format=components.response_format,
  )
  return as_input_error(
    module.make,
    StageContext(
      groups=groups,
      seed=config.seed,
      first_step=span.first,
      examples=components.train[span.number],
      validation=components.validation,
      reference=_reference(run, span, state),
      rollout=sampling(config.rollout),
      greedy=sampling(
        dataclasses.replace(
          config.rollout, samples_per_prompt=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0
        )
      ),
      score=lambda model, batch, temperature=config.rollout.temperature: score_batch(
        model, batch, config.update, temperature=jnp.float32(temperature), mesh=components.mesh
      ),
      values=lambda state, batch: value_batch(
        state.policy, state.critic, batch, config.update, mesh=components.mesh
      ),
      credit=credit.make(
        components.chat,
        config.credit,
        config.rollout,
        grader=components.grader,
        step_grader=components.step_grader,
        seed=config.seed,
        mesh=components.mesh,
        response_format=components.response_format,
      )
      if config.credit.level == 'reasoning_step'
      else None,
      load=lambda source: as_input_error(
        hf.load, source, dtype=config.model.dtype, attention=config.model.attention, mesh=components.mesh
      )[0],
      keep=keep,
      folder=run.workdir,
    ),
  )


def _reference(run, span, state):
  """Returns reference(state): the policy at the stage's start, or as config says a later one."""
  every = run.config.objective.reference_every
  like, held = sharding.abstract(state.policy, run.components.mesh), {}

  def reference(now=None):
    since = now.step - (now.step - span.first) % every if every and now else span.first
    later = since if since > span.first else None
    if later is not None and now.step == later:
      run.checkpoints.save_reference(span.number, now.policy, later)
    if since not in held:
      held.clear()
      held[since] = run.checkpoints.restore_reference(span.number, like, later)
    return held[since]

  return reference


def _begin(config, stage, state, mesh):
  """Returns opening.begin's state, what is new of it born on its shards."""
  new = sharding.place(
    lambda policy, critic: {
      name: getattr(startup.begin(config, stage, state._replace(policy=policy), critic), name)
      for name in ('optimizer', 'critic')
    },
    mesh,
    state.policy,
    startup.initial_critic(config, stage, mesh),
  )
  return state._replace(**new, algorithm_state={})


def _due(step, every):
  return every > 0 and step % every == 0


# ------------------------------------------------------------------ evaluation and what is left


def _evaluate(run, state, algorithm):
  """Evaluates the policy and puts it on record; returns (its Evaluation, the seconds it took)."""
  began = time.monotonic()
  result = (
    run.evaluate(state.policy)
    if algorithm.answers
    else Evaluation({}, len(run.components.validation), [], None)
  )
  if algorithm.held_out is not None:
    result = result._replace(values=result.values | intervals(algorithm.held_out(state)))
  if not result.values:  # no grader, and an algorithm that measures nothing itself
    return None, 0.0
  run.metrics.evaluation(state.step, 'validation', result.rows, result.values)
  if result.sampled is not None:
    episodes.write(
      run.workdir / 'evaluations',
      state.step,
      [
        episode._replace(policy_step=state.step)
        for episode in result.greedy + result.sampled.episodes()
      ],
    )
  run.progress.evaluated(_measure(result))
  return result, time.monotonic() - began


def _measure(held_out) -> float | None:
  """Returns that by which checkpoints are compared: the held-out grade, else pair accuracy."""
  values = held_out.values if held_out else {}
  found = values.get('grade') or values.get('preference/accuracy') or {}
  return found.get('mean')


def _tell_events(run, step, values, train, held_out, seconds):
  """Appends the metrics event of a step."""
  sampled = held_out and held_out.sampled
  valid = sampled and GradedSamples(sampled.episodes(), sampled.counts)
  grader = run.components.grader
  sampling, training = values['seconds/collect'], values['seconds/update']
  run.events.metrics(
    step,
    run.config.total_steps(),
    graders.listed(grader) if grader else (),
    train=train,
    valid=valid,
    loss=values.get('loss'),
    seconds={
      'eval': seconds,
      'sampling': sampling,
      'training': training,
      'full_iteration': seconds + sampling + training,
    },
  )


def _tell(line):
  print(line, file=sys.stderr, flush=True)
