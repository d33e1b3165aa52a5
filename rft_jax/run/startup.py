"""Opening a run: what it is made of, where it goes on from, and what it will do, in words."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib

import jax

from rft_jax import hf, models, sharding
from rft_jax.algorithms import ALGORITHMS
from rft_jax.data import rows
from rft_jax.errors import as_input_error
from rft_jax.local_models import reward_model
from rft_jax.models import attention
from rft_jax.records import manifest
from rft_jax.run import build
from rft_jax.training import optim
from rft_jax.types import TrainState


def about(config, built, overrides) -> dict:
  """Returns the manifest of this start."""
  base = as_input_error(hf.resolve, config.model.source)
  data = {
    'train': sorted({stage.data or config.data.train for stage in config.stages}),
    'validation': [config.data.validation],
  }
  # Files are hashed as they are; hub data sets and directories by their rows.
  unnamed = {
    split: {
      source: rows.fingerprint(source, split=split)
      for source in sources
      if not pathlib.Path(source).is_file()
    }
    for split, sources in data.items()
  }
  distilled = any(stage.algorithm == 'distillation' for stage in config.stages)
  teacher = as_input_error(hf.resolve, config.distillation.teacher) if distilled else None
  return manifest.gather(
    dataclasses.asdict(config),
    seed=config.seed,
    overrides=overrides,
    mesh=built.mesh,
    data=data,
    base=base,
    tokenizer=base,
    template=built.chat.template,
    grader=built.grader_json,
    teacher=teacher,
    extra={
      'rows': unnamed,
      'reward_models': as_input_error(reward_model.fingerprints, built.grader_json),
    },
  ) | {'isolation': getattr(built.grader, 'isolation', None)}


def write_manifest(workdir, about):
  """Writes the manifest; a continued run keeps the time of its start."""
  workdir.mkdir(parents=True, exist_ok=True)
  before = as_input_error(manifest.read, workdir)
  manifest.write(workdir, about | ({'started': before['started']} if before else {}))


def state(config, components, checkpoints) -> tuple[TrainState, int, int]:
  """Returns the state to go on from, the stage of its optimizer (-1: none), and tokens seen."""
  newest = checkpoints.latest()
  if newest is None:
    checkpoints.clear()  # a start that died before its first checkpoint may have left a reference
    policy, _ = as_input_error(
      hf.load,
      config.model.source,
      dtype=config.model.dtype,
      attention=config.model.attention,
      mesh=components.mesh,
    )
    return TrainState(0, policy, None), -1, 0
  about = checkpoints.metadata(newest)
  policy = sharding.abstract(models.abstract(_decoder(config)), components.mesh)
  tokens = about['position']['num_tokens']
  span = config.spans()[about['stage']]
  if newest == span.end:  # the next stage begins with an optimizer of its own
    return (
      TrainState(newest, as_input_error(checkpoints.restore_policy, newest, policy), None),
      -1,
      tokens,
    )
  stage = config.stages[span.number]
  like = jax.eval_shape(
    functools.partial(begin, config, stage),
    TrainState(newest, policy, None),
    initial_critic(config, stage, None),
  )
  like = like._replace(
    **sharding.abstract(
      {name: getattr(like, name) for name in ('policy', 'optimizer', 'critic')}, components.mesh
    )
  )
  return as_input_error(checkpoints.restore, newest, like), span.number, tokens


def begin(config, stage, state: TrainState, given=None) -> TrainState:
  """Returns the state with which a stage starts: its own optimizer, critic and memory.

  Args:
    given: what starting_critic or its abstract gives.
  """
  kind = ALGORITHMS[stage.algorithm].REQUIREMENTS.critic(groups(config))
  critic = models.make_critic(state.policy, kind) if kind and given is None else given
  learners = {'policy': state.policy, 'critic': critic}
  # The structure of the state does not depend on how many steps the schedule spans.
  return state._replace(
    critic=critic,
    algorithm_state={},
    optimizer={
      name: optim.make(chosen, 1).init(learners[name])
      for name, chosen in optimizers(config, stage).items()
    },
  )


def initial_critic(config, stage, mesh):
  """Returns the critic that config.critic.source holds, on mesh; None where it asks for none.

  Args:
    mesh: None: its shapes, without the weights.
  """
  if not build.starts_from_reward_model(config, stage):
    return None
  given = dict(dtype=config.model.dtype, attention=config.model.attention)
  if mesh is None:
    return as_input_error(hf.abstract_reward_model, config.critic.source, **given)
  return as_input_error(hf.load_reward_model, config.critic.source, mesh=mesh, **given)[0]


def optimizers(config, stage) -> dict:
  """Returns the OptimConfig of each model that a stage trains."""
  demands, given = ALGORITHMS[stage.algorithm].REQUIREMENTS, groups(config)
  own = {'critic': demands.critic_optim(given, stage.optim)} if demands.critic(given) else {}
  return {'policy': stage.optim} | own


def groups(config) -> dict:
  """Returns the config's groups by name: what lies below config.py sees of it."""
  return {group.name: getattr(config, group.name) for group in dataclasses.fields(config)}


