"""The `python` grader: calls the user's function grade(sample, item) in a sandbox."""

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

  The `python` grader of the OpenAI API. The source is loaded once into a worker process and called
  there for each answer; sandbox/pool.py describes what that protects from. A call must return a
  finite number; True and False count as 1.0 and 0.0. Any other outcome for an answer (an exception,
  SystemExit, NaN, another type) is the policy fault python_grader_runtime_error; a time-out, the
  memory limit and a worker that dies are the grader fault python_grader_server_error.

      Python(name='starts', source='def grade(sample, item):\\n'
             '  return float(sample["output_text"].startswith(item["answer"]))')

  Global variables of the source keep their values between the calls of a worker: a source whose
  result depends on them, or on random numbers, makes the run irreproducible.

  Raises:
    ValueError: at construction, listing every problem: the source is too long, does not compile,
      has no grade with two positional arguments, or raises when loaded.
    RuntimeError: at construction, if no worker process can be started on this machine.
  """

  name: str
  source: str
  image_tag: str | None = None  # accepted and ignored: the source uses the packages installed here
  pass_threshold: float | None = None  # for the reported pass rate; the reward ignores it
  ungradable_reward: float = 0.0
  sandbox: SandboxConfig = dataclasses.field(default_factory=SandboxConfig)
  _sandbox: Sandbox = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    base.raise_problems(self.name, self.problems(vars(self)))
    for module in _missing_packages(self.source):
      warnings.warn(
        f'grader {self.name}: the source imports {module}, which is not installed; pip install '
        'it, or calls that reach the import fail',
        stacklevel=3,
      )
    try:
      sandbox = Sandbox(
        {'mode': 'python', 'source': self.source, 'filename': f'<grader {self.name}>'}, self.sandbox
      )
    except ValueError as error:
      raise ValueError(f'grader {self.name}:\n  source: {error}') from None
    object.__setattr__(self, '_sandbox', sandbox)

  @staticmethod
  def problems(fields: dict[str, Any]) -> list[str]:
    """Returns what is wrong with the fields and settings that are present; [] if nothing."""
    sandbox = fields.get('sandbox') or SandboxConfig()
    problems = [f'sandbox.{problem}' for problem in sandbox.problems()]
    if not isinstance(fields.get('image_tag'), (str, type(None))):
      problems.append(f'image_tag={fields["image_tag"]!r}, need a string')
    if 'source' in fields:
      problems.extend(
        f'source: {problem}'
        for problem in _source_problems(fields['source'], sandbox.source_limit_kb)
      )
    return problems + base.threshold_problems(fields)

  @property
  def isolation(self) -> str:
    """The isolation level of the worker processes: one of isolation.LEVELS."""
    return self._sandbox.level

  def __call__(self, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
    return self.many([(item, sample)])[0]

  def many(self, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[Grade]:
    """Returns the Grade of each (item, sample), in order; the workers run concurrently."""
    grades: dict[int, Grade] = {}  # by index into pairs
    calls, indices = [], []
    for index, (item, sample) in enumerate(pairs):
      try:
        calls.append([json.dumps([sample, item]).encode()])
        indices.append(index)
      except (TypeError, ValueError, RecursionError) as error:
        grades[index] = base.grader_fault(
          self, {'other_error': True, 'other_error_details': f'item or sample is not JSON: {error}'}
        )
    for index, outcome in zip(indices, self._sandbox.run(calls)):
      grades[index] = self._grade(outcome)
    return [grades[index] for index in range(len(pairs))]

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
    """Returns None: the fields that a program reads are unknown."""
    return None

  def close(self) -> None:
    """Kills the workers."""
    self._sandbox.close()


def _source_problems(source: Any, limit_kb: int) -> list[str]:
  """Returns what is wrong with the source of a grade function, without running it."""
  if not isinstance(source, str):
    return [f'is {template.json_type(source)}, need a string']
  problems, size = [], len(source.encode('utf-8', 'surrogatepass'))
  if size > limit_kb * 1024:
    problems.append(f'has {size} bytes, need at most {limit_kb * 1024} (sandbox.source_limit_kb)')
  try:
    tree = ast.parse(source)
    compile(source, 'source', 'exec', dont_inherit=True)
  except SyntaxError as error:
    return problems + [_format_error(error, source)]
  except (ValueError, RecursionError, MemoryError) as error:
    return problems + [f'does not compile: {type(error).__name__}: {error}']
  return problems + _grade_problems(tree)


def _format_error(error: SyntaxError, source: str) -> str:
  """Returns line number, message, text and caret of a syntax error, as Python prints them."""
  lines = source.splitlines()
  number = error.lineno or 1
  text = (lines[number - 1] if number <= len(lines) else error.text or '').rstrip()
  indent = len(text) - len(text.lstrip())
  caret = ' ' * max(0, (error.offset or 1) - 1 - indent) + '^'
  return f'line {number}: {type(error).__name__}: {error.msg}\n      {text.lstrip()}\n      {caret}'


def _grade_problems(tree: ast.Module) -> list[str]:
  """Returns what is wrong with the last definition of grade at the top level of tree.

  A name grade that is bound otherwise (imported, assigned) is checked when the source is loaded.
  """
  functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda] = {}
  bound: set[str] = set()
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
    matches = difflib.get_close_matches('grade', functions, n=1, cutoff=0.4)
    hint = f'; it defines {matches[0]!r}: rename it' if matches else ''
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
  """Yields the statements of the top level, including those inside if, try and with."""
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


def _missing_packages(source: str) -> list[str]:
  """Returns the packages that source imports anywhere and that are not installed."""
  names: set[str] = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name.partition('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      names.add(node.module.partition('.')[0])
  return sorted(name for name in names if not _is_installed(name))


def _is_installed(package: str) -> bool:
  try:
    return importlib.util.find_spec(package) is not None
  except ValueError:  # a loaded module without __spec__
    return True
