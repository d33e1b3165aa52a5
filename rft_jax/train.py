"""THE loop: collect -> update -> report -> evaluate -> save, stage after stage."""
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import build, hf, models, optim, rollout, sharding
from rft_jax.algorithms import ALGORITHMS, Algorithm, Room
from rft_jax.config import Config
from rft_jax.data import packing, rows
from rft_jax.evaluate import make as make_evaluate
from rft_jax.models import attention
from rft_jax.records import compilations, ledger, manifest
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.records.metrics import Metrics
from rft_jax.records.progress import Progress
from rft_jax.results import finish, last_evaluation
from rft_jax.types import TrainState
from rft_jax.update import make_update, score_batch


class Desk(NamedTuple):
  """What a run writes to and reads from while it trains."""
  config: Config
  workdir: pathlib.Path
  rooms: build.Rooms
  checkpoints: Checkpoints
  metrics: Metrics
  progress: Progress
  evaluate: Any  # policy -> Evaluation


def train(config: Config, workdir, *, stop_at_step: int | None = None, overrides=(),
          quiet: bool = False) -> dict[str, dict[str, float]]:
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
    rollout.GraderFaults: the grader failed too often; the run can be continued once mended.
  """
  began, workdir = time.monotonic(), pathlib.Path(workdir)
  with contextlib.ExitStack() as stack:
    rooms = stack.enter_context(build.rooms(config))
    tell = (lambda *_: None) if quiet else _tell
    checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
    about = _about(config, rooms, overrides)
    warnings = []
    if checkpoints.latest() is not None:
      warnings = build.refusing(manifest.check_continue, workdir, about)
    evaluate = make_evaluate(rooms.chat, rooms.grader, config, mesh=rooms.mesh,
                             response_format=rooms.response_format)
    with _compiling(config, rooms, evaluate, fresh=checkpoints.latest() is None):
      state, stage, tokens = _state(config, rooms, checkpoints)
    _put_on_record(workdir, about)  # nothing is written before everything given has been read
    for line in [f'warning: {warning}' for warning in warnings + rooms.warnings] + _arithmetic(
        config, rooms, state):
      tell(line)
    ledger.truncate(workdir, state.step + 1)
    ledger.truncate(workdir / 'evaluations', state.step + 1)
    metrics = stack.enter_context(Metrics(workdir, resume_step=state.step + 1,
                                          resume_evaluation=state.step + 1 if state.step else 0))
    progress = stack.enter_context(Progress(config.total_steps(), quiet, began=began))
    desk = Desk(config, workdir, rooms, checkpoints, metrics, progress,
                lambda policy: evaluate(policy, rooms.validation))
    last = min(config.total_steps(), stop_at_step or config.total_steps())
    if state.step == 0:
      _evaluate(desk, state)
    for span in config.spans():
      if span.first < last and state.step < span.end:
        state, tokens = _run_stage(desk, span, state, tokens, last, fresh=stage != span.number)
        stage = span.number
  if state.step == config.total_steps():
    finish(config, workdir, tell)
  return last_evaluation(workdir)


# ------------------------------------------------------------------ one stage, one step


def _run_stage(desk, span, state, tokens, last, *, fresh):
  """Trains one stage from where state stands; returns the state and the tokens seen so far."""
  config, mesh = desk.config, desk.rooms.mesh
  stage = config.stages[span.number]
  algorithm = _algorithm(desk, span, state)
  steps = stage.steps * algorithm.updates_per_batch
  tx = optim.make(stage.optim, steps)
  if fresh:
    state = state._replace(optimizer=sharding.place(tx.init, mesh, state.policy))
  update = make_update(algorithm.loss, tx, config=config.update, mesh=mesh,
                       temperature=algorithm.temperature,
                       skip_zero_advantages=algorithm.zero_advantages_teach_nothing,
                       schedule=optim.make_schedule(stage.optim, steps))
  while state.step < min(span.end, last):
    state, values = _step(algorithm, update, state)
    tokens += int(values['step_tokens'])
    desk.metrics.write(state.step, values | {'num_tokens': tokens, 'stage': span.number})
    desk.progress.update(state.step, stage=stage.algorithm, values=values)
    grade = None
    if state.step == span.end or _due(state.step, config.evaluate.every):
      grade = _evaluate(desk, state)
    if grade is not None or state.step == last or _due(state.step, config.checkpoints.every):
      desk.checkpoints.save(state.step, state, stage=span.number, metric=grade,
                            position={'num_tokens': tokens})
  return state, tokens


def _step(algorithm: Algorithm, update, state: TrainState):
  """One step: make the batch, then the optimizer steps on its parts."""
  began, compiled = time.monotonic(), compilations.so_far()
  batch, values = algorithm.collect(state, state.step)
  collected = time.monotonic()
  learned = []
  if batch is not None:
    for part in packing.split(batch, min(algorithm.updates_per_batch, len(batch.prompts))):
      state, one = update(state, part)
      learned.append(one)
  if learned:
    values |= {name: float(np.mean([one[name] for one in learned])) for name in learned[0]}
  values['seconds/collect'] = collected - began
  values['seconds/update'] = time.monotonic() - collected
  values['compilations'] = compilations.so_far() - compiled
  return state._replace(step=state.step + 1), values


def _algorithm(desk, span, state) -> Algorithm:
  """Furnishes the algorithm of a stage, with the policy at its start as reference if it asks."""
  config, rooms = desk.config, desk.rooms
  module = ALGORITHMS[config.stages[span.number].algorithm]
  needs_reference = module.needs_reference(groups := _groups(config))
  if state.step == span.first and (span.first or needs_reference):
    desk.checkpoints.save_reference(span.number, state.policy)
  return module.make(Room(
      groups=groups, seed=config.seed, first_step=span.first,
      examples=rooms.train[span.number],
      reference=desk.checkpoints.restore_reference(
          span.number, sharding.abstract(state.policy, rooms.mesh)) if needs_reference else None,
      rollout=rollout.make(rooms.chat, rooms.grader, config.rollout, seed=config.seed,
                           mesh=rooms.mesh, response_format=rooms.response_format),
      score=lambda model, batch: score_batch(
          model, batch, config.update, temperature=jnp.float32(config.rollout.temperature),
          mesh=rooms.mesh),
      keep=lambda step, episodes: ledger.write(desk.workdir, step + 1, episodes)))


def _groups(config):
  """Returns the config's groups by name: what lies below config.py sees of it."""
  return {group.name: getattr(config, group.name) for group in dataclasses.fields(config)}


