"""Cases from files: JSONL, JSON, Parquet or a hub data set, checked as a whole, made ready once.

A row is OpenAI's: `messages`, optional `tools`, and any other keys; all of it is `item` for
graders. Nothing is trained on before every row of both files has been looked at.
"""

import dataclasses
import hashlib
import json
import pathlib

from rft_jax.data import file_formats, preferences, validate
from rft_jax.data.chat import Chat, RenderError
from rft_jax.data.validate import Problem
from rft_jax.graders import template
from rft_jax.types import Example, Item

_WAY_OUT = (
  'need a .jsonl, .json or .parquet file, a directory of .parquet files, or hub:name or '
  'hub:name:split; `make demo` writes cases to runs/rare_disease_demo/data/'
)


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
  """Which cases are trained on and which are held out. Slots: no field by misspelling."""

  train: str = ''  # required: a file, a directory of Parquet files, hub:name or hub:name:split
  validation: str = ''  # required: the same, of cases that are never trained on
  max_prompt_tokens: int = 2048  # of the rendered prompt
  max_completion_tokens: int = 0  # of each answer that is learnt from; 0: no limit
  overlong: str = 'error'  # a row beyond that: 'error', or 'drop' (counted, and told)

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    problems = [
      f'{name}={source!r}, {_WAY_OUT}'
      for name, source in (('train', self.train), ('validation', self.validation))
      if not _is_source(source)
    ]
    if self.max_prompt_tokens < 1:
      problems.append(f'max_prompt_tokens={self.max_prompt_tokens}, need >= 1')
    if self.max_completion_tokens < 0:
      problems.append(
        f'max_completion_tokens={self.max_completion_tokens}, need >= 0 (0: no limit)'
      )
    if self.overlong not in ('error', 'drop'):
      problems.append(f"overlong={self.overlong!r}, need 'error' or 'drop'")
    return problems


def load(
  config: DataConfig,
  *,
  chat: Chat,
  item_fields=frozenset(),
  kind: str = 'prompts',
  held_out: str = '',
  target_template: str = '',
  graded: bool = True,
) -> tuple[list[Example], list[Example], list[str]]:
  """Returns (train, validation, warnings) with every row rendered and encoded.

  Args:
    config: where the rows are.
    chat: renders and encodes.
    item_fields: paths of the row that graders read for every case ('answer', 'genes[0]'); those
      of target_template are added here.
    kind: what is learnt from a row: 'prompts' (nothing but the prompt is read), 'targets' (of
      target_template, or the row's last assistant turn), 'pairs' or 'answers' (see preferences).
    held_out: the same of validation rows; '': kind, but 'prompts' where a template makes the
      targets. See preferences.held_out_kind.
    target_template: text with {{ item.x }}, the answer to learn; '' for none. Held-out rows need
      no such answer: what is measured on them is sampled.
    graded: whether the rows to train on must have item_fields too.

  Raises:
    ValueError: one, with every error of both files, each kind with its rows and a way out.
  """
  wrong = template.problems(target_template)
  if wrong:
    raise ValueError('\n'.join(['sft.target:', *(f'  {one}' for one in wrong)]))
  kinds = {'train': kind, 'validation': held_out or ('prompts' if target_template else kind)}
  fields = {
    'train': frozenset(item_fields if graded else ()) | template.fields(target_template),
    'validation': frozenset(item_fields),
  }
  sources = {'train': config.train, 'validation': config.validation}
  items, found = {}, {}
  for split, source in sources.items():
    items[split], found[split] = read(source, split=split)
    measured = split == 'validation' or source == config.validation
    if measured and kinds[split] in preferences.KINDS:
      kinds[split] = preferences.held_out_kind(items[split], kinds[split])
    supervised = kind == 'targets' and (kinds[split] == 'targets' or bool(target_template))
    items[split], problems = _checked(items[split], kinds[split], supervised, bool(target_template))
    found[split] += problems
  types = validate.kinds(
    items['train'] + items['validation'], fields['train'] | fields['validation']
  )
  examples = {}
  for split in sources:
    found[split] += validate.item_fields(items[split], fields[split], types)
    sound = _without(items[split], found[split])
    found[split] += _suspicions(sound, fields[split], kinds[split])
    examples[split], problems = _examples(
      sound, config, chat, kinds[split], target_template if split == 'train' else ''
    )
    found[split] += problems
    if not examples[split] and not any(problem.blocks for problem in found[split]):
      found[split].append(Problem('E_COUNT_MIN', 0, '', 'no rows are left', 'need at least one'))
  found['validation'] += validate.overlap(
    _without(items['train'], found['train']), _without(items['validation'], found['validation'])
  )
  errors, warnings = [], []
  for split, source in sources.items():
    name = f'data.{split}={source}'
    errors += validate.report(name, [problem for problem in found[split] if problem.blocks])
    warnings += validate.report(name, [problem for problem in found[split] if not problem.blocks])
  if errors:
    raise ValueError('\n'.join(['data:', *(f'  {error}' for error in errors)]))
  return examples['train'], examples['validation'], warnings


