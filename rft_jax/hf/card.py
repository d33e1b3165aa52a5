"""Model card (README.md) of an exported model; facts that are not known are stated as such."""

import datetime
import json

import rft_jax

# Key of `card` -> its title in the model card. Without a value it is listed as not known.
FACTS = {
  'base_model': 'Base model',
  'stages': 'Stages of training',
  'data': 'Training data',
  'data_sha256': 'SHA-256 of the training data',
  'validation': 'Held-out data',
  'grader': 'Grader',
  'steps': 'Steps',
  'step': 'Step of these weights',
  'seed': 'Seed',
  'date': 'Date',
  'rft_jax': 'rft_jax version',
}
MEASUREMENTS = ('before', 'after')  # {metric: number or {'mean', 'low', 'high'}}
UNKNOWN = 'not known'
_PIPELINE_TAGS = {False: 'text-generation', True: 'text-classification'}
_INTRODUCTION = {
  False: (
    '# A model fine-tuned with rft_jax',
    '',
    'Weights changed by reinforcement fine-tuning; tokenizer, chat template and generation',
    'settings are those of the base model.',
  ),
  True: (
    '# A reward model made with rft_jax',
    '',
    'It reads a conversation and gives one number, the logit at its last token: the higher,',
    'the more the last answer is to be preferred. Numbers are comparable within a prompt.',
  ),
}


def model_card(
  card: dict, *, source: str, is_hub_id: bool, dtype: str, reward_model: bool = False
) -> str:
  """Returns the text of the model card, README.md.

  Args:
    card: values by the keys of FACTS, `before` and `after`; other keys are their own titles.
      Strings and numbers become a line, everything else a block of JSON.
    source: the directory or hub id that the model was loaded from.
    is_hub_id: source is a hub id, so it is also put in the header that the hub reads.
    dtype: of the weights on disk.
    reward_model: the model scores answers instead of generating them.
  """
  card = {
    'base_model': source,
    'date': datetime.date.today().isoformat(),
    'rft_jax': rft_jax.__version__,
  } | card
  header = [
    'library_name: transformers',
    f'pipeline_tag: {_PIPELINE_TAGS[reward_model]}',
    'tags:',
    '- rft_jax',
  ]
  if is_hub_id:
    name, _, _ = source.partition('@')
    header.insert(0, f'base_model: {name}')
  extra = {key: key for key in card if key not in FACTS and key not in MEASUREMENTS}
  facts = [_fact(title, card.get(key)) for key, title in (FACTS | extra).items()]
  return '\n'.join(
    [
      '---',
      *header,
      '---',
      '',
      *_INTRODUCTION[reward_model],
      f'Stored as {dtype}.',
      '',
      '## Before and after',
      '',
      *_measurements(card),
      '',
      '## How it was made',
      '',
      *facts,
      '',
      '## Limits',
      '',
      'The figures above hold for the held-out data named here, and for nothing else. What the',
      'base model gets wrong or must not be used for holds for this model too. Licence: that of',
      'the base model.',
      '',
    ]
  )


def _fact(title, value):
  if value is None:
    return f'- {title}: {UNKNOWN}'
  if isinstance(value, (str, int, float)):
    return f'- {title}: {value}'
  block = json.dumps(value, indent=2, ensure_ascii=False, default=str)
  return '\n'.join(
    [f'- {title}:', '', '  ```json', *('  ' + line for line in block.split('\n')), '  ```']
  )


def _measurements(card):
  """Returns the lines of a table: a row for each metric of `before` or `after`."""
  before, after = (card.get(key) or {} for key in MEASUREMENTS)
  if not before and not after:
    return [f'Held-out figures: {UNKNOWN}.']
  rows = [
    f'| {metric} | {_figure(before.get(metric))} | {_figure(after.get(metric))} |'
    for metric in dict.fromkeys([*before, *after])
  ]
  return [
    'Held-out data; in brackets the 95 % interval.',
    '',
    '| metric | before | after |',
    '|---|---|---|',
    *rows,
  ]


def _figure(value):
  if value is None:
    return UNKNOWN
  if isinstance(value, dict):
    mean = f'{value["mean"]:.4g}'
    if value.get('low') is None or value.get('high') is None:
      return f'{mean} (interval {UNKNOWN})'
    return f'{mean} [{value["low"]:.4g}, {value["high"]:.4g}]'
  return f'{value:.4g} (interval {UNKNOWN})' if isinstance(value, float) else str(value)