@contextlib.contextmanager
def compiling(config, components, evaluate, *, fresh):
  """Compiles the beginning of a fresh run while the weights are read; needs JAX's cache on disk."""
  if components.grader is None or not (fresh and jax.config.jax_compilation_cache_dir):
    yield
    return

  def ahead():
    policy = sharding.abstract(models.abstract(_decoder(config)), components.mesh)
    evaluate.compile_ahead(policy, components.validation)

  with concurrent.futures.ThreadPoolExecutor(1, 'compiling') as thread:
    thread.submit(ahead)
    yield  # what fails in the thread fails again, and is told, where it is called for


def _decoder(config):
  return as_input_error(
    hf.read_config,
    hf.resolve(config.model.source),
    dtype=config.model.dtype,
    attention=config.model.attention,
  )


def run_summary(config, components, state) -> list[str]:
  """Returns the derived numbers of the run, in words."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.policy))
  model = state.policy.config
  kernel = attention.chosen(model.attention, model.dtype, model.head_dim)
  lines = [
    f'{config.model.source}: {parameters:,} parameters, mesh {dict(components.mesh.shape)}, '
    f'{len(components.validation)} held-out rows, {kernel} attention'
  ]
  if isolation := getattr(components.grader, 'isolation', None):
    lines.append(
      f'the grader runs code in isolation level {isolation!r} '
      f'(sandbox.require={config.sandbox.require!r})'
    )
  for span, stage in zip(config.spans(), config.stages):
    count = len(components.train[span.number])
    each, what = _each_step(config, stage.algorithm)
    lines.append(
      f'stage {span.number} ({stage.algorithm}): steps {span.first + 1}..{span.end}, '
      f'{what}, {stage.steps * each / count:.1f} epochs of {count} rows'
    )
  if state.step == config.total_steps():
    lines.append(f'all {state.step} steps are done; nothing is left to train')
  elif state.step:
    lines.append(f'continues from step {state.step}')
  return lines


def _each_step(config, algorithm):
  """Returns (rows that a step takes, the same in words)."""
  if algorithm in ('sft', 'kto'):
    rows_per_step = getattr(config, algorithm).rows_per_step
    return rows_per_step, f'{rows_per_step} rows a step'
  if algorithm == 'reward_model':
    count = config.reward_model.pairs_per_step
    return count, f'{count} pairs a step, nothing sampled'
  if algorithm == 'dpo':
    return config.dpo.pairs_per_step, (
      f'{config.dpo.pairs_per_step} pairs a step, loss {config.dpo.preference.loss!r}'
    )
  P, G = config.rollout.prompts_per_step, config.rollout.samples_per_prompt
  return P, (
    f'{P} prompts x {G} samples = {P * G} sequences a step, '
    f'{config.update.updates_per_batch} update(s) of them'
  )
