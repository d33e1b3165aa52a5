"""From a Config to the rooms of a run, everything checked before anything is paid for."""

import contextlib
import dataclasses
import json
import pathlib
import re
from typing import Any, NamedTuple

from rft_jax import graders, hf, sharding
from rft_jax.config import Config
from rft_jax.data import chat as chats
from rft_jax.data import preferences, rows, tokenizers
from rft_jax.errors import InputError, as_input_error
from rft_jax.graders.reward_model import named_in
from rft_jax.local_models import judge, reward_model
from rft_jax.types import Example


class RunComponents(NamedTuple):
  """What a run is made of, apart from weights."""

  mesh: Any
  chat: Any
  grader: Any
  grader_json: dict
  response_format: dict | None
  train: list[list[Example]]  # for each stage
  validation: list[Example]
  warnings: list[str]
  step_grader: Any = None  # of credit.grader; None: steps are not graded by one of their own


@contextlib.contextmanager
def components(config: Config, *, source: str = '', training: bool = True, workdir=None):
  """Builds the rooms of a run, and closes the grader's processes in the end.

  Args:
    config: is validated first.
    source: where the tokenizer is; '' means config.model.source.
    training: False leaves the training rows unread.
    workdir: keeps the verdicts of judges, where config.judge.cache names no folder; None: they
      are kept in memory.

  Raises:
    Refused: config, data, grader or tokenizer are not fit; everything found is listed.
  """
  as_input_error(config.validate)
  mesh = as_input_error(sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  directory = as_input_error(hf.resolve, source or config.model.source)
  positions = as_input_error(hf.read_config, directory).max_positions
  chat = as_input_error(chats.make, directory, config.chat)
  with (
    grader(config, workdir, mesh) as (made, grader_json, response_format),
    _step_grader(config, workdir, mesh, training) as steps,
  ):
    if config.advantage.estimator == 'gdpo' and made and len(graders.listed(made)) < 2:
      raise InputError(
        "config.advantage.estimator='gdpo' compares several graders, and the grader "
        f'{made.name!r} is one: need type multi, or another estimator'
      )
    fields = made and made.item_fields() or frozenset()
    if steps is not None:  # item.reasoning_step is put in beside the row's own fields
      fields |= {field for field in steps.item_fields() or () if not re.match(r'reasoning_step\b', field)}
    train, validation, warnings = as_input_error(_examples, config, chat, fields, training)
    if made is None and all(example.target_ids is None for example in validation):
      raise InputError(
        f'config.data.validation={config.data.validation} holds no preferences, and '
        'config.grader is empty: nothing can be measured; give one of the two'
      )
    if training and any(stage.algorithm == 'distillation' for stage in config.stages):
      positions = min(positions, as_input_error(_check_teacher, config.distillation.teacher, chat))
    if training and any(starts_from_reward_model(config, stage) for stage in config.stages):
      positions = min(positions, as_input_error(_check_critic, config.critic.source, chat))
    as_input_error(_check_lengths, config, train, validation, positions)
    yield RunComponents(
      mesh,
      chat,
      made,
      grader_json,
      response_format,
      train,
      validation,
      config.warnings() + warnings,
      steps,
    )


@contextlib.contextmanager
def grader(config: Config, workdir='', mesh=None):
  """Builds (the grader, its JSON, the response_format) of a run; closes it in the end.

  Args:
    workdir: see rooms.
    mesh: where reward models score; None: that of the config, made if there are any.

  Raises:
    Refused: the grader or the response_format is not fit; everything found is listed.
  """
  if config.ungraded():
    yield None, None, None
    return
  with _made(config, as_input_error(_json, 'grader', config.grader), workdir, mesh) as (
    made,
    grader_json,
    response_format,
  ):
    yield made, grader_json, response_format


@contextlib.contextmanager
def _step_grader(config, workdir, mesh, training):
  """Builds the grader of credit.grader, or gives None where it is not set or not needed."""
  if not (training and config.credit.level == 'reasoning_step' and config.credit.grader):
    yield None
    return
  grader_json = as_input_error(_json, 'credit.grader', config.credit.grader)
  with _made(config, grader_json, workdir, mesh) as (made, *_):
    yield made


@contextlib.contextmanager
def _made(config, grader_json, workdir, mesh):
  response_format = as_input_error(_json, 'response_format', config.response_format)
  if problems := graders.response_format_problems(response_format):
    raise InputError('\n'.join(problems))
  with contextlib.ExitStack() as stack:
    judges = stack.enter_context(contextlib.closing(_judges(config.judge, workdir)))
    made = stack.enter_context(
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
      )
    )
    yield made, grader_json, response_format


def _reward_models(config, grader_json, mesh) -> dict[str, reward_model.RewardModel]:
  """Returns the reward models that the grader names; their weights are not read yet."""
  if not named_in(grader_json):
    return {}
  mesh = mesh or as_input_error(
    sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor
  )
  return as_input_error(
    reward_model.open_all, grader_json, mesh=mesh, dtype=config.model.dtype, update=config.update
  )


def check_graded(config: Config) -> None:
  """Raises Refused for a run without a grader, where answers are to be graded."""
  if config.ungraded():
    raise InputError(
      'config.grader is empty: answers cannot be graded; held-out pairs are measured '
      'in training, against its reference (evaluation.jsonl)'
    )