def _due(step, every):
  return every > 0 and step % every == 0


# ------------------------------------------------------------------ evaluation and what is left


def _evaluate(desk, state) -> float | None:
  """Evaluates the policy, puts it on record, and returns its held-out grade."""
  result = desk.evaluate(state.policy)
  desk.metrics.evaluation(state.step, 'validation', result.rows, result.values)
  episodes = result.greedy + [episode for group in result.sampled for episode in group]
  ledger.write(desk.workdir / 'evaluations', state.step,
               [episode._replace(policy_step=state.step) for episode in episodes])
  grade = result.values.get('grade', {}).get('mean')
  desk.progress.evaluated(grade)
  return grade


# ------------------------------------------------------------------ opening a run


def _about(config, built, overrides) -> dict:
  """Returns the manifest of this start."""
  base = build.refusing(hf.resolve, config.model.source)
  data = {'train': sorted({stage.data or config.data.train for stage in config.stages}),
          'validation': [config.data.validation]}
  # Files are hashed as they are; hub data sets and directories by their rows.
  unnamed = {split: {source: rows.fingerprint(source, split=split) for source in sources
                     if not pathlib.Path(source).is_file()} for split, sources in data.items()}
  return manifest.gather(
      dataclasses.asdict(config), seed=config.seed, overrides=overrides, mesh=built.mesh,
      data=data, base=base, tokenizer=base, template=built.chat.template,
      grader=built.grader_json, extra={'rows': unnamed}) | {
          'isolation': getattr(built.grader, 'isolation', None)}