def _without(items, problems):
  """Returns the items that no error names."""
  broken = {problem.line for problem in problems if problem.blocks}
  return [item for item in items if validate.line_of(item) not in broken]


def _checked(items, kind, supervised, with_target):
  """Returns (items, what is wrong with the shape of each); preferences are put in one form."""
  if kind not in preferences.KINDS:
    return items, validate.rows(items, supervised=supervised, with_target=with_target)
  made, problems = preferences.read(items, kind)
  shapes = validate.rows(made, supervised=False, with_target=False)
  return made, problems + preferences.renamed(shapes, items)


def _suspicions(items, fields, kind):
  found = validate.suspicions(items, fields)
  if kind not in preferences.KINDS:
    return found
  # A prompt may well have several pairs, and those of an answer stand next to each other.
  return [
    problem for problem in found if problem.code != 'W_DUPLICATE_PROMPT'
  ] + preferences.contradictions(items)


def _examples(items, config, chat, kind, target_template):
  """Returns (examples, problems) of sound rows."""
  problems, ready, texts = [], [], []
  for item in items:
    try:
      texts.append(_texts(item.row, chat, kind, target_template))
      ready.append(item)
    except RenderError as error:
      problems.append(_unrendered(item, error))
    except template.Fault as fault:
      problems.append(
        Problem(
          'E_ITEM_FIELD_MISSING',
          validate.line_of(item),
          'sft.target',
          str(fault.errors),
          'a target is made of the fields of item alone',
        )
      )
    problems += _control_tokens(item, chat)
  prompts = chat.encode([prompt for prompt, _ in texts])
  examples = []
  for item, (prompt, rests), prompt_ids in zip(ready, texts, prompts, strict=True):
    if len(prompt_ids) > config.max_prompt_tokens:
      problems.append(_overlong(item, 'prompt', len(prompt_ids), config))
      continue
    try:
      answers = [chat.completion_ids(prompt, prompt_ids, rest) for rest in rests]
    except RenderError as error:
      problems.append(_unrendered(item, error))
      continue
    longest = max(map(len, answers), default=0)
    if 0 < config.max_completion_tokens < longest:
      problems.append(_overlong(item, 'completion', longest, config))
    else:
      examples.append(
        Example(
          item,
          prompt_ids,
          answers[0] if answers else None,
          rejected_ids=answers[1] if len(answers) > 1 else None,
          desirable=item.row['label'] if kind == 'answers' else None,
        )
      )
  return examples, problems


def _texts(row, chat, kind, target_template):
  """Returns (prompt, [what may follow it and is learnt]) of one row; the preferred one first."""
  messages, tools = row['messages'], row.get('tools')
  if kind == 'prompts':
    return chat.prompt_text(messages, tools), []
  if kind in preferences.KINDS:
    sides = ('chosen', 'rejected') if kind == 'pairs' else ('completion',)
    texts = [chat.supervised_text([*messages, row[side]], tools) for side in sides]
    return texts[0][0], [rest for _, rest in texts]
  target = None
  if target_template:
    target = template.render(target_template, item=row, sample={})
    if not target.strip():
      raise RenderError(f'the target {target_template!r} is empty for this row')
  prompt, rest = chat.supervised_text(messages, tools, target)
  return prompt, [rest]


