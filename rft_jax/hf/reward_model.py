"""Reward models as Hugging Face keeps them: ...ForSequenceClassification with one label.

transformers finds the last token of a row by its id: the last one that is not pad_token_id. Where
padding has the id that ends an answer, as in many checkpoints, it would score the token before. So
what is exported here pads with another id, in config.json and in the tokenizer's files alike.
"""

import dataclasses
import json
import pathlib

import jax
import tokenizers

from rft_jax import models
from rft_jax.hf import weights
from rft_jax.hf.card import model_card
from rft_jax.hf.export import (
  copy_others,
  leaves_as_tensors,
  refuse_other_structure,
  write_directory,
  write_json,
)
from rft_jax.hf.load import leaves, read_config, read_json, read_tree, resolve
from rft_jax.models import Critic, Decoder, WeightRule

SCORE = 'score.weight'
KIND = 'ForSequenceClassification'
_WAY_OUT = (
  'give the export of a run whose last stage is reward_model, or a checkpoint of '
  f'a ...{KIND} with num_labels=1'
)


def export_reward_model(
  critic: Critic,
  config,
  *,
  to,
  source,
  trunk: Decoder | None = None,
  stop_ids=(),
  chat_template: str = '',
  card: dict | None = None,
  dtype: str = 'float32',
  force: bool = False,
  shard_bytes: int = 5 * 10**9,
) -> pathlib.Path:
  """Writes a directory that transformers loads with AutoModelForSequenceClassification.

  The logit of a row is the score of the conversation that it holds. Logits of tokens are not
  written. See hf.export for what else lies in the directory, and for what is not said here.

  Args:
    critic: a head with a decoder of its own, or on trunk.
    config: the DecoderConfig of that decoder.
    source: the directory or hub id that it began as.
    trunk: what the head reads where the critic has no decoder.
    stop_ids: what ends an answer, beside config.eos_ids; padding gets another id.
    chat_template: Jinja, in place of the source's; '': that.

  Raises:
    ValueError: the model is not one that the source's config.json describes, or every special
      token ends an answer, so that none is left for padding.
  """
  directory = resolve(source)
  hf = read_json(directory / 'config.json')
  if hf is None:
    raise FileNotFoundError(f'{directory}: no config.json to export with')
  headless = dataclasses.replace(config, tied_head=True)
  described = dataclasses.replace(models.family_of(hf).config(hf), tied_head=True)
  refuse_other_structure(headless, described, directory)
  pad_id = _pad_id(config, {*config.eos_ids, *stop_ids}, directory)
  hf |= {
    'architectures': [config.model_type.capitalize() + KIND],
    'pad_token_id': pad_id,
    'id2label': {'0': 'score'},
    'label2id': {'score': 0},
    'problem_type': None,
    'torch_dtype' if 'torch_dtype' in hf else 'dtype': dtype,
  }

  def others(scratch):
    copy_others(directory, scratch)
    write_json(scratch / 'config.json', hf)
    _pad_with(scratch, pad_id)
    if chat_template:
      (scratch / 'chat_template.jinja').write_text(chat_template, encoding='utf-8')
    text = model_card(
      card or {},
      source=str(source),
      is_hub_id=not pathlib.Path(source).is_dir(),
      dtype=dtype,
      reward_model=True,
    )
    (scratch / 'README.md').write_text(text, encoding='utf-8')

  tensors = leaves_as_tensors(_whole(critic, trunk), headless, _rules(headless))
  return write_directory(tensors, to, others, dtype=dtype, force=force, shard_bytes=shard_bytes)


