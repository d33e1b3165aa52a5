"""The `code` grader inside its sandbox: an answer that is a program, and the tests of its row.

Standard library alone, as it runs inside the worker. Two processes are forked for each answer.
One runs the answer and has never seen the tests. The other runs the tests; the names that the
answer defines are there as Remotes, whose calls go over a pipe to the first (worker_remote.py).
So an answer can read neither tests nor expected values, and what it prints, patches, raises or
exits with reaches no verdict: it only decides what its own functions return.
"""

import ast
import builtins
import json
import os
import sys
import time

from worker_remote import Peer
from worker_runners import HEADER, read_exactly, tell

DETAILS = 300
# Imported once, before forking: typing alone takes longer than all else about a short answer.
OFTEN = (
  'bisect',
  'collections',
  'copy',
  'dataclasses',
  'functools',
  'heapq',
  'itertools',
  'math',
  'random',
  're',
  'string',
  'typing',
)


# --- the keeper's side ---------------------------------------------------------------------------
def answer(start, runners: list, requests: int, length: int, seconds: float) -> tuple:
  """Has one answer tested; returns (kind, score, details), score the share of tests passed.

  Tests that were not over when the time was, or when the memory was, have failed.

  Args:
    start: forks a Runner: start(run, the descriptors that it inherits).
    runners: is filled with those started, for the caller to end.
    requests: where the rest of the call is read from: the answer's part, of length bytes, and a
      message for the tests.
  """
  deadline = time.monotonic() + seconds
  to_answer, to_tests = os.pipe(), os.pipe()
  try:
    for run, ends in (
      (run_answer, (to_answer[0], to_tests[1])),
      (run_tests, (to_tests[0], to_answer[1])),
    ):
      runners.append(start(lambda *own: run(*own, *ends), ends))
      if run is run_tests:
        length, _ = HEADER.unpack(read_exactly(requests, HEADER.size))
      try:
        os.write(runners[-1].inbox, HEADER.pack(length, 0))
      except BrokenPipeError:
        pass
      runners[-1].give(requests, length, deadline)
  finally:
    for descriptor in (*to_answer, *to_tests):
      os.close(descriptor)
  testing = runners[1]
  passed, total, why = 0, 1, ''
  try:
    while (said := testing.said(deadline)) is not None:
      what, value = said
      if what == 'broken':
        return 'tests_broken', None, value
      if what == 'total':
        total = value
      elif what == 'done':
        return 'score', passed / total, why
      else:
        passed += what == 'passed'
        why = why or value
  except (ValueError, TypeError) as error:
    return 'worker_failed', None, f'what the tests said cannot be read: {error}'
  return 'score', passed / total, why or f'not over within {seconds:g} s, or ended by the answer'


# --- the process of the answer ------------------------------------------------------------------
def run_answer(inbox: int, outbox: int, read: int, write: int) -> None:
  """Runs the answer as a module, then calls of its functions, until killed."""
  os.close(outbox)
  given = _message(inbox)
  os.close(inbox)
  peer = Peer(read, write, serves_all=True)
  module = type(sys)('answer')
  sys.modules['answer'] = module  # dataclasses and pickle look modules up by name
  try:
    for name, unit in _units(**given):
      exec(compile(unit, name, 'exec', dont_inherit=True), module.__dict__)
  except BaseException as error:
    peer.send({'do': 'failed', 'why': f'{type(error).__name__}: {error}'[:DETAILS]})
    return
  names = {name: value for name, value in vars(module).items() if not name.startswith('__')}
  modules = {name: value.__name__ for name, value in names.items() if isinstance(value, type(sys))}
  peer.send(
    {
      'do': 'names',
      'modules': modules,
      'values': {name: peer.encode(value) for name, value in names.items() if name not in modules},
    }
  )
  peer.serve()


def _units(program: str, setup: str, entry_point: str) -> list[tuple[str, str]]:
  """Returns what to run, [(name, source)]: setup and program, or one that continues the other."""
  if entry_point and setup and entry_point not in _defined(program):
    return [
      ('<answer>', f'{setup}\n{program}' if _compiles(f'{setup}\n{program}') else setup + program)
    ]
  return ([('<setup>', setup)] if _compiles(setup) else []) + [('<answer>', program)]


