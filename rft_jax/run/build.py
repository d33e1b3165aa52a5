"""From a Config to the components of a run, all of them checked before anything is computed."""

import contextlib
import re
from typing import Any, NamedTuple

from rft_jax import graders, hf, sharding
from rft_jax.config import Config
from rft_jax.data import chat as chats
from rft_jax.data import tokenizers
from rft_jax.errors import InputError, as_input_error
from rft_jax.run import build_examples, build_grader
from rft_jax.types import Example


class RunComponents(NamedTuple):
  """What a run is made of, apart from weights."""

  mesh: Any
  chat: Any
  grader: Any
  grader_json: dict
  response_format: dict | None
  train: list[list[Example]]  # of each stage
  validation: list[Example]
  warnings: list[str]
  step_grader: Any = None  # of credit.grader; None: not set


@contextlib.contextmanager
def components(config: Config, *, source: str = '', training: bool = True, workdir=None):
  """Builds the components of a run, and closes the grader's processes at the end.

  Args:
    config: is validated first.
    source: where the tokenizer is; '' means config.model.source.
    training: False leaves the training rows unread.
    workdir: where the answers of judges are cached if config.judge.cache names no folder; None:
      in memory.

  Raises:
    InputError: config, data, grader or tokenizer are not fit; every problem is listed.
  """
  as_input_error(config.validate)
  mesh = as_input_error(sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  directory = as_input_error(hf.resolve, source or config.model.source)
  max_positions = as_input_error(hf.read_config, directory).max_positions
  chat = as_input_error(chats.make, directory, config.chat)
  with (
    build_grader.grader(config, workdir, mesh) as (grader, grader_json, response_format),
    build_grader.step_grader(config, workdir, mesh, training) as step_grader,
  ):
    if config.advantage.estimator == 'gdpo' and grader and len(graders.grader_infos(grader)) < 2:
      raise InputError(
        "config.advantage.estimator='gdpo' compares several graders, and the grader "
        f'{grader.name!r} is one: need type multi, or another estimator'
      )
    train, validation, warnings = as_input_error(
      build_examples.load_examples, config, chat, _item_fields(grader, step_grader), training
    )
    if grader is None and all(example.target_ids is None for example in validation):
      raise InputError(
        f'config.data.validation={config.data.validation} holds no preferences, and '
        'config.grader is empty: nothing can be measured; give one of the two'
      )
    if training:
      max_positions = min([max_positions, *_positions_of_other_models(config, chat)])
    as_input_error(build_examples.check_lengths, config, train, validation, max_positions)
    yield RunComponents(
      mesh,
      chat,
      grader,
      grader_json,
      response_format,
      train,
      validation,
      config.warnings() + warnings,
      step_grader,
    )


def _item_fields(grader, step_grader) -> frozenset[str]:
  """Returns the fields of a row that the graders read."""
  fields = grader and grader.item_fields() or frozenset()
  if step_grader is not None:  # item.reasoning_step is added to the fields of the row
    fields |= {
      field for field in step_grader.item_fields() or () if not re.match(r'reasoning_step\b', field)
    }
  return fields


def _positions_of_other_models(config, chat) -> list[int]:
  """Returns the positions of the teachers and critics that the stages read, once checked."""
  positions, groups = [], config.groups()
  for teacher in dict.fromkeys(config.teacher(stage) for stage in config.stages):
    if teacher:
      positions.append(as_input_error(_check_teacher, teacher, chat))
  critics = (config.requirements(stage).critic_source(groups) for stage in config.stages)
  for critic in dict.fromkeys(critics):
    if critic:
      positions.append(as_input_error(_check_critic, critic, chat))
  return positions


def _check_teacher(source, chat) -> int:
  """Returns the positions of the teacher; raises ValueError if its vocabulary is another one."""
  directory = hf.resolve(source)
  max_positions = hf.read_config(directory).max_positions
  differences = tokenizers.differences(chat.tokenizer, tokenizers.load(directory))
  if differences:
    lines = [
      f'config.distillation.teacher={source} has another tokenizer than config.model.source; it '
      f'would score other tokens than those sampled. {len(differences)} differences, first '
      '(policy, then teacher):',
      *differences[:5],
      'Need a teacher of the same vocabulary, of the same family for example. Where an end id '
      'alone differs, copy the teacher and give the copy the tokenizer_config.json of the '
      'policy.',
    ]
    raise ValueError('\n  '.join(lines))
  return max_positions


def _check_critic(source, chat) -> int:
  """Returns the positions of a critic; raises ValueError if it does not fit the policy."""
  if problems := hf.reward_model_problems(source):
    raise ValueError('\n'.join([f'config.critic.source={source}:', *problems]))
  directory = hf.resolve(source)
  if differences := tokenizers.differences(chat.tokenizer, tokenizers.load(directory)):
    lines = [
      f'config.critic.source={source} has another vocabulary than config.model.source, and '
      f'would read other tokens than those sampled. {len(differences)} differences, first '
      '(policy, then critic):',
      *differences[:5],
      "Need a reward model of the same family, or '' (the policy).",
    ]
    raise ValueError('\n  '.join(lines))
  return hf.read_config(directory).max_positions
