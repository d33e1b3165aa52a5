"""Reward models as Hugging Face checkpoints: ...ForSequenceClassification with one label.

The tokenizer's files are copied from the source, with another padding token where need be
(padding.py); the stop ids, which end an answer, are an argument, see data/stop_ids.py.
"""

import dataclasses
import pathlib

import jax

from rft_jax import models
from rft_jax.hf import weights
from rft_jax.hf.config import read_config, read_optional_json
from rft_jax.hf.directory import copy_other_files, write_directory, write_json
from rft_jax.hf.export import check_structure, model_tensors, read_source_config, write_card
from rft_jax.hf.hub import resolve
from rft_jax.hf.load import leaves, read_tree
from rft_jax.hf.padding import pad_id_for, set_pad_token
from rft_jax.models import Critic, Decoder, WeightRule

SCORE = 'score.weight'
ARCHITECTURE_SUFFIX = 'ForSequenceClassification'
_REMEDY = (
  'give the export of a run whose last stage is reward_model, or a checkpoint of '
  f'a ...{ARCHITECTURE_SUFFIX} with num_labels=1'
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

  The logit of a row is the score of the conversation that it holds. The head of the token logits is
  not written. What else is in the directory, and the other arguments: see hf.export.

  Args:
    critic: a head with a decoder of its own, or on trunk.
    config: the DecoderConfig of that decoder.
    source: the directory or hub id that the decoder was loaded from.
    trunk: the decoder that the head is applied to where the critic has none.
    stop_ids: ids that end an answer, besides config.eos_ids; padding gets another id.
    chat_template: Jinja, in place of the source's; '': the source's.

  Raises:
    ValueError: the model is not one that the source's config.json describes, or every special
      token ends an answer, so that none is left for padding.
  """
  directory = resolve(source)
  hf = read_source_config(directory)
  headless = dataclasses.replace(config, tied_head=True)
  source_config = dataclasses.replace(models.family_of(hf).config(hf), tied_head=True)
  check_structure(headless, source_config, directory)
  pad_id = pad_id_for(config, {*config.eos_ids, *stop_ids}, directory)
  hf |= _config_json_changes(hf, config, pad_id, dtype)

  def write_other_files(scratch):
    copy_other_files(directory, scratch)
    write_json(scratch / 'config.json', hf)
    set_pad_token(scratch, pad_id)
    if chat_template:
      (scratch / 'chat_template.jinja').write_text(chat_template, encoding='utf-8')
    write_card(scratch, card, source=source, dtype=dtype, reward_model=True)

  tensors = model_tensors(_without_logits_head(critic, trunk), headless, _rules(headless))
  return write_directory(
    tensors, to, write_other_files, dtype=dtype, force=force, shard_bytes=shard_bytes
  )


def _config_json_changes(hf, config, pad_id, dtype) -> dict:
  """Returns the fields that a reward model's config.json has instead of the source's."""
  architecture = models.FAMILIES[config.model_type].ARCHITECTURE
  return {
    'architectures': [architecture.removesuffix('ForCausalLM') + ARCHITECTURE_SUFFIX],
    'pad_token_id': pad_id,
    'id2label': {'0': 'score'},
    'label2id': {'score': 0},
    'problem_type': None,
    'torch_dtype' if 'torch_dtype' in hf else 'dtype': dtype,
  }


def load_reward_model(source, *, dtype: str = 'float32', attention: str = 'auto', mesh=None):
  """Returns (Critic with a decoder of its own, its DecoderConfig) of a reward model.

  Args:
    source, dtype, attention, mesh: as in hf.load.

  Raises:
    FileNotFoundError: no such checkpoint, or a part of it is absent.
    ValueError: as hf.load, or it is no reward model: no score.weight, or several labels.
  """
  directory = resolve(source)
  critic = abstract_reward_model(directory, dtype=dtype, attention=attention)
  config = critic.decoder.config
  tensors = weights.list_tensors(directory)
  if problem := _problem(tensors, directory):
    raise ValueError(problem)
  untied = models.FAMILIES[config.model_type].weights(dataclasses.replace(config, tied_head=False))
  tensors.pop(untied['head/kernel'].name, None)
  return read_tree(critic, _rules(config), tensors, config, directory, mesh), config


def abstract_reward_model(source, *, dtype: str = 'float32', attention: str = 'auto') -> Critic:
  """Returns the Critic of load_reward_model with ShapeDtypeStructs as leaves."""
  config = dataclasses.replace(
    read_config(resolve(source), dtype=dtype, attention=attention), tied_head=True
  )  # it has no logits
  return jax.eval_shape(lambda: Critic(config.dim, models.init(config, jax.random.key(0))))


def reward_model_problems(source) -> list[str]:
  """Returns why source is no reward model, without reading its weights; [] if it is one."""
  try:
    directory = resolve(source)
    read_config(directory)
    problem = _problem(weights.list_tensors(directory), directory)
  except (ValueError, OSError) as error:
    return [str(error)]
  return [problem] if problem else []


def _problem(tensors, directory) -> str:
  """Returns why a checkpoint's tensors are not those of a reward model; '' if they are."""
  if SCORE not in tensors:
    architectures = (read_optional_json(directory / 'config.json') or {}).get('architectures')
    return (
      f'{directory}: no tensor {SCORE} (architectures {architectures}), expected a reward model; '
      f'{_REMEDY}'
    )
  labels = tensors[SCORE].shape[0]
  if labels != 1:
    return (
      f'{directory}: {SCORE} {list(tensors[SCORE].shape)}, so num_labels={labels}, expected 1: '
      f'one number for an answer; {_REMEDY}'
    )
  return ''


def _rules(headless) -> dict[str, WeightRule]:
  """Returns the WeightRule of each leaf of a Critic with a decoder of this config."""
  decoder_rules = models.FAMILIES[headless.model_type].weights(headless)
  return {f'decoder/{name}': rule for name, rule in decoder_rules.items()} | {
    'score/kernel': WeightRule(SCORE, 'transpose')
  }


def _without_logits_head(critic, trunk) -> dict:
  """Returns {'decoder': leaves but the logits' head, 'score': the score head}."""
  decoder = leaves(trunk if critic.decoder is None else critic.decoder)
  decoder.pop('head/kernel', None)
  return {'decoder': decoder, 'score': critic.score}
