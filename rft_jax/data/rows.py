"""Rows of a data set from JSONL, JSON, Parquet or the hub: read, validated and made examples.

A row is OpenAI's: `messages`, optional `tools`, and any other keys; all of it is `item` for
graders. Training does not start before every row of both files has been validated.
"""

import dataclasses
import hashlib
import json
import pathlib

from rft_jax.data import file_formats, preferences, truncation, validate_dataset, validate_messages
from rft_jax.data.chat import Chat
from rft_jax.data.examples import make_examples
from rft_jax.data.problems import Problem, line_of, summarise
from rft_jax.graders import template
from rft_jax.types import Example, Item

_SOURCES = (
  'need a .jsonl, .json or .parquet file, a directory of .parquet files, or hub:name or '
  'hub:name:split; `make demo` writes cases to runs/rare_disease_demo/data/'
)


@dataclasses.dataclass(slots=True, kw_only=True)
class DataConfig:
  """Which rows are trained on and which are held out. Slots: a misspelt field is an error."""

  train: str = ''  # required: a file, a directory of Parquet files, hub:name or hub:name:split
  validation: str = ''  # required: the same, of rows that are never trained on
  max_prompt_tokens: int = 2048  # of the rendered prompt
  max_completion_tokens: int = 0  # of each completion that is trained on; 0: no limit
  overlong: str = 'error'  # a longer row is an 'error', or 'drop': dropped, with a warning

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need ...'; [] if there is none."""
    problems = [
      f'{name}={source!r}, {_SOURCES}'
      for name, source in (('train', self.train), ('validation', self.validation))
      if not _is_source(source)
    ]
    if self.max_prompt_tokens < 1:
      problems.append(f'max_prompt_tokens={self.max_prompt_tokens}, need >= 1')
    if self.max_completion_tokens < 0:
      problems.append(
        f'max_completion_tokens={self.max_completion_tokens}, need >= 0 (0: no limit)'
      )
    if self.overlong not in truncation.CHOICES:
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
    item_fields: paths of the row that graders read for every row ('answer', 'genes[0]'); those
      of target_template are added.
    kind: what is trained on: 'prompts' (only the prompt is read), 'targets' (made by
      target_template, or the row's last assistant turn), 'pairs' or 'answers' (see preferences).
    held_out: the same for validation rows; '': kind, but 'prompts' where a template makes the
      targets. See preferences.held_out_kind.
    target_template: text with {{ item.x }}, the target of each row; '' for none. Held-out rows
      need no target: they are measured by sampling.
    graded: whether the rows to train on must have item_fields too.

  Raises:
    ValueError: all errors of both files, each kind with its rows and how to repair it.
  """
  if template_problems := template.problems(target_template):
    raise ValueError('\n'.join(['sft.target:', *(f'  {text}' for text in template_problems)]))
  has_template = bool(target_template)
  train = _Split(
    'train',
    config.train,
    kind,
    frozenset(item_fields if graded else ()) | template.fields(target_template),
    target_template,
  )
  validation = _Split(
    'validation',
    config.validation,
    held_out or ('prompts' if has_template else kind),
    frozenset(item_fields),
  )
  for split in (train, validation):
    _read_split(split, held_out_source=config.validation)
    supervised = kind == 'targets' and (split.kind == 'targets' or has_template)
    _check_messages(split, supervised, has_template)
  fields = train.fields | validation.fields
  types = validate_dataset.field_types(train.items + validation.items, fields)
  for split in (train, validation):
    _encode(split, config, chat, types)
  validation.problems += validate_dataset.check_overlap(
    train.valid_items(), validation.valid_items()
  )
  return train.examples, validation.examples, _warnings_unless_errors((train, validation))


@dataclasses.dataclass
class _Split:
  """The rows of config.train or config.validation, with all that is wrong with them."""

  name: str  # 'train' or 'validation'
  source: str
  kind: str  # what is read from its rows, see load
  fields: frozenset[str]  # that every row must have
  target_template: str = ''
  items: list[Item] = dataclasses.field(default_factory=list)
  problems: list[Problem] = dataclasses.field(default_factory=list)
  examples: list[Example] = dataclasses.field(default_factory=list)

  def valid_items(self) -> list[Item]:
    """Returns the items without an error."""
    error_lines = {problem.line for problem in self.problems if problem.blocks}
    return [item for item in self.items if line_of(item) not in error_lines]


def _read_split(split, *, held_out_source):
  """Fills in the items; preferences held out may turn out to be of another kind."""
  split.items, problems = read(split.source, split=split.name)
  split.problems += problems
  is_held_out = split.name == 'validation' or split.source == held_out_source
  if is_held_out and split.kind in preferences.KINDS:
    split.kind = preferences.held_out_kind(split.items, split.kind)


def _check_messages(split, supervised, has_template):
  """Adds the problems of messages and tools; preferences are converted to one format first."""
  if split.kind not in preferences.KINDS:
    split.problems += validate_messages.check_rows(
      split.items, supervised=supervised, with_target=has_template
    )
    return
  file_items = split.items
  split.items, problems = preferences.read(file_items, split.kind)
  problems += preferences.with_file_keys(
    validate_messages.check_rows(split.items, supervised=False, with_target=False), file_items
  )
  split.problems += problems


def _encode(split, config, chat, types):
  """Adds the problems of fields and of the text, and fills in the examples of the valid rows."""
  split.problems += validate_dataset.check_item_fields(split.items, split.fields, types)
  items = split.valid_items()
  split.problems += _dataset_warnings(items, split)
  split.examples, problems = make_examples(
    items, config, chat, kind=split.kind, target_template=split.target_template
  )
  split.problems += problems
  if not split.examples and not any(problem.blocks for problem in split.problems):
    split.problems.append(Problem('E_COUNT_MIN', 0, '', 'no rows are left', 'need at least one'))


def _warnings_unless_errors(splits) -> list[str]:
  """Returns the warnings of both files; raises ValueError with all errors if there are any."""
  errors, warnings = [], []
  for split in splits:
    name = f'data.{split.name}={split.source}'
    errors += summarise(name, [problem for problem in split.problems if problem.blocks])
    warnings += summarise(name, [problem for problem in split.problems if not problem.blocks])
  if errors:
    raise ValueError('\n'.join(['data:', *(f'  {error}' for error in errors)]))
  return warnings


def _dataset_warnings(items, split):
  warnings = validate_dataset.dataset_warnings(items, split.fields)
  if split.kind not in preferences.KINDS:
    return warnings
  # A prompt may have several pairs, and becomes two rows where single answers are trained on.
  return [
    problem for problem in warnings if problem.code != 'W_DUPLICATE_PROMPT'
  ] + preferences.contradictions(items)


def read(source: str, *, split: str = 'train') -> tuple[list[Item], list[Problem]]:
  """Returns (items, problems): every row that is a JSON object, and what is wrong with the others.

  Parquet and hub data sets do not distinguish an absent key from a null: nulls are left out, so
  that a row reads the same from JSONL and from Parquet.

  Args:
    source: a file, a directory of Parquet files, hub:name or hub:name:split.
    split: of a hub data set, if source names none.
  """
  if not _is_source(source):
    return [], [Problem('E_FILE', 0, '', 'there is no such data', _SOURCES)]
  try:
    if source.startswith('hub:'):
      name, _, named_split = source[4:].partition(':')
      title, (rows, problems) = source, file_formats.read_hub(name, named_split or split)
    else:
      path = pathlib.Path(source)
      suffix = '.parquet' if path.is_dir() else path.suffix
      title, (rows, problems) = path.name, file_formats.READERS[suffix](path)
  except Exception as error:  # damaged files and an unreachable hub raise exceptions of any type
    return [], [
      Problem(
        'E_FILE',
        0,
        '',
        f'{type(error).__name__}: {error}',
        'check that the data set is complete and can be read',
      )
    ]
  items = [Item(row, f'{title}:{line}') for line, row in rows]
  if not items and not problems:
    problems.append(Problem('E_COUNT_MIN', 0, '', 'there are no rows', 'need at least one'))
  return items, problems


def fingerprint(source: str, *, split: str = 'train') -> str:
  """Returns the sha256 of the data: of a file's bytes, a directory's files or a hub's rows."""
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