def _defined(source: str) -> set[str]:
  """Returns the names that source binds at its top level; none if it is not Python."""
  try:
    tree = ast.parse(source)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return set()
  names = {
    node.name
    for node in tree.body
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
  }
  for node in tree.body:
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
      names.update(
        part.id
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
      )
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      names.update(alias.asname or alias.name for alias in node.names)
  return names


def _compiles(source: str) -> bool:
  try:
    compile(source, 'source', 'exec', dont_inherit=True)
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return False
  return True


# --- the process of the tests -------------------------------------------------------------------
def run_tests(inbox: int, outbox: int, read: int, write: int) -> None:
  """Says ['total', n], then for each test ['passed', ''] or ['failed', why], then ['done', '']."""
  given = _message(inbox)
  plan = []
  for number, source in enumerate(given['tests']):
    try:
      plan.append(_plan(source, number, given['entry_point'], split=given['split']))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
      tell(
        outbox,
        [
          'broken',
          f'test {number + 1} of {len(given["tests"])} does not compile: '
          f'{type(error).__name__}: {error}',
        ],
      )
      return
  if not plan:
    tell(outbox, ['broken', 'there is none; need a text, or an array of texts with at least one'])
    return
  tell(outbox, ['total', sum(len(groups) for _, groups in plan)])
  peer = Peer(read, write, serves_all=False)
  names, why = _names(peer, given['setup'], given['entry_point'])
  for code, groups in plan:
    if why:
      for _ in groups:
        tell(outbox, ['failed', why])
    else:
      _run_plan(code, groups, names, given['entry_point'], outbox)
  tell(outbox, ['done', ''])


def _plan(source: str, number: int, entry_point: str, split: bool) -> tuple:
  """Returns (code, groups): names of functions to call after it; each group is one test."""
  tree = ast.parse(source)
  if not tree.body:
    raise ValueError('it is empty, and everything would pass it')
  defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
  calls = list(dict.fromkeys(name for name in defined if name.startswith('test')))
  if entry_point and 'check' in defined:
    calls.append('check')
  code = compile(tree, f'<test {number + 1}>', 'exec', dont_inherit=True)
  return code, [[name] for name in calls] if split and calls else [calls]


def _names(peer: Peer, setup: str, entry_point: str) -> tuple[dict, str]:
  """Returns what tests see: setup's own names, then the answer's; or why there is no answer.

  An answer's name never hides one of Python's or of setup's: else it could judge itself. A module
  that it has imported is imported here afresh.
  """
  names = {'__name__': 'tests', '__builtins__': builtins}
  try:
    exec(compile(setup, '<setup>', 'exec', dont_inherit=True), names)
  except BaseException:  # the beginning of a program, which the answer completes
    names = {'__name__': 'tests', '__builtins__': builtins}
  try:
    said = peer.receive()
    if said['do'] != 'names':
      return {}, str(said.get('why', 'nothing said'))[:DETAILS]
    for name, module in said['modules'].items():
      if name not in names and str(module).partition('.')[0] in sys.stdlib_module_names | {'numpy'}:
        names[name] = __import__(module, fromlist=['x'])
    for name, value in said['values'].items():
      if name == entry_point or not (name in names or hasattr(builtins, name)):
        names[name] = peer.decode(value)
  except Exception as error:
    return {}, f'the answer ended: {type(error).__name__}: {error}'[:DETAILS]
  if entry_point and entry_point not in said['values']:
    return {}, f'the answer does not define {entry_point}'
  return names, ''


def _run_plan(code, groups, names, entry_point, outbox) -> None:
  names, why = dict(names), ''
  if entry_point:
    names.setdefault('candidate', names[entry_point])
  target = names.get(entry_point)
  try:
    exec(code, names)
  except BaseException as error:
    why = f'{type(error).__name__}: {error}'[:DETAILS]
  for group in groups:
    failure = why
    try:
      for name in () if why else group:
        names[name](target) if name == 'check' else names[name]()
    except BaseException as error:
      failure = f'{type(error).__name__}: {error}'[:DETAILS]
    tell(outbox, ['failed' if failure else 'passed', failure])


def _message(inbox: int) -> dict:
  length, _ = HEADER.unpack(read_exactly(inbox, HEADER.size))
  return json.loads(read_exactly(inbox, length))
