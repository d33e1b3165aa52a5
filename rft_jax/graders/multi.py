"""The `multi` grader: combines the scores of several graders by a formula."""

import concurrent.futures
import dataclasses
import re
import time
from typing import Any

from rft_jax.graders import base, formula, template
from rft_jax.types import Grade


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Multi:
  """Scores by a formula over the scores of its graders.

  The `multi` grader of the OpenAI API. The keys of `graders` are the names in `calculate_output`,
  whose grammar is in formula.py; for a list of graders the keys are their names. components holds
  the score of each grader under its key; the value of the formula is the reward.

      {'type': 'multi', 'name': 'both', 'calculate_output': '0.8 * gene + 0.2 * format',
       'graders': {'gene': {'type': 'string_check', ...}, 'format': {'type': 'python', ...}}}

  After a grader fault in any of them the reward is None. Otherwise after a policy fault in any it
  is ungradable_reward: a score of 0 in the formula could increase the reward, as in `1 - penalty`.
  A formula without a finite value for the scores is the grader fault formula_parse_error. Details
  of errors begin with the key of their grader.

  Raises:
    ValueError: at construction, listing every problem, those of the parts with their path:
      graders.gene.operation.
  """

  name: str
  graders: dict[str, dict[str, Any]] | list[dict[str, Any]]
  calculate_output: str
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  make_part: base.PartMaker | None = None
  parts: dict[str, base.Grader] = dataclasses.field(init=False, repr=False)
  tallies: dict[str, base.Tally] = dataclasses.field(init=False, repr=False)  # by key
  _tree: formula.Node = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    graders = _by_key(self.graders)[0]
    object.__setattr__(self, 'graders', graders)
    object.__setattr__(self, '_tree', formula.parse(self.calculate_output, graders))
    object.__setattr__(self, 'parts', self._make_parts(graders))
    object.__setattr__(
      self, 'tallies', {key: _own_tally(part) or base.Tally() for key, part in self.parts.items()}
    )

  def _make_parts(self, graders) -> dict[str, base.Grader]:
    assert self.make_part is not None  # problems() requires it
    parts, problems = {}, []
    for key, grader in graders.items():
      try:
        parts[key] = self.make_part(grader)
      except (ValueError, RuntimeError) as error:
        problems.append(f'graders.{key}: {error}')
    if problems:
      for part in parts.values():
        part.close()
      base.raise_problems(self.name, problems)
    return parts

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    problems = base.threshold_problems(fields)
    graders: dict[str, dict[str, Any]] = {}
    if 'graders' in fields:
      graders, key_problems = _by_key(fields['graders'])
      problems.extend(key_problems)
      problems.extend(_part_problems(graders, fields.get('make_part')))
    if 'calculate_output' in fields and graders:
      try:
        formula.parse(fields['calculate_output'], graders)
      except formula.FormulaError as error:
        problems.append(f'calculate_output: {error}')
    return problems

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order; the parts work concurrently."""
    if not pairs:
      return []
    threaded = [key for key, part in self.parts.items() if hasattr(part, 'many')]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(threaded)), 'multi') as threads:
      # Parts with many() wait for processes or responses; the others compute in this thread.
      futures = {key: threads.submit(self._column, key, pairs) for key in threaded}
      columns = {key: self._column(key, pairs) for key in self.parts if key not in futures}
      columns.update({key: future.result() for key, future in futures.items()})
    return [self._grade({key: columns[key][n] for key in self.parts}) for n in range(len(pairs))]

  def _column(self, key, pairs) -> list[Grade]:
    """Returns the grades of one part, and counts them in its tally."""
    part, start_time = self.parts[key], time.perf_counter()
    grades = base.grade_all(part, pairs)
    if not _own_tally(part):
      seconds = (time.perf_counter() - start_time) / len(pairs)
      for grade in grades:
        self.tallies[key].add(grade.errors, seconds)
    return grades

  def _grade(self, grades: dict[str, Grade]) -> Grade:
    components: dict[str, float | None] = {}
    scores: dict[str, float] = {}  # of the parts without a fault
    errors: dict[str, bool | str] = {}
    for key, grade in grades.items():
      name = self.parts[key].name
      score = None if grade.components.get(name, 0.0) is None else grade.reward
      if score is not None:
        scores[key] = score
      components[key] = score
      components.update(
        {f'{key}/{other}': value for other, value in grade.components.items() if other != name}
      )
      _merge(errors, key, grade.errors)
    if any(grade.reward is None for grade in grades.values()):
      return Grade(None, components, errors)
    if len(scores) < len(grades):  # a policy fault
      return Grade(self.ungradable_reward, components, errors)
    try:
      reward = formula.evaluate(self._tree, scores)
    except formula.FormulaError as error:
      _merge(
        errors,
        '',
        {
          'formula_parse_error': True,
          'formula_parse_error_details': f'{self.calculate_output}: {error}',
        },
      )
      return Grade(None, components, errors)
    return Grade(reward, components, errors)

  def item_fields(self) -> frozenset[str] | None:
    """Returns the paths of item that every call of its parts reads; None if no part knows them.

    A python grader, which does not know them, may read more: the known ones are checked anyway.
    """
    paths = [fields for part in self.parts.values() if (fields := part.item_fields()) is not None]
    return frozenset().union(*paths) if paths else None

  @property
  def isolation(self) -> str | None:
    """The isolation level of the first part that runs code; None if no part does."""
    return next(
      (level for part in self.parts.values() if (level := getattr(part, 'isolation', None))), None
    )

  @property
  def waits_for_all(self) -> bool:
    """Whether a part needs all answers of a step in one call."""
    return any(getattr(part, 'waits_for_all', False) for part in self.parts.values())

  def close(self) -> None:
    """Closes its parts."""
    for part in self.parts.values():
      part.close()


def _by_key(graders: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Returns ({key: a grader's JSON with its name}, problems); invalid entries are left out."""
  if isinstance(graders, (list, tuple)):
    keyed = [
      (grader.get('name') if isinstance(grader, dict) else None, f'graders[{n}]', grader)
      for n, grader in enumerate(graders)
    ]
  elif isinstance(graders, dict):
    keyed = [(key, f'graders.{key}', grader) for key, grader in graders.items()]
  else:
    return {}, [f'graders is {template.json_type(graders)}, need an object: name -> grader']
  grader_by_key, problems = {}, []
  for key, path, grader in keyed:
    if not isinstance(grader, dict):
      problems.append(f'{path} is {template.json_type(grader)}, need the JSON object of a grader')
    elif key is None:
      problems.append(f"{path}: field 'name' is missing: in a list of graders the formula uses it")
    elif problem := formula.name_problem(key):
      problems.append(f'{path}: the name {problem}')
    elif key in grader_by_key:
      problems.append(f'{path}: the name {key!r} is used by another grader; rename one')
    else:
      grader_by_key[key] = {**grader, 'name': grader.get('name') or key}
  if not keyed:
    problems.append('graders is empty, need at least one grader')
  return grader_by_key, problems