def _judges(config, workdir) -> graders.Judges:
  """Returns who answers for model judges; nothing is opened or read before a grader asks."""
  backend = judge.LocalJudge(config) if config.local else None
  return graders.Judges(config, backend, cache=str(workdir or ''))


def _json(name, value):
  """Returns a JSON object given as a dict or as the path of a file."""
  if value is None or value == '':
    return None
  if isinstance(value, dict):
    return value
  path = pathlib.Path(value)
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise ValueError(
      f'config.{name}={value}: cannot be read ({error.strerror}); need a JSON '
      'object or the path of one'
    ) from error
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})'
    ) from error


def _examples(config, chat, fields, training):
  """Returns (train rows for each stage, validation rows, warnings), each file read once.

  A file that a supervised stage learns from may serve a reinforced one too, and one of pairs both:
  supervised stages learn the chosen answers. What a stage has no use for is left aside.
  """
  sources = [stage.data or config.data.train for stage in config.stages]
  kinds = config.learns_from()
  held_out = next((kind for kind in preferences.KINDS if kind in kinds), '')
  if not training:  # the training rows are not needed, and may be gone
    held_out = held_out or ('targets' if 'targets' in kinds and not config.sft.target else '')
    sources, kinds = [config.data.validation], [held_out or 'prompts']
  loaded, warnings = {}, []
  for source in dict.fromkeys(sources):
    given = [kind for one, kind in zip(sources, kinds) if one == source]
    for kind in _readings(given):
      target = config.sft.target if kind == 'targets' else ''
      *loaded[source, kind], found = rows.load(
        dataclasses.replace(config.data, train=source),
        chat=chat,
        item_fields=fields,
        kind=kind,
        held_out=held_out,
        target_template=target,
        graded=bool({'prompts', 'targets'} & {*given}),
      )
      warnings += [line for line in found if training and line not in warnings]
  validation = next(iter(loaded.values()))[1]
  readings = {source: {kind for one, kind in loaded if one == source} for source in sources}
  train = (
    [
      loaded[
        source,
        kind
        if kind in readings[source]
        else next(other for other in ('pairs', 'targets') if other in readings[source]),
      ][0]
      for source, kind in zip(sources, kinds)
    ]
    if training
    else []
  )
  return train, validation[: config.evaluate.rows or None], warnings


def _readings(kinds):
  """Returns in which ways a file is to be read, so that every stage finds what it needs."""
  if 'pairs' in kinds:
    return ['pairs'] + ['answers'] * ('answers' in kinds)
  return [
    kind
    for kind in ('targets', 'answers', 'prompts')
    if kind in kinds and (kind != 'prompts' or 'targets' not in kinds)
  ]


def _check_teacher(source, chat) -> int:
  """Returns how many positions the teacher has; raises where its tokens are not the policy's."""
  directory = hf.resolve(source)
  positions = hf.read_config(directory).max_positions
  found = tokenizers.differences(chat.tokenizer, tokenizers.load(directory))
  if found:
    raise ValueError(
      '\n  '.join(
        [
          f'config.distillation.teacher={source} has another tokenizer than config.model.source; it '
          f'would be asked about other tokens than those sampled. {len(found)} differences, first '
          '(policy, then teacher):',
          *found[:5],
          'Need a teacher of the same vocabulary, of the same family for example. Where an end id '
          'alone differs, copy the teacher and give the copy the tokenizer_config.json of the '
          'policy.',
        ]
      )
    )
  return positions


def starts_from_reward_model(config, stage) -> bool:
  """Returns whether the critic of a stage starts as config.critic.source."""
  return stage.algorithm == 'ppo' and bool(config.critic.source)


def _check_critic(source, chat) -> int:
  """Returns how many positions a critic has; raises where it is no reward model for the policy."""
  if problems := hf.reward_model_problems(source):
    raise ValueError('\n'.join([f'config.critic.source={source}:', *problems]))
  directory = hf.resolve(source)
  if found := tokenizers.differences(chat.tokenizer, tokenizers.load(directory)):
    raise ValueError(
      '\n  '.join(
        [
          f'config.critic.source={source} has another vocabulary than config.model.source, and would '
          f'read other tokens than those sampled. {len(found)} differences, first (policy, then '
          'critic):',
          *found[:5],
          "Need a reward model of the same family, or '' (the policy).",
        ]
      )
    )
  return hf.read_config(directory).max_positions


def _check_lengths(config, train, validation, positions):
  """Raises if a prompt with its completion needs more positions than the model has."""
  new = 0 if config.ungraded() else config.rollout.max_new_tokens
  given = [
    len(e.prompt_ids) + max(len(e.target_ids), len(e.rejected_ids or ()))
    for examples in [*train, validation]
    for e in examples
    if e.target_ids is not None
  ]
  longest = max(len(e.prompt_ids) for examples in [*train, validation] for e in examples)
  if max([longest + new, *given]) > positions:
    raise ValueError(
      f'the longest prompt has {longest} tokens; with rollout.max_new_tokens={new}'
      f'{" (longest row with its answer: %d)" % max(given) if given else ""} that is more '
      f'than the {positions} positions of model or teacher (max_position_embeddings); lower '
      'rollout.max_new_tokens, or set data.max_prompt_tokens and data.max_completion_tokens '
      'with data.overlong=drop'
    )