def _put_on_record(workdir, about):
  workdir.mkdir(parents=True, exist_ok=True)
  before = build.refusing(manifest.read, workdir)
  manifest.write(workdir, about | ({'started': before['started']} if before else {}))


def _state(config, rooms, checkpoints) -> tuple[TrainState, int, int]:
  """Returns the state to go on from, the stage of its optimizer (-1: none), and tokens seen."""
  newest = checkpoints.latest()
  if newest is None:
    checkpoints.clear()  # a start that died before its first checkpoint may have left a reference
    policy, _ = build.refusing(hf.load, config.model.source, dtype=config.model.dtype,
                               attention=config.model.attention, mesh=rooms.mesh)
    return TrainState(0, policy, None), -1, 0
  about = checkpoints.metadata(newest)
  policy = sharding.abstract(models.abstract(_decoder(config)), rooms.mesh)
  tokens = about['position']['num_tokens']
  span = config.spans()[about['stage']]
  if newest == span.end:  # the next stage begins with an optimizer of its own
    return TrainState(newest, build.refusing(checkpoints.restore_policy, newest, policy),
                      None), -1, tokens
  # The structure of the state does not depend on how many steps the schedule spans.
  tx = optim.make(config.stages[span.number].optim, 1)
  optimizer = sharding.abstract(jax.eval_shape(tx.init, policy), rooms.mesh)
  like = TrainState(newest, policy, optimizer)
  return build.refusing(checkpoints.restore, newest, like), span.number, tokens


@contextlib.contextmanager
def _compiling(config, rooms, evaluate, *, fresh):
  """Compiles the beginning of a fresh run while the weights are read; needs JAX's cache on disk."""
  if not (fresh and jax.config.jax_compilation_cache_dir):
    yield
    return

  def ahead():
    policy = sharding.abstract(models.abstract(_decoder(config)), rooms.mesh)
    evaluate.compile_ahead(policy, rooms.validation)

  with concurrent.futures.ThreadPoolExecutor(1, 'compiling') as thread:
    thread.submit(ahead)
    yield  # what fails in the thread fails again, and is told, where it is called for


def _decoder(config):
  return build.refusing(hf.read_config, hf.resolve(config.model.source), dtype=config.model.dtype,
                        attention=config.model.attention)


def _arithmetic(config, rooms, state) -> list[str]:
  """Returns the derived numbers of the run, in words."""
  P, G = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.policy))
  model = state.policy.config
  kernel = attention.chosen(model.attention, model.dtype, model.head_dim)
  lines = [f'{config.model.source}: {parameters:,} parameters, mesh {dict(rooms.mesh.shape)}, '
           f'{len(rooms.validation)} held-out rows, {kernel} attention']
  if isolation := getattr(rooms.grader, 'isolation', None):
    lines.append(f'the grader runs code in isolation level {isolation!r} '
                 f'(sandbox.require={config.sandbox.require!r})')
  for span, stage in zip(config.spans(), config.stages):
    count = len(rooms.train[span.number])
    if stage.algorithm == 'sft':
      each, what = config.sft.rows_per_step, f'{config.sft.rows_per_step} rows a step'
    else:
      each, what = P, (f'{P} prompts x {G} samples = {P * G} sequences a step, '
                       f'{config.update.updates_per_batch} update(s) of them')
    lines.append(f'stage {span.number} ({stage.algorithm}): steps {span.first + 1}..{span.end}, '
                 f'{what}, {stage.steps * each / count:.1f} epochs of {count} rows')
  if state.step == config.total_steps():
    lines.append(f'all {state.step} steps are done; nothing is left to train')
  elif state.step:
    lines.append(f'continues from step {state.step}')
  return lines


def _tell(line):
  print(line, file=sys.stderr, flush=True)
