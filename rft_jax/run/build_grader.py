"""From a Config to its graders: the run's own, and the one of credit.grader."""

import contextlib

from rft_jax import graders, sharding
from rft_jax.config import Config
from rft_jax.errors import InputError, as_input_error
from rft_jax.graders.reward_model import reward_model_names
from rft_jax.json_files import read_json
from rft_jax.local_models import judge, reward_model


@contextlib.contextmanager
def grader(config: Config, workdir='', mesh=None):
  """Builds (the grader, its JSON, the response_format) of a run; closes it at the end.

  Args:
    workdir: see build.components.
    mesh: where reward models score; None: that of the config, made if there are any.

  Raises:
    InputError: the grader or the response_format is not fit; every problem is listed.
  """
  if config.ungraded():
    yield None, None, None
    return
  grader_json = as_input_error(_read_json, 'grader', config.grader)
  with _opened(config, grader_json, workdir, mesh) as (run_grader, response_format):
    yield run_grader, grader_json, response_format


@contextlib.contextmanager
def step_grader(config: Config, workdir, mesh, training: bool):
  """Builds the grader of credit.grader; None where it is not set or not needed."""
  if not (training and config.credit.level == 'reasoning_step' and config.credit.grader):
    yield None
    return
  grader_json = as_input_error(_read_json, 'credit.grader', config.credit.grader)
  with _opened(config, grader_json, workdir, mesh) as (credit_grader, _):
    yield credit_grader


def check_graded(config: Config) -> None:
  """Raises InputError for a run without a grader, where answers are to be graded."""
  if config.ungraded():
    raise InputError(
      'config.grader is empty: answers cannot be graded; held-out pairs are measured '
      'during training, against the reference policy (evaluation.jsonl)'
    )


@contextlib.contextmanager
def _opened(config, grader_json, workdir, mesh):
  response_format = as_input_error(_read_json, 'response_format', config.response_format)
  if problems := graders.response_format_problems(response_format):
    raise InputError('\n'.join(problems))
  # No judge is connected to or loaded before a grader asks it.
  backend = judge.LocalJudge(config.judge) if config.judge.local else None
  with (
    contextlib.closing(graders.Judges(config.judge, backend, cache=str(workdir or ''))) as judges,
    contextlib.closing(
      as_input_error(
        graders.make,
        grader_json,
        ungradable_reward=config.rollout.ungradable_reward,
        sandbox=config.sandbox,
        response_format=response_format,
        judges=judges,
        reward_models=_reward_models(config, grader_json, mesh),
      )
    ) as opened_grader,
  ):
    yield opened_grader, response_format


def _reward_models(config, grader_json, mesh) -> dict[str, reward_model.RewardModel]:
  """Returns the reward models that the grader names; their weights are not read yet."""
  if not reward_model_names(grader_json):
    return {}
  mesh = mesh or as_input_error(
    sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor
  )
  return as_input_error(
    reward_model.open_reward_models,
    grader_json,
    mesh=mesh,
    dtype=config.model.dtype,
    update=config.update,
  )


def _read_json(name, value):
  """Returns a JSON object given as a dict or as the path of a file; None where it is empty."""
  if value is None or value == '':
    return None
  return value if isinstance(value, dict) else read_json(value, f'config.{name}')
