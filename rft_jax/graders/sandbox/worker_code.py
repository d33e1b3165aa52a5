"""The `code` grader inside its sandbox: runs an answer, which is a program, against tests.

Standard library only, because it runs inside the worker. Two processes are forked for each answer.
The first runs the answer and never receives the tests. The second runs the tests; the names that
the answer defines exist there as Remote objects, whose calls go over a pipe to the first process
(worker_remote.py). So an answer can read neither tests nor expected values, and nothing that it
prints, patches, raises or exits with can change a test result: it only decides what its own
functions return.
"""

import ast
import builtins
import json
import os
import sys
import time

from worker_remote import Peer
from worker_runner import HEADER, read_exactly, send

MAX_DETAILS = 300  # characters of an error message
# Imported once, before forking: import typing alone takes longer than the rest of a short answer.
COMMON_MODULES = (
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


# --- the controller ------------------------------------------------------------------------------
def answer(start, runners: list, requests: int, length: int, seconds: float) -> tuple:
  """Tests one answer; returns (kind, score, details), score the fraction of tests passed.

  Tests that have no result at the time or memory limit have failed.

  Args:
    start: forks a Runner: start(run, the descriptors that it inherits).
    runners: is filled with the started Runners, for the caller to end.
    requests: the rest of the call is read from it: the body for the process of the answer, of
      length bytes, and a message for the process of the tests.
  """
  deadline = time.monotonic() + seconds
  answer_pipe, tests_pipe = os.pipe(), os.pipe()  # to the process of the answer, of the tests
  try:
    for run, ends in (
      (run_answer, (answer_pipe[0], tests_pipe[1])),
      (run_tests, (tests_pipe[0], answer_pipe[1])),
    ):
      runners.append(start(lambda inbox, outbox: run(inbox, outbox, *ends), ends))
      if run is run_tests:
        length, _ = HEADER.unpack(read_exactly(requests, HEADER.size))
      try:
        os.write(runners[-1].inbox, HEADER.pack(length, 0))
      except BrokenPipeError:
        pass
      runners[-1].forward(requests, length, deadline)
  finally:
    for descriptor in (*answer_pipe, *tests_pipe):
      os.close(descriptor)
  tests_runner = runners[1]
  passed, total, first_failure = 0, 1, ''
  try:
    while (message := tests_runner.receive(deadline)) is not None:
      kind, value = message
      if kind == 'broken':
        return 'tests_broken', None, value
      if kind == 'total':
        total = value
      elif kind == 'done':
        return 'score', passed / total, first_failure
      else:
        passed += kind == 'passed'
        first_failure = first_failure or value
  except (ValueError, TypeError) as error:
    return 'worker_failed', None, f'the process of the tests sent an invalid message: {error}'
  details = first_failure or f'not finished within {seconds:g} s, or ended by the answer'
  return 'score', passed / total, details


# --- the process of the answer ------------------------------------------------------------------
def run_answer(inbox: int, outbox: int, read: int, write: int) -> None:
  """Runs the answer as a module, then calls of its functions, until killed."""
  os.close(outbox)
  call = _receive_call(inbox)
  os.close(inbox)
  peer = Peer(read, write, serves_all=True)
  module = type(sys)('answer')
  sys.modules['answer'] = module  # dataclasses and pickle look modules up by name
  try:
    for name, source in _sources(**call):
      exec(compile(source, name, 'exec', dont_inherit=True), module.__dict__)
  except BaseException as error:
    peer.send({'type': 'failed', 'reason': f'{type(error).__name__}: {error}'[:MAX_DETAILS]})
    return
  names = {name: value for name, value in vars(module).items() if not name.startswith('__')}
  modules = {name: value.__name__ for name, value in names.items() if isinstance(value, type(sys))}
  peer.send(
    {
      'type': 'names',
      'modules': modules,
      'values': {name: peer.encode(value) for name, value in names.items() if name not in modules},
    }
  )
  peer.serve()


def _sources(program: str, setup: str, entry_point: str) -> list[tuple[str, str]]:
  """Returns the sources to run, [(name, source)]: setup and program, or their concatenation.

  The latter if program only completes setup: it does not define entry_point itself.
  """
  if entry_point and setup and entry_point not in _defined_names(program):
    return [
      ('<answer>', f'{setup}\n{program}' if _compiles(f'{setup}\n{program}') else setup + program)
    ]
  return ([('<setup>', setup)] if _compiles(setup) else []) + [('<answer>', program)]


def _defined_names(source: str) -> set[str]:
  """Returns the names that source binds at its top level; none if it does not parse."""
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
  """Sends ['total', n], for each test ['passed', ''] or ['failed', reason], then ['done', ''].

  Or, if the tests do not compile, only ['broken', reason].
  """
  call = _receive_call(inbox)
  entry_point, sources = call['entry_point'], call['tests']
  compiled_tests = []
  for number, source in enumerate(sources):
    try:
      compiled_tests.append(_compile_tests(source, number, entry_point, split=call['split']))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
      send(
        outbox,
        [
          'broken',
          f'test {number + 1} of {len(sources)} does not compile: {type(error).__name__}: {error}',
        ],
      )
      return
  if not compiled_tests:
    send(outbox, ['broken', 'there are none; need a text, or an array of at least one text'])
    return
  send(outbox, ['total', sum(len(groups) for _, groups in compiled_tests)])
  peer = Peer(read, write, serves_all=False)
  names, reason = _names(peer, call['setup'], entry_point)
  for code, groups in compiled_tests:
    if reason:
      for _ in groups:
        send(outbox, ['failed', reason])
    else:
      _run_compiled(code, groups, names, entry_point, outbox)
  send(outbox, ['done', ''])


def _compile_tests(source: str, number: int, entry_point: str, split: bool) -> tuple:
  """Returns (code, groups): each group, a list of functions to call after code, is one test.

  split: whether each test function is a test of its own.
  """
  tree = ast.parse(source)
  if not tree.body:
    raise ValueError('it is empty, and every answer would pass')
  defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
  calls = list(dict.fromkeys(name for name in defined if name.startswith('test')))
  if entry_point and 'check' in defined:
    calls.append('check')
  code = compile(tree, f'<test {number + 1}>', 'exec', dont_inherit=True)
  return code, [[name] for name in calls] if split and calls else [calls]


def _names(peer: Peer, setup: str, entry_point: str) -> tuple[dict, str]:
  """Returns (the global names of the tests, ''), or ({}, the reason why the answer failed).

  They are the names of setup, and those of the answer. A name of the answer never replaces a
  builtin or a name of setup, except entry_point: else it could change its own test. A module that
  the answer has imported is imported here separately.
  """
  names = {'__name__': 'tests', '__builtins__': builtins}
  try:
    exec(compile(setup, '<setup>', 'exec', dont_inherit=True), names)
  except BaseException:  # setup may be an incomplete program, which the answer completes
    names = {'__name__': 'tests', '__builtins__': builtins}
  try:
    message = peer.receive()
    if message['type'] != 'names':
      return {}, str(message.get('reason', 'no reason'))[:MAX_DETAILS]
    for name, module in message['modules'].items():
      if name not in names and str(module).partition('.')[0] in sys.stdlib_module_names | {'numpy'}:
        names[name] = __import__(module, fromlist=['x'])
    for name, value in message['values'].items():
      if name == entry_point or not (name in names or hasattr(builtins, name)):
        names[name] = peer.decode(value)
  except Exception as error:
    return {}, f'the answer ended: {type(error).__name__}: {error}'[:MAX_DETAILS]
  if entry_point and entry_point not in message['values']:
    return {}, f'the answer does not define {entry_point}'
  return names, ''


def _run_compiled(code, groups, names, entry_point, outbox) -> None:
  """Runs code and then its groups, and sends the result of each group."""
  names, code_failure = dict(names), ''
  if entry_point:
    names.setdefault('candidate', names[entry_point])
  target = names.get(entry_point)
  try:
    exec(code, names)
  except BaseException as error:
    code_failure = f'{type(error).__name__}: {error}'[:MAX_DETAILS]
  for group in groups:
    failure = code_failure
    try:
      for name in () if code_failure else group:
        names[name](target) if name == 'check' else names[name]()
    except BaseException as error:
      failure = f'{type(error).__name__}: {error}'[:MAX_DETAILS]
    send(outbox, ['failed' if failure else 'passed', failure])


def _receive_call(inbox: int) -> dict:
  """Returns the part of the call for this process, in the form of graders/code.py."""
  length, _ = HEADER.unpack(read_exactly(inbox, HEADER.size))
  return json.loads(read_exactly(inbox, length))
