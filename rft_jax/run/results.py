"""What a workdir gives: its report, the grade of a checkpoint, a checkpoint as HF directory."""

import contextlib
import pathlib

import jax

from rft_jax import hf, models, sharding
from rft_jax.algorithms import reward_model
from rft_jax.config import Config
from rft_jax.data import chat as chats
from rft_jax.doctor import doctor
from rft_jax.errors import InputError, as_input_error
from rft_jax.records import atomic, manifest, metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.report import report
from rft_jax.run import build
from rft_jax.run.evaluate import intervals
from rft_jax.run.evaluate import make as make_evaluate
from rft_jax.training.update import value_batch
from rft_jax.types import TrainState

_TOLD = (
  ('grade', 'grade, sampled'),
  ('greedy/grade', 'greedy'),
  ('preference/accuracy', 'pair accuracy'),
)


def finish(config: Config, workdir, tell=lambda _: None):
  """Writes what a finished run leaves: the report, and the best checkpoint as HF directory."""
  for row in _evaluations(workdir):
    if row['step'] in {0} | {span.end for span in config.spans()}:
      tell(
        f'held-out at step {row["step"]}: '
        + ', '.join(
          f'{label} {row[name]["mean"]:.3f} [{row[name]["low"]:.3f}, {row[name]["high"]:.3f}]'
          for name, label in _TOLD
          if name in row
        )
      )
  tell(f'report: {write_report(config, workdir)}')
  tell(f'export: {export_checkpoint(config, workdir, force=True)}')


def write_report(config: Config, workdir) -> pathlib.Path:
  """Writes report.html from what lies in the workdir, finished or not.

  Raises:
    build.Refused: there is no run in it, or one of its files is damaged.
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
    force: replace a directory that is no earlier export of ours.

  Raises:
    build.Refused: there is no such checkpoint, or the target is in use.
  """
  workdir = pathlib.Path(workdir)
  policy, decoder, step = _checkpoint(config, workdir, which)
  to = pathlib.Path(to or workdir / 'export')
  given = dict(to=to, source=config.model.source, force=force, card=_card(config, workdir, step))
  if not _is_reward_model(config, step):
    as_input_error(hf.export, policy, decoder, **given)
    return to
  chat = as_input_error(chats.make, hf.resolve(config.model.source), config.chat)
  as_input_error(
    hf.export_reward_model,
    _head(config, workdir, policy, step),
    decoder,
    trunk=policy,
    stop_ids=chat.stop_ids,
    chat_template=chat.template if config.chat.template else '',
    **given,
  )
  return to


def _is_reward_model(config, step) -> bool:
  """Returns whether the checkpoint of a step holds a reward model, and no policy."""
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

  Of a reward model it measures the accuracy on the held-out pairs.

  Raises:
    build.Refused: there is no such checkpoint, or something given is not fit.
  """
  workdir = pathlib.Path(workdir)
  if not config.ends_in_reward_model():
    build.check_graded(config)
  with build.components(config, training=False, workdir=workdir) as components:
    policy, _, step = _checkpoint(config, workdir, which)
    if _is_reward_model(config, step):
      measure = reward_model.held_out(
        components.validation,
        lambda state, batch: value_batch(
          state.policy, state.critic, batch, config.update, mesh=components.mesh
        ),
      )
      head = _head(config, workdir, policy, step)
      return intervals(measure(TrainState(step, policy, None, head)))
    build.check_graded(config)
    evaluate = make_evaluate(
      components.chat, components.grader, config, mesh=components.mesh, response_format=components.response_format
    )
    return evaluate(policy, components.validation).values


def diagnose(config: Config, workdir='', *, model='', which='') -> doctor.Examination:
  """Examines data, grader and policy before training; writes doctor.json where there is a workdir.

  Args:
    model: an HF directory or hub id to examine; '' and no `which`: the base model.
    which: 'best', 'last' or a step: a checkpoint of the workdir.

  Raises:
    build.Refused: there is no such model or checkpoint; all else that is wrong is a finding.
  """
  with contextlib.ExitStack() as stack:
    try:
      components = stack.enter_context(build.components(config, source=model, workdir=workdir or None))
    except InputError as refusal:
      found = doctor.refused(str(refusal))
    else:
      found = doctor.examine(config, components, _policy(config, workdir, model, which, components.mesh))
  if workdir:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    atomic.write_json(pathlib.Path(workdir) / 'doctor.json', found.json())
  return found


def _policy(config, workdir, model, which, mesh):
  if which:
    return _checkpoint(config, pathlib.Path(workdir), which)[0]
  return as_input_error(
    hf.load,
    model or config.model.source,
    dtype=config.model.dtype,
    attention=config.model.attention,
    mesh=mesh,
  )[0]


def _checkpoint(config, workdir, which):
  """Returns the policy of a checkpoint on the config's mesh, its DecoderConfig, and the step."""
  mesh = as_input_error(sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  decoder = as_input_error(
    hf.read_config,
    as_input_error(hf.resolve, config.model.source),
    dtype=config.model.dtype,
    attention=config.model.attention,
  )
  checkpoints = Checkpoints(workdir / 'checkpoints', config.checkpoints)
  step = as_input_error(checkpoints.resolve, which)
  like = sharding.abstract(models.abstract(decoder), mesh)
  return as_input_error(checkpoints.restore_policy, step, like), decoder, step


def _card(config, workdir, step) -> dict:
  """Returns what the exported model card says of the run."""
  about = as_input_error(manifest.read, workdir) or {}
  evaluations = _evaluations(workdir)
  numbers = lambda row: {name: value for name, value in row.items() if isinstance(value, dict)}
  before = [numbers(row) for row in evaluations if row['step'] == 0]
  after = [numbers(row) for row in evaluations if row['step'] == step]
  return {
    'base_model': config.model.source,
    'stages': ', then '.join(f'{stage.algorithm} ({stage.steps} steps)' for stage in config.stages),
    'data': config.data.train,
    'data_sha256': about.get('sha256', {}).get('data'),
    'validation': config.data.validation,
    'grader': about.get('config', {}).get('grader'),
    'steps': config.total_steps(),
    'step': step,
    'seed': config.seed,
    'before': before[-1] if before else None,
    'after': after[-1] if after else None,
  }


def _evaluations(workdir):
  return metrics.read(pathlib.Path(workdir) / metrics.EVALUATION)


def last_evaluation(workdir) -> dict[str, dict[str, float]]:
  """Returns the newest held-out evaluation: {metric: {'mean', 'low', 'high'}}; {} without one."""
  evaluations = _evaluations(workdir)
  return (
    {name: value for name, value in evaluations[-1].items() if isinstance(value, dict)}
    if evaluations
    else {}
  )
