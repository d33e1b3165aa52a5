"""The `python` grader: a function grade(sample, item) of the user's, run in a sandbox."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import warnings
from typing import Any

from rft_jax.graders import base, template
from rft_jax.graders.sandbox.pool import Sandbox, SandboxConfig
from rft_jax.graders.sandbox.process import Outcome
from rft_jax.types import Grade

NEED = 'need a function grade(sample, item) that returns a float'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Python:
  """Scores by calling grade(sample, item) of the user's source.

  The `python` grader of the OpenAI API. The source is loaded once into a worker process and
  called there for each answer; pool.py says what that protects from. A call must return a
  finite number; True and False count as 1.0 and 0.0. What it makes of one answer (an exception,
  SystemExit, NaN, another type) is the policy fault python_grader_runtime_error; a time-out, the
  memory limit and a worker that dies are the grader fault python_grader_server_error.

      Python(name='starts', source='def grade(sample, item):\\n'
             '  return float(sample["output_text"].startswith(item["answer"]))')

  Names that the source sets at its top level live as long as its worker, over many calls: a
  source whose result depends on them, or on chance, makes a run that cannot be repeated.

  Raises:
    ValueError: at construction, listing every problem: the source is too long, does not compile,
      has no grade with two positional arguments, or raises when loaded.
    RuntimeError: at construction, if no worker can be started here.
  """

  name: str
  source: str
  image_tag: str | None = None  # accepted and not used: the source sees the packages installed here
  pass_threshold: float | None = None  # for the share that passes; the reward ignores it
  ungradable_reward: float = 0.0
  sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
  _sandbox: Sandbox = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    for module in _absent_imports(self.source):
      warnings.warn(
        f'grader {self.name}: the source imports {module}, which is not installed '
        f'here; pip install it, or the calls that reach the import fail',
        stacklevel=3,
      )
    try:
      started = Sandbox(
        {'mode': 'python', 'source': self.source, 'filename': f'<grader {self.name}>'}, self.sandbox
      )
    except ValueError as error:
      raise ValueError(f'grader {self.name}:\n  source: {error}') from None
    object.__setattr__(self, '_sandbox', started)

  @staticmethod
  def problems(given: dict[str, Any]) -> list[str]:
    """Returns what is wrong with those fields and settings that are given; [] if nothing."""
    sandbox = given.get('sandbox') or SandboxConfig()
    found = [f'sandbox.{problem}' for problem in sandbox.problems()]
    if not isinstance(given.get('image_tag'), (str, type(None))):
      found.append(f'image_tag={given["image_tag"]!r}, need a string')
    if 'source' in given:
      found.extend(
        f'source: {problem}'
        for problem in _source_problems(given['source'], sandbox.source_limit_kb)
      )
    return found + base.threshold_problems(given)

  @property
  def isolation(self) -> str:
    """The level that the source runs at: one of isolation.LEVELS."""
    return self._sandbox.level

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order, many calls under way at once."""
    grades: list[Grade | None] = [None] * len(pairs)
    calls, places = [], []
    for place, (item, sample) in enumerate(pairs):
      try:
        calls.append([json.dumps([sample, item]).encode()])
        places.append(place)
      except (TypeError, ValueError, RecursionError) as error:
        grades[place] = base.grader_fault(
          self, {'other_error': True, 'other_error_details': f'item or sample is not JSON: {error}'}
        )
    for place, outcome in zip(places, self._sandbox.run(calls)):
      grades[place] = self._grade(outcome)
    return grades

  def _grade(self, outcome: Outcome) -> Grade:
    if outcome.kind == 'score':
      return Grade(outcome.score, {self.name: outcome.score}, {})
    if outcome.kind == 'raised':
      return base.policy_fault(
        self,
        {
          'python_grader_runtime_error': True,
          'python_grader_runtime_error_details': outcome.details,
        },
      )
    return base.sandbox_fault(self, outcome.kind, outcome.details)

  def item_fields(self) -> None:
    """Returns None: what a program reads cannot be told from outside."""
    return None

  def close(self) -> None:
    """Kills the workers."""
    self._sandbox.close()