def load_reward_model(source, *, dtype: str = 'float32', attention: str = 'auto', mesh=None):
  """Returns (Critic with a decoder of its own, its DecoderConfig) of a reward model.

  Args:
    source, dtype, attention, mesh: as in hf.load.

  Raises:
    FileNotFoundError: no such checkpoint, or a part of it is absent.
    ValueError: what hf.load raises, or it is no reward model: no score.weight, or several labels.
  """
  directory = resolve(source)
  critic = abstract_reward_model(directory, dtype=dtype, attention=attention)
  config = critic.decoder.config
  found = weights.index(directory)
  if problem := _kind_problem(found, directory):
    raise ValueError(problem)
  untied = models.FAMILIES[config.model_type].weights(dataclasses.replace(config, tied_head=False))
  found.pop(untied['head/kernel'].name, None)
  return read_tree(critic, _rules(config), found, config, directory, mesh), config


def abstract_reward_model(source, *, dtype: str = 'float32', attention: str = 'auto') -> Critic:
  """Returns what load_reward_model gives, with ShapeDtypeStructs for leaves."""
  config = dataclasses.replace(
    read_config(resolve(source), dtype=dtype, attention=attention), tied_head=True
  )  # it has no logits
  return jax.eval_shape(lambda: Critic(config.dim, models.init(config, jax.random.key(0))))


def reward_model_problems(source) -> list[str]:
  """Returns why source is no reward model, without reading its weights; [] if it is one."""
  try:
    directory = resolve(source)
    read_config(directory)
    problem = _kind_problem(weights.index(directory), directory)
  except (ValueError, OSError) as error:
    return [str(error)]
  return [problem] if problem else []


def _kind_problem(found, directory) -> str:
  """Returns why a checkpoint's tensors are no reward model; '' if they are one."""
  if SCORE not in found:
    kinds = (read_json(directory / 'config.json') or {}).get('architectures')
    return (
      f'{directory}: no tensor {SCORE} (architectures {kinds}), expected a reward model; {_WAY_OUT}'
    )
  labels = found[SCORE].shape[0]
  if labels != 1:
    return (
      f'{directory}: {SCORE} {list(found[SCORE].shape)}, so num_labels={labels}, expected 1: '
      f'one number for an answer; {_WAY_OUT}'
    )
  return ''


def _rules(headless) -> dict[str, WeightRule]:
  """Returns the WeightRule of each leaf of a Critic with a decoder of this config."""
  of_decoder = models.FAMILIES[headless.model_type].weights(headless)
  return {f'decoder/{name}': rule for name, rule in of_decoder.items()} | {
    'score/kernel': WeightRule(SCORE, 'transpose')
  }


def _whole(critic, trunk):
  """Returns {'decoder', 'score'} without the head of the logits."""
  decoder = leaves(trunk if critic.decoder is None else critic.decoder)
  decoder.pop('head/kernel', None)
  return {'decoder': decoder, 'score': critic.score}


# --- padding -------------------------------------------------------------------------------------
def _pad_id(config, stops, directory) -> int:
  """Returns the id to pad with: the checkpoint's own unless it ends answers, else another."""
  for token in (config.pad_id, config.bos_id, *_special_ids(directory)):
    if token is not None and token not in stops and token < config.vocab_size:
      return token
  raise ValueError(
    f'{directory}: every special token ends an answer ({sorted(stops)}), and '
    'transformers needs another one for padding; add one to the tokenizer'
  )


def _special_ids(directory) -> list[int]:
  tokenizer = _tokenizer(directory)
  return (
    sorted(id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    if tokenizer
    else []
  )


def _pad_with(scratch, pad_id):
  """Lets the tokenizer in a directory pad with an id, as the model beside it does."""
  tokenizer = _tokenizer(scratch)
  token = tokenizer.id_to_token(pad_id) if tokenizer else None
  for name in ('tokenizer_config.json', 'special_tokens_map.json'):
    settings = read_json(scratch / name)
    if token is not None and settings is not None:
      (scratch / name).write_text(
        json.dumps(settings | {'pad_token': token}, indent=2, ensure_ascii=False) + '\n',
        encoding='utf-8',
      )


def _tokenizer(directory):
  path = directory / 'tokenizer.json'
  return tokenizers.Tokenizer.from_file(str(path)) if path.exists() else None
