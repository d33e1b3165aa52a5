"""From a Config to its rows: training examples of each stage, held-out examples, their lengths."""

import dataclasses

from rft_jax.data import preferences, rows


def load_examples(config, chat, item_fields, training: bool):
  """Returns (train examples of each stage, held-out examples, warnings), each file read once.

  A file that a supervised stage learns from may serve a reinforced one too, and one of pairs both:
  supervised stages learn the chosen answers. Fields that a stage does not need are ignored.

  Args:
    item_fields: the fields of a row that the graders read.
    training: False leaves the training rows unread.
  """
  sources = [stage.data or config.data.train for stage in config.stages]
  kinds = config.learns_from()
  held_out_kind = next((kind for kind in preferences.KINDS if kind in kinds), '')
  if not training:  # the training rows are not needed, and may be gone
    if not held_out_kind and 'targets' in kinds and not config.sft.target:
      held_out_kind = 'targets'
    sources, kinds = [config.data.validation], [held_out_kind or 'prompts']
  loaded, warnings = {}, []  # (source, kind) -> (training examples, held-out examples)
  for source in dict.fromkeys(sources):
    source_kinds = [kind for other, kind in zip(sources, kinds) if other == source]
    for kind in _kinds_to_read(source_kinds):
      *loaded[source, kind], row_warnings = rows.load(
        dataclasses.replace(config.data, train=source),
        chat=chat,
        item_fields=item_fields,
        kind=kind,
        held_out=held_out_kind,
        target_template=config.sft.target if kind == 'targets' else '',
        graded=bool({'prompts', 'targets'} & {*source_kinds}),
      )
      warnings += [line for line in row_warnings if training and line not in warnings]
  validation = next(iter(loaded.values()))[1]
  train = []
  if training:
    train = [_of_stage(loaded, source, kind) for source, kind in zip(sources, kinds)]
  return train, validation[: config.evaluate.rows or None], warnings


def _of_stage(loaded, source, kind):
  """Returns the examples of a file for a stage that learns from `kind`."""
  kinds = {loaded_kind for loaded_source, loaded_kind in loaded if loaded_source == source}
  if kind not in kinds:
    kind = next(other for other in ('pairs', 'targets') if other in kinds)
  return loaded[source, kind][0]


def _kinds_to_read(kinds):
  """Returns the kinds as which a file must be read so that each of its stages has its examples."""
  if 'pairs' in kinds:
    return ['pairs'] + ['answers'] * ('answers' in kinds)
  return [
    kind
    for kind in ('targets', 'answers', 'prompts')
    if kind in kinds and (kind != 'prompts' or 'targets' not in kinds)
  ]


def check_lengths(config, train, validation, max_positions: int) -> None:
  """Raises ValueError if a prompt with its completion needs more positions than there are.

  Args:
    max_positions: of the policy, or of the teacher or critic if that has fewer.
  """
  new_tokens = 0 if config.ungraded() else config.rollout.max_new_tokens
  examples = [example for split in [*train, validation] for example in split]
  target_lengths = [
    len(example.prompt_ids) + max(len(example.target_ids), len(example.rejected_ids or ()))
    for example in examples
    if example.target_ids is not None
  ]
  longest = max(len(example.prompt_ids) for example in examples)
  if max([longest + new_tokens, *target_lengths]) <= max_positions:
    return
  targets = f' (longest row with its answer: {max(target_lengths)})' if target_lengths else ''
  raise ValueError(
    f'the longest prompt has {longest} tokens; with rollout.max_new_tokens={new_tokens}{targets} '
    f'that is more than the {max_positions} positions of model or teacher '
    '(max_position_embeddings); lower rollout.max_new_tokens, or set data.max_prompt_tokens and '
    'data.max_completion_tokens with data.overlong=drop'
  )