def _source_problems(source: Any, limit_kb: int) -> list[str]:
  """Returns what is wrong with the source of a grade function as far as reading it tells."""
  if not isinstance(source, str):
    return [f'is {template.kind(source)}, need a string']
  found, size = [], len(source.encode('utf-8', 'surrogatepass'))
  if size > limit_kb * 1024:
    found.append(f'has {size} bytes, need at most {limit_kb * 1024} (sandbox.source_limit_kb)')
  try:
    tree = ast.parse(source)
    compile(source, 'source', 'exec', dont_inherit=True)
  except SyntaxError as error:
    return found + [_shown(error, source)]
  except (ValueError, RecursionError, MemoryError) as error:
    return found + [f'does not compile: {type(error).__name__}: {error}']
  return found + _grade_problems(tree)


def _shown(error: SyntaxError, source: str) -> str:
  """Returns line, message, text and caret of a syntax error, as Python prints them."""
  lines = source.splitlines()
  number = error.lineno or 1
  text = (lines[number - 1] if number <= len(lines) else error.text or '').rstrip()
  indent = len(text) - len(text.lstrip())
  caret = ' ' * max(0, (error.offset or 1) - 1 - indent) + '^'
  return f'line {number}: {type(error).__name__}: {error.msg}\n      {text.lstrip()}\n      {caret}'


def _grade_problems(tree: ast.Module) -> list[str]:
  """Returns what is wrong with the last definition of grade at the top level of tree.

  A name grade that is bound in another way (imported, made by a call) is left to the loading.
  """
  functions, bound = {}, set()
  for node in _top_level(tree.body):
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      functions[node.name] = node
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
      functions.update(
        {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
      )
    else:
      bound.update(_bound_names(node))
  if 'grade' not in functions:
    near = difflib.get_close_matches('grade', functions, n=1, cutoff=0.4)
    hint = f'; it defines {near[0]!r}: rename it' if near else ''
    return [] if 'grade' in bound or '*' in bound else [f'defines no grade, {NEED}{hint}']
  node = functions['grade']
  if isinstance(node, ast.AsyncFunctionDef):
    return [f'line {node.lineno}: grade is async, {NEED}']
  names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
  required = [
    argument.arg
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults)
    if default is None
  ]
  if len(names) != 2 or node.args.vararg or required:
    return [
      f'line {node.lineno}: grade takes ({ast.unparse(node.args)}), {NEED}: exactly two '
      'positional arguments'
    ]
  if names == ['item', 'sample']:
    return [f'line {node.lineno}: grade takes (item, sample), {NEED}: the sample comes first']
  return []


def _top_level(body):
  """Yields the statements that run at the top level, those inside if, try and with included."""
  for node in body:
    yield node
    if isinstance(node, (ast.If, ast.Try, ast.With, ast.ExceptHandler)):
      for part in ('body', 'handlers', 'orelse', 'finalbody'):
        yield from _top_level(getattr(node, part, []))


def _bound_names(node) -> set[str]:
  if isinstance(node, (ast.Import, ast.ImportFrom)):
    return {alias.asname or alias.name for alias in node.names}
  if isinstance(node, (ast.Assign, ast.AnnAssign)):
    return {
      name.id
      for name in ast.walk(node)
      if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }
  return {node.name} if isinstance(node, ast.ClassDef) else set()


def _absent_imports(source: str) -> list[str]:
  """Returns the packages that source imports somewhere and that are not installed."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name.partition('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names.add(node.module.partition('.')[0])
  return sorted(name for name in names if not _is_installed(name))


def _is_installed(package: str) -> bool:
  try:
    return importlib.util.find_spec(package) is not None
  except ValueError:  # it is loaded, and does not say from where
    return True
