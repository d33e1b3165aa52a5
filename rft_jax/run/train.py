"""The training loop: collect, update, record, evaluate, save, stage after stage."""

import contextlib
import pathlib
import sys
import time

import numpy as np

from rft_jax.algorithms import Algorithm
from rft_jax.config import Config
from rft_jax.data import batching
from rft_jax.errors import as_input_error
from rft_jax.records import manifest_check
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build, compilation, recording, stage, startup
from rft_jax.run.evaluate import make as make_evaluate
from rft_jax.run.results import finish, last_evaluation
from rft_jax.types import TrainState


def train(
  config: Config, workdir, *, stop_at_step: int | None = None, overrides=(), quiet: bool = False
) -> dict[str, dict[str, float]]:
  """Trains, or continues from the newest checkpoint of the workdir.

  Args:
    config: is validated first.
    workdir: created if it does not exist; the README lists what is in it afterwards.
    stop_at_step: save and return after this step; calling again continues bit for bit.
    overrides: those of the command line, for the manifest.
    quiet: print nothing.

  Returns:
    The last held-out evaluation: {metric: {'mean', 'low', 'high'}}.

  Raises:
    InputError: config, data, grader or model are not fit, or the workdir belongs to another run.
    GraderFaults: the grader failed too often; the run can be continued once that is corrected.
  """
  began, workdir = time.monotonic(), pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    # --- build: everything given is read and checked, nothing is written -------------------------
    components = stack.enter_context(build.components(config, workdir=workdir))
    checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
    fresh_run = checkpoints.latest() is None
    new_manifest = startup.build_manifest(config, components, overrides)
    warnings = components.warnings
    if not fresh_run:
      warnings = as_input_error(manifest_check.check_continue, workdir, new_manifest) + warnings
    evaluate = make_evaluate(components, config)

    # --- restore, or load the base model ---------------------------------------------------------
    with compilation.compile_while_loading(config, components, evaluate, fresh=fresh_run):
      state, optimizer_stage, tokens = startup.restore_or_init(config, components, checkpoints)
    startup.write_manifest(workdir, new_manifest)
    if not quiet:
      _print(*(f'warning: {warning}' for warning in warnings))
      _print(*startup.run_summary(config, components, state))
    run = stack.enter_context(
      recording.open_records(
        config, workdir, components, checkpoints, evaluate, state, quiet=quiet, began=began
      )
    )

    # --- loop ------------------------------------------------------------------------------------
    last_step = min(config.total_steps(), stop_at_step or config.total_steps())
    for span in config.spans():
      if span.first >= last_step or state.step >= span.end:
        continue
      current, state = stage.start(run, span, state, fresh=optimizer_stage != span.number)
      if state.step == 0:
        recording.evaluate(run, current, state)
      while state.step < min(span.end, last_step):
        state, values = train_step(current.algorithm, current.update, state)
        tokens += int(values['step_tokens'])
        recording.record_step(run, current, state, values, tokens)
        held_out = recording.HeldOut()
        if state.step == span.end or _due(state.step, config.evaluate.every):
          held_out = recording.evaluate(run, current, state)
        recording.record_events(run, state.step, values, held_out)
        save = state.step == last_step or _due(state.step, config.checkpoints.every)
        if save or held_out.evaluation:
          recording.save_checkpoint(run, current, state, held_out, tokens)

    # --- finish ----------------------------------------------------------------------------------
    if state.step == config.total_steps():
      run.events.write_message('The run has completed all its steps')
  if state.step == config.total_steps():
    finish(config, workdir, (lambda *_: None) if quiet else _print)
  return last_evaluation(workdir)


def train_step(algorithm: Algorithm, update, state: TrainState) -> tuple[TrainState, dict]:
  """Collects a batch and updates on its parts; returns the next state and the metrics."""
  began, compiled = time.monotonic(), compilation.count()
  batch, values, algorithm_state = algorithm.collect(state, state.step)
  if algorithm_state is not None:
    state = state._replace(algorithm_state=algorithm_state)
  collected = time.monotonic()
  updates: list[dict] = []  # the metrics of each
  if batch is not None:
    for part in batching.split(batch, min(algorithm.updates_per_batch, len(batch.prompts))):
      state, metrics = update(state, part, algorithm.trained_models(state.step))
      if batch.sampler_logprobs is not None:
        metrics['sampling/staleness'] = len(updates)  # updates since the samples were drawn
      updates.append(metrics)
  for name in updates[0] if updates else ():
    reduce = np.max if name.endswith('/max') else np.mean
    values[name] = float(reduce([metrics[name] for metrics in updates]))
  values['seconds/collect'] = collected - began
  values['seconds/update'] = time.monotonic() - collected
  values['compilations'] = compilation.count() - compiled
  return state._replace(step=state.step + 1), values


def _due(step, every):
  return every > 0 and step % every == 0


def _print(*lines):
  for line in lines:
    print(line, file=sys.stderr, flush=True)
