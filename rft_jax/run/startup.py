"""The start of a run: manifest, resume from a checkpoint or a new state, printed summary."""

import dataclasses
import functools
import pathlib

import jax

from rft_jax import hf, models, sharding
from rft_jax.data import rows
from rft_jax.errors import as_input_error
from rft_jax.local_models import reward_model
from rft_jax.models import attention
from rft_jax.records import manifest
from rft_jax.training import optim
from rft_jax.types import TrainState

# --- the manifest ---------------------------------------------------------------------------------


def build_manifest(config, components, overrides) -> dict:
  """Returns the manifest of this start: everything that the run depends on."""
  base = as_input_error(hf.resolve, config.model.source)
  sources = {
    'train': sorted({stage.data or config.data.train for stage in config.stages}),
    'validation': [config.data.validation],
  }
  # Files are hashed as they are; hub data sets and directories by their rows.
  row_digests = {
    split: {
      source: rows.fingerprint(source, split=split)
      for source in split_sources
      if not pathlib.Path(source).is_file()
    }
    for split, split_sources in sources.items()
  }
  teacher = next((source for stage in config.stages if (source := config.teacher(stage))), None)
  return manifest.gather(
    dataclasses.asdict(config),
    seed=config.seed,
    overrides=overrides,
    mesh=components.mesh,
    data=sources,
    base=base,
    tokenizer=base,
    template=components.chat.template.jinja,
    grader=components.grader_json,
    teacher=teacher and as_input_error(hf.resolve, teacher),
    extra={
      'rows': row_digests,
      'reward_models': as_input_error(reward_model.fingerprints, components.grader_json),
    },
  ) | {'isolation': getattr(components.grader, 'isolation', None)}


def write_manifest(workdir, new: dict) -> None:
  """Writes the manifest; a continued run keeps the time of its first start."""
  workdir.mkdir(parents=True, exist_ok=True)
  previous = as_input_error(manifest.read, workdir)
  manifest.write(workdir, new | ({'started': previous['started']} if previous else {}))


# --- the state ------------------------------------------------------------------------------------


def restore_or_init(config, components, checkpoints) -> tuple[TrainState, int, int]:
  """Returns (the state to continue from, the stage of its optimizer or -1, tokens trained so far).

  Where there is no checkpoint the policy is loaded from config.model.source. A state without an
  optimizer (-1) gets that of its stage from init_stage_state.
  """
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
  metadata = checkpoints.metadata(newest)
  policy = sharding.abstract(models.abstract(decoder_config(config)), components.mesh)
  tokens = metadata['position']['num_tokens']
  span = config.spans()[metadata['stage']]
  if newest == span.end:  # the next stage begins with an optimizer of its own
    policy = as_input_error(checkpoints.restore_policy, newest, policy)
    return TrainState(newest, policy, None), -1, tokens
  stage = config.stages[span.number]
  shapes = jax.eval_shape(
    functools.partial(_optimizer_and_critic, config, stage),
    policy,
    initial_critic(config, stage, None),
  )
  like = TrainState(newest, **sharding.abstract({'policy': policy} | shapes, components.mesh))
  state = as_input_error(checkpoints.restore, newest, like)
  initial = config.requirements(stage).initial_state()
  if initial is not None:
    state = state._replace(algorithm_state=type(initial).from_json(state.algorithm_state))
  return state, span.number, tokens


def init_stage_state(config, stage, state: TrainState, mesh) -> TrainState:
  """Returns the state a stage starts with: its own optimizer, critic and algorithm state.

  Optimizer and critic are created on their shards.
  """
  created = sharding.place(
    functools.partial(_optimizer_and_critic, config, stage),
    mesh,
    state.policy,
    initial_critic(config, stage, mesh),
  )
  return state._replace(**created, algorithm_state=config.requirements(stage).initial_state())


def _optimizer_and_critic(config, stage, policy, critic):
  """Returns {'optimizer', 'critic'} as a stage starts with them.

  Args:
    critic: from initial_critic; None: made from the policy, where the algorithm needs one.
  """
  kind = config.requirements(stage).critic(config.groups())
  if kind and critic is None:
    critic = models.make_critic(policy, kind)
  trained = {'policy': policy, 'critic': critic}
  # The structure of the optimizer state does not depend on the number of steps of the schedule.
  optimizer = {
    name: optim.make(optim_config, 1).init(trained[name])
    for name, optim_config in stage_optimizers(config, stage).items()
  }
  return {'optimizer': optimizer, 'critic': critic}


def initial_critic(config, stage, mesh):
  """Returns the reward model that the critic of a stage starts from, on mesh; None: there is none.

  Args:
    mesh: None: only its shapes, without reading the weights.
  """
  source = config.requirements(stage).critic_source(config.groups())
  if not source:
    return None
  settings = dict(dtype=config.model.dtype, attention=config.model.attention)
  if mesh is None:
    return as_input_error(hf.abstract_reward_model, source, **settings)
  return as_input_error(hf.load_reward_model, source, mesh=mesh, **settings)[0]


def stage_optimizers(config, stage) -> dict:
  """Returns the OptimConfig of each model that a stage trains: 'policy', 'critic'."""
  requirements, groups = config.requirements(stage), config.groups()
  optimizers = {'policy': stage.optim}
  if requirements.critic(groups):
    optimizers['critic'] = requirements.critic_optim(groups, stage.optim)
  return optimizers


def decoder_config(config):
  """Returns the DecoderConfig of config.model, read from its config.json."""
  return as_input_error(
    hf.read_config,
    as_input_error(hf.resolve, config.model.source),
    dtype=config.model.dtype,
    attention=config.model.attention,
  )


# --- the summary ----------------------------------------------------------------------------------


def run_summary(config, components, state) -> list[str]:
  """Returns lines with the derived numbers of the run: sizes, mesh, steps and epochs of stages."""
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.policy))
  model = state.policy.config
  kernel = attention.select_implementation(model.attention, model.dtype, model.head_dim)
  lines = [
    f'{config.model.source}: {parameters:,} parameters, mesh {dict(components.mesh.shape)}, '
    f'{len(components.validation)} held-out rows, {kernel} attention'
  ]
  if isolation := getattr(components.grader, 'isolation', None):
    lines.append(
      f'the grader runs code in isolation level {isolation!r} '
      f'(sandbox.require={config.sandbox.require!r})'
    )
  groups = config.groups()
  for span, stage in zip(config.spans(), config.stages):
    requirements, rows_in_stage = config.requirements(stage), len(components.train[span.number])
    epochs = stage.steps * requirements.rows_per_step(groups) / rows_in_stage
    lines.append(
      f'stage {span.number} ({stage.algorithm}): steps {span.first + 1}..{span.end}, '
      f'{requirements.step_summary(groups)}, {epochs:.1f} epochs of {rows_in_stage} rows'
    )
  if state.step == config.total_steps():
    lines.append(f'all {state.step} steps are done; nothing is left to train')
  elif state.step:
    lines.append(f'continues from step {state.step}')
  return lines
