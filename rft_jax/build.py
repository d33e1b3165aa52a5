"""From a Config to the rooms of a run, everything checked before anything is paid for."""
import contextlib
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from rft_jax import graders, hf, local_judge, sharding
from rft_jax.algorithms import ALGORITHMS
from rft_jax.config import Config
from rft_jax.data import chat as chats
from rft_jax.data import rows, tokenizers
from rft_jax.types import Example


class Refused(ValueError):
  """What the user gave cannot be run. The message says what, where, and the way out."""


class Rooms(NamedTuple):
  """What a run is made of, apart from weights."""
  mesh: Any
  chat: Any
  grader: Any
  grader_json: dict
  response_format: dict | None
  train: list[list[Example]]  # for each stage
  validation: list[Example]
  warnings: list[str]


def refusing(function, *args, **kwargs):
  """Returns function(*args, **kwargs); what it finds wrong with the input becomes Refused."""
  try:
    return function(*args, **kwargs)
  except (ValueError, LookupError, OSError) as error:
    raise error if isinstance(error, Refused) else Refused(str(error)) from error


@contextlib.contextmanager
def rooms(config: Config, *, source: str = '', training: bool = True, workdir=None):
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
  refusing(config.validate)
  mesh = refusing(sharding.make_mesh, config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
  directory = refusing(hf.resolve, source or config.model.source)
  positions = refusing(hf.read_config, directory).max_positions
  chat = refusing(chats.make, directory, config.chat)
  with grader(config, workdir) as (made, grader_json, response_format):
    if config.advantage.estimator == 'gdpo' and len(graders.listed(made)) < 2:
      raise Refused("config.advantage.estimator='gdpo' compares several graders, and the grader "
                    f'{made.name!r} is one: need type multi, or another estimator')
    fields = made.item_fields() or frozenset()
    train, validation, warnings = refusing(_examples, config, chat, fields, training)
    if training and any(stage.algorithm == 'distillation' for stage in config.stages):
      positions = min(positions, refusing(_check_teacher, config.distillation.teacher, chat))
    refusing(_check_lengths, config, train, validation, positions)
    yield Rooms(mesh, chat, made, grader_json, response_format, train, validation,
                config.warnings() + warnings)


@contextlib.contextmanager
def grader(config: Config, workdir=''):
  """Builds (the grader, its JSON, the response_format) of a run; closes it in the end.

  Raises:
    Refused: the grader or the response_format is not fit; everything found is listed.
  """
  grader_json = refusing(_json, 'grader', config.grader)
  response_format = refusing(_json, 'response_format', config.response_format)
  if problems := graders.response_format_problems(response_format):
    raise Refused('\n'.join(problems))
  with contextlib.ExitStack() as stack:
    judges = stack.enter_context(contextlib.closing(_judges(config.judge, workdir)))
    made = stack.enter_context(contextlib.closing(refusing(
        graders.make, grader_json, ungradable_reward=config.rollout.ungradable_reward,
        sandbox=config.sandbox, response_format=response_format, judges=judges)))
    yield made, grader_json, response_format


def _judges(config, workdir) -> graders.Judges:
  """Returns who answers for model judges; nothing is opened or read before a grader asks."""
  backend = local_judge.LocalJudge(config) if config.local else None
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
    raise ValueError(f'config.{name}={value}: cannot be read ({error.strerror}); need a JSON '
                     'object or the path of one') from error
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})'
                    ) from error


def _examples(config, chat, fields, training):
  """Returns (train rows for each stage, validation rows, warnings), each file read once.

  A file that a supervised stage learns from may serve a reinforced one too: its targets are then
  left aside.
  """
  sources = [stage.data or config.data.train for stage in config.stages]
  taught = {source for source, stage in zip(sources, config.stages)
            if ALGORITHMS[stage.algorithm].SUPERVISED}
  if not training:  # the training rows are not needed, and may be gone
    sources, taught = [], {config.data.validation} if taught and not config.sft.target else set()
  loaded, warnings = {}, []
  for source in dict.fromkeys(sources or [config.data.validation]):
    *loaded[source], found = rows.load(
        dataclasses.replace(config.data, train=source), chat=chat, item_fields=fields,
        supervised=source in taught, target_template=config.sft.target if source in taught else '')
    warnings += [line for line in found if training and line not in warnings]
  validation = next(iter(loaded.values()))[1]
  return ([loaded[source][0] for source in sources], validation[:config.evaluate.rows or None],
          warnings)


def _check_teacher(source, chat) -> int:
  """Returns how many positions the teacher has; raises where its tokens are not the policy's."""
  directory = hf.resolve(source)
  positions = hf.read_config(directory).max_positions
  found = tokenizers.differences(chat.tokenizer, tokenizers.load(directory))
  if found:
    raise ValueError('\n  '.join([
        f'config.distillation.teacher={source} has another tokenizer than config.model.source; it '
        f'would be asked about other tokens than those sampled. {len(found)} differences, first '
        '(policy, then teacher):', *found[:5],
        'Need a teacher of the same vocabulary, of the same family for example. Where an end id '
        'alone differs, copy the teacher and give the copy the tokenizer_config.json of the '
        'policy.']))
  return positions


def _check_lengths(config, train, validation, positions):
  """Raises if a prompt with its completion needs more positions than the model has."""
  new = config.rollout.max_new_tokens
  supervised = [max(len(e.prompt_ids) + len(e.target_ids) for e in examples)
                for examples in train if examples[0].target_ids is not None]
  longest = max(len(e.prompt_ids) for examples in [*train, validation] for e in examples)
  if max([longest + new, *supervised]) > positions:
    raise ValueError(
        f'the longest prompt has {longest} tokens; with rollout.max_new_tokens={new}'
        f'{" (longest supervised row: %d)" % max(supervised) if supervised else ""} that is more '
        f'than the {positions} positions of model or teacher (max_position_embeddings); lower '
        'rollout.max_new_tokens, or set data.max_prompt_tokens with data.overlong=drop')