def _part_problems(graders: dict[str, dict[str, Any]], make_part) -> list[str]:
  problems = [
    f'graders.{key}: a multi cannot be inside a multi; add its graders to the others and its '
    'formula to this one'
    for key, grader in graders.items()
    if grader.get('type') == 'multi'
  ]
  if make_part is None:
    return [*problems, 'make_part is None; construct a multi grader with graders.make(...)']
  return problems + [
    f'graders.{key}{_separator(problem, grader)}{problem}'
    for key, grader in graders.items()
    if grader.get('type') != 'multi'
    for problem in make_part.problems(grader)
  ]


def _separator(problem: str, grader: dict[str, Any]) -> str:
  """Returns '.' before a problem that begins with a field of the grader, otherwise ': '."""
  return '.' if re.split(r'\W', problem, maxsplit=1)[0] in grader else ': '


def _own_tally(part: base.Grader) -> base.Tally | None:
  """Returns the tally that a part updates itself, if it has one."""
  return getattr(part, 'tallies', {}).get(part.name)


def _merge(errors: dict[str, bool | str], key: str, part_errors: dict[str, bool | str]) -> None:
  """Adds the errors of the part called key; its details get the key as prefix and are appended."""
  for name, value in part_errors.items():
    if isinstance(value, str):
      value = f'{key}: {value}' if key else value
      value = f'{errors[name]}\n{value}' if name in errors else value
    errors[name] = value