def _unrendered(item, error):
  return Problem(
    'E_MESSAGE_NOT_RENDERED',
    validate.line_of(item),
    'messages',
    str(error),
    'change the messages, or set chat.template to a template that renders them '
    "('default' for a plain one)",
  )


def _control_tokens(item, chat):
  found = []
  for index, message in enumerate(item.row['messages']):
    tokens = chat.control_tokens(validate.text_of(message.get('content')))
    if tokens:
      found.append(
        Problem(
          'W_CONTROL_TOKEN',
          validate.line_of(item),
          f'messages[{index}].content',
          f'messages[{index}] spells {tokens[0]!r}, a token with a meaning',
          'the model reads it as that token: take it out unless meant',
        )
      )
  return found


def _overlong(item, what, tokens, config):
  limit = f'max_{what}_tokens'
  told = f'{tokens} {what} tokens, more than {getattr(config, limit)}'
  path = 'messages' if what == 'prompt' else ''
  if config.overlong == 'drop':
    return Problem(
      f'W_{what.upper()}_DROPPED',
      validate.line_of(item),
      path,
      told,
      'left out, as data.overlong=drop asks',
    )
  return Problem(
    f'E_{what.upper()}_TOO_LONG',
    validate.line_of(item),
    path,
    told,
    f'shorten them, raise data.{limit}, or set data.overlong=drop',
  )


def read(source: str, *, split: str = 'train') -> tuple[list[Item], list[Problem]]:
  """Returns (items, problems): every row that is a JSON object, and everything else.

  Parquet and hub data sets cannot tell an absent key from a null: their nulls are left out, so
  that a row reads the same from JSONL and from Parquet.

  Args:
    source: a file, a directory of Parquet files, hub:name or hub:name:split.
    split: of a hub data set where source names none.
  """
  if not _is_source(source):
    return [], [Problem('E_FILE', 0, '', 'there is no such data', _WAY_OUT)]
  try:
    if source.startswith('hub:'):
      name, _, named_split = source[4:].partition(':')
      title, (found, problems) = source, file_formats.read_hub(name, named_split or split)
    else:
      path = pathlib.Path(source)
      suffix = '.parquet' if path.is_dir() else path.suffix
      title, (found, problems) = path.name, file_formats.READERS[suffix](path)
  except Exception as error:  # damaged files and hubs out of reach raise whatever they like
    return [], [
      Problem(
        'E_FILE',
        0,
        '',
        f'{type(error).__name__}: {error}',
        'check that the data set is complete and can be read',
      )
    ]
  items = [Item(row, f'{title}:{line}') for line, row in found]
  if not items and not problems:
    problems.append(Problem('E_COUNT_MIN', 0, '', 'there are no rows', 'need at least one'))
  return items, problems


def fingerprint(source: str, *, split: str = 'train') -> str:
  """Returns the sha256 of the data: of a file's bytes, of a directory's, of a hub's rows."""
  digest = hashlib.sha256()
  if source.startswith('hub:'):
    for item in read(source, split=split)[0]:
      digest.update(json.dumps(item.row, sort_keys=True).encode() + b'\n')
    return digest.hexdigest()
  path = pathlib.Path(source)
  if path.is_file():
    return hashlib.sha256(path.read_bytes()).hexdigest()
  for part in sorted(path.glob('*.parquet')):
    digest.update(f'{part.name} {hashlib.sha256(part.read_bytes()).hexdigest()}\n'.encode())
  return digest.hexdigest()


def _is_source(source):
  if source.startswith('hub:'):
    return bool(source[4:].partition(':')[0])
  path = pathlib.Path(source)
  if source and path.is_dir():
    return any(path.glob('*.parquet'))
  return path.is_file() and path.suffix in file_formats.READERS
