"""The results of a workdir: its report, the evaluation of a checkpoint, the export."""

import pathlib

import jax

from rft_jax import hf, models, sharding
from rft_jax.algorithms import reward_model
from rft_jax.bootstrap import intervals
from rft_jax.config import Config
from rft_jax.data import chat as chats
from rft_jax.errors import InputError, as_input_error
from rft_jax.records import manifest, metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.report import report
from rft_jax.run import build, build_grader, startup
from rft_jax.run.evaluate import make as make_evaluate
from rft_jax.training.scoring import value_batch
from rft_jax.types import TrainState

_PRINTED = (
  ('grade', 'grade, sampled'),
  ('greedy/grade', 'greedy'),
  ('preference/accuracy', 'pair accuracy'),
)


def finish(config: Config, workdir, print_line=lambda _: None):
  """Writes the report of a finished run, and its best checkpoint as HF directory."""
  for row in _evaluations(workdir):
    if row['step'] in {0} | {span.end for span in config.spans()}:
      intervals_of_row = [
        f'{label} {row[name]["mean"]:.3f} [{row[name]["low"]:.3f}, {row[name]["high"]:.3f}]'
        for name, label in _PRINTED
        if name in row
      ]
      print_line(f'held-out at step {row["step"]}: ' + ', '.join(intervals_of_row))
  print_line(f'report: {write_report(config, workdir)}')
  print_line(f'export: {export_checkpoint(config, workdir, force=True)}')


def write_report(config: Config, workdir) -> pathlib.Path:
  """Writes report.html from the files of a workdir, finished or not.

  Raises:
    InputError: there is no run in it, or one of its files is damaged.
  """
  if as_input_error(manifest.read, workdir) is None:
    raise InputError(f'{workdir} holds no run (no {manifest.FILE}); train first')
  title = pathlib.Path(workdir).resolve().name.replace('_', ' ')
  return as_input_error(report.write, workdir, title=title, config=config.report)


def export_checkpoint(
  config: Config, workdir, *, which: int | str = 'best', to='', force: bool = False
) -> pathlib.Path:
  """Writes a checkpoint of a workdir as an HF directory, workdir/export by default.

  Args:
    which: 'best' by held-out grade, 'last', or a step.
    force: replace a directory that is not an earlier export of ours.

  Raises:
    InputError: there is no such checkpoint, or the target is in use.
  """
  workdir = pathlib.Path(workdir)
  policy, decoder, step = restore_policy(config, workdir, which)
  to = pathlib.Path(to or workdir / 'export')
  card = _card(config, workdir, step)
  settings = dict(to=to, source=config.model.source, force=force, card=card)
  if not _is_reward_model(config, step):
    as_input_error(hf.export, policy, decoder, **settings)
    return to
  chat = as_input_error(chats.make, hf.resolve(config.model.source), config.chat)
  as_input_error(
    hf.export_reward_model,
    _head(config, workdir, policy, step),
    decoder,
    trunk=policy,
    stop_ids=chat.stop_ids,
    chat_template=chat.template.jinja if config.chat.template else '',
    **settings,
  )
  return to


def _is_reward_model(config, step) -> bool:
  """Returns whether the checkpoint of a step holds a reward model instead of a policy."""
  return config.ends_in_reward_model() and step > config.spans()[-1].first


def _head(config, workdir, policy, step):
  """Returns the head of a reward model's checkpoint, on the mesh of its trunk."""
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
  like = sharding.abstract(
    jax.eval_shape(lambda: models.make_critic(policy, 'head')), policy.embed[...].sharding.mesh
  )
  return as_input_error(checkpoints.restore_critic, step, like)


def evaluate_checkpoint(config: Config, workdir, *, which: int | str = 'best') -> dict:
  """Grades a checkpoint of a workdir on the held-out rows; see rft_jax.evaluate.

  For a reward model: its accuracy on the held-out pairs.

  Raises:
    InputError: there is no such checkpoint, or something given is not fit.
  """
  workdir = pathlib.Path(workdir)
  if not config.ends_in_reward_model():
    build_grader.check_graded(config)
  with build.components(config, training=False, workdir=workdir) as components:
    policy, _, step = restore_policy(config, workdir, which)
    if _is_reward_model(config, step):
      measure = reward_model.held_out_pairs(
        components.validation,
        lambda state, batch: value_batch(
          state.policy, state.critic, batch, config.update, mesh=components.mesh
        ),
      )
      head = _head(config, workdir, policy, step)
      return intervals(measure(TrainState(step, policy, None, head)))
    build_grader.check_graded(config)
    return make_evaluate(components, config)(policy).values


def restore_policy(config, workdir, which):
  """Returns (the policy of a checkpoint on the config's mesh, its DecoderConfig, its step).

  Args:
    which: 'best' by held-out grade, 'last', or a step.

  Raises:
    InputError: there is no such checkpoint, or it is of another model.
  """
  mesh = as_input_error(sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  decoder = startup.decoder_config(config)
  checkpoints = Checkpoints(pathlib.Path(workdir) / 'checkpoints', config.checkpoints)
  step = as_input_error(checkpoints.resolve, which)
  like = sharding.abstract(models.abstract(decoder), mesh)
  return as_input_error(checkpoints.restore_policy, step, like), decoder, step


def _card(config, workdir, step) -> dict:
  """Returns the facts of the run for the exported model card."""
  recorded = as_input_error(manifest.read, workdir) or {}
  evaluations = _evaluations(workdir)
  before = [_intervals(row) for row in evaluations if row['step'] == 0]
  after = [_intervals(row) for row in evaluations if row['step'] == step]
  return {
    'base_model': config.model.source,
    'stages': ', then '.join(f'{stage.algorithm} ({stage.steps} steps)' for stage in config.stages),
    'data': config.data.train,
    'data_sha256': recorded.get('sha256', {}).get('data'),
    'validation': config.data.validation,
    'grader': recorded.get('config', {}).get('grader'),
    'steps': config.total_steps(),
    'step': step,
    'seed': config.seed,
    'before': before[-1] if before else None,
    'after': after[-1] if after else None,
  }


def last_evaluation(workdir) -> dict[str, dict[str, float]]:
  """Returns the newest held-out evaluation: {metric: {'mean', 'low', 'high'}}; {} without one."""
  evaluations = _evaluations(workdir)
  return _intervals(evaluations[-1]) if evaluations else {}


def _evaluations(workdir):
  return metrics.read(pathlib.Path(workdir) / metrics.EVALUATION)


def _intervals(row):
  return {name: value for name, value in row.items() if isinstance(value, dict)}
