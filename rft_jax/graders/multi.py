"""The `multi` grader: several graders, and a formula that makes one score of theirs."""

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

  The `multi` grader of the OpenAI API. The keys of `graders` are the names that
  `calculate_output` may use; formula.py has its grammar. A list of graders is taken by their
  names. components holds the score of each grader under its key; the score of the formula is
  the reward itself.

      {'type': 'multi', 'name': 'both', 'calculate_output': '0.8 * gene + 0.2 * format',
       'graders': {'gene': {'type': 'string_check', ...}, 'format': {'type': 'python', ...}}}

  A grader fault in any of them makes the reward None. Otherwise a policy fault in any makes it
  ungradable_reward: as a 0 in the formula it could pay, in `1 - penalty`. A formula without a
  finite value for some scores is the grader fault formula_parse_error. Details of errors begin
  with the key of their grader.

  Raises:
    ValueError: at construction, listing every problem, those of the graders with their path:
      graders.gene.operation.
  """

  name: str
  graders: dict[str, dict[str, Any]] | list[dict[str, Any]]
  calculate_output: str
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  make_part: base.PartMaker | None = None
  parts: dict[str, base.Grader] = dataclasses.field(init=False, repr=False)
  tallies: dict[str, base.Tally] = dataclasses.field(init=False, repr=False)  # by key
  _tree: formula.Node = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    given = _by_key(self.graders)[0]
    object.__setattr__(self, 'graders', given)
    object.__setattr__(self, '_tree', formula.parse(self.calculate_output, given))
    object.__setattr__(self, 'parts', self._made(given))
    object.__setattr__(
      self, 'tallies', {key: _own_tally(part) or base.Tally() for key, part in self.parts.items()}
    )

  def _made(self, given) -> dict[str, base.Grader]:
    made, problems = {}, []
    for key, grader in given.items():
      try:
        made[key] = self.make_part(grader)
      except (ValueError, RuntimeError) as error:
        problems.append(f'graders.{key}: {error}')
    if problems:
      for part in made.values():
        part.close()
      base.raise_problems(self.name, problems)
    return made

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    found, graders = base.threshold_problems(given), {}
    if 'graders' in given:
      graders, problems = _by_key(given['graders'])
      found.extend(problems)
      found.extend(_part_problems(graders, given.get('make_part')))
    if 'calculate_output' in given and graders:
      try:
        formula.parse(given['calculate_output'], graders)
      except formula.FormulaError as error:
        found.append(f'calculate_output: {error}')
    return found

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order; the graders work side by side."""
    if not pairs:
      return []
    pooled = [key for key, part in self.parts.items() if hasattr(part, 'many')]
    with concurrent.futures.ThreadPoolExecutor(max(1, len(pooled)), 'multi') as threads:
      # Those that have many() wait for processes or answers; the others use this thread alone.
      waiting = {key: threads.submit(self._column, key, pairs) for key in pooled}
      columns = {key: self._column(key, pairs) for key in self.parts if key not in waiting}
      columns.update({key: work.result() for key, work in waiting.items()})
    return [self._grade({key: columns[key][n] for key in self.parts}) for n in range(len(pairs))]

  def _column(self, key, pairs) -> list[Grade]:
    """Returns the grades of one part, counted in its tally."""
    part, began = self.parts[key], time.perf_counter()
    grades = base.try_all(part, pairs)
    if not _own_tally(part):
      seconds = (time.perf_counter() - began) / len(pairs)
      for grade in grades:
        self.tallies[key].add(grade.errors, seconds)
    return grades

  def _grade(self, grades: dict[str, Grade]) -> Grade:
    components, scores, errors = {}, {}, {}
    for key, grade in grades.items():
      name = self.parts[key].name
      scores[key] = None if grade.components.get(name, 0.0) is None else grade.reward
      components[key] = scores[key]
      components.update(
        {f'{key}/{other}': value for other, value in grade.components.items() if other != name}
      )
      _merge(errors, key, grade.errors)
    if any(grade.reward is None for grade in grades.values()):
      return Grade(None, components, errors)
    if None in scores.values():
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
    """Returns the paths of item that its graders surely read; None if none of them can tell.

    Those of a python grader, which cannot, may come on top: what is known is checked anyway.
    """
    known = [fields for part in self.parts.values() if (fields := part.item_fields()) is not None]
    return frozenset().union(*known) if known else None

  @property
  def isolation(self) -> str | None:
    """The level at which parts run code; None: no part does."""
    return next(
      (level for part in self.parts.values() if (level := getattr(part, 'isolation', None))), None
    )

  @property
  def waits_for_all(self) -> bool:
    """Whether a part is to be given all answers of a step at once."""
    return any(getattr(part, 'waits_for_all', False) for part in self.parts.values())

  def close(self) -> None:
    """Closes its graders."""
    for part in self.parts.values():
      part.close()


def _by_key(graders: Any) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Returns ({key: grader's JSON, named}, problems); what is no grader is left out."""
  if isinstance(graders, (list, tuple)):
    keyed = [
      (grader.get('name') if isinstance(grader, dict) else None, f'graders[{n}]', grader)
      for n, grader in enumerate(graders)
    ]
  elif isinstance(graders, dict):
    keyed = [(key, f'graders.{key}', grader) for key, grader in graders.items()]
  else:
    return {}, [f'graders is {template.kind(graders)}, need an object of graders by their names']
  found, problems = {}, []
  for key, path, grader in keyed:
    if not isinstance(grader, dict):
      problems.append(f'{path} is {template.kind(grader)}, need the JSON object of a grader')
    elif key is None:
      problems.append(f"{path}: field 'name' is missing: the formula needs it in a list of graders")
    elif problem := formula.name_problem(key):
      problems.append(f'{path}: the name {problem}')
    elif key in found:
      problems.append(f'{path}: the name {key!r} is taken by another grader; rename one')
    else:
      found[key] = {**grader, 'name': grader.get('name') or key}
  if not keyed:
    problems.append('graders is empty, need at least one grader')
  return found, problems


def _part_problems(graders: dict[str, dict[str, Any]], make_part) -> list[str]:
  found = [
    f'graders.{key}: a multi cannot stand inside a multi; put its graders beside the others '
    'and its formula into this one'
    for key, grader in graders.items()
    if grader.get('type') == 'multi'
  ]
  if make_part is None:
    return [*found, 'make_part is None, need graders.make(...), which can make its graders']
  return found + [
    f'graders.{key}{_joint(problem, grader)}{problem}'
    for key, grader in graders.items()
    if grader.get('type') != 'multi'
    for problem in make_part.problems(grader)
  ]


def _joint(problem: str, grader: dict[str, Any]) -> str:
  """Returns '.' before a problem that begins with a field of the grader, otherwise ': '."""
  return '.' if re.match(r'\w*', problem)[0] in grader else ': '


def _own_tally(part: base.Grader) -> base.Tally | None:
  """Returns the tally that a part keeps of itself, if it does."""
  return getattr(part, 'tallies', {}).get(part.name)


def _merge(errors: dict[str, bool | str], key: str, more: dict[str, bool | str]) -> None:
  """Adds the errors of the grader called key; a detail says whose it is, after earlier ones."""
  for name, value in more.items():
    if isinstance(value, str):
      value = f'{key}: {value}' if key else value
      value = f'{errors[name]}\n{value}' if name in errors else value
    errors[name] = value
