"""code: scores of programs, programs that try to pass without solving the task, and faults.

Expected values are worked by hand; HumanEval's solutions are checked by its own tests.
"""

import json

import pytest
from paths import SHARED

from rft_jax import graders
from rft_jax.graders import code
from rft_jax.graders.sandbox import isolation

HUMANEVAL = SHARED / 'data' / 'humaneval'
DOUBLE = [
  'assert double(2) == 4',
  'assert double(0) == 0',
  'assert double(-1.5) == -3.0',
  'assert double("ab") == "abab"',
]


@pytest.fixture(scope='module')
def graded():
  """Grades one answer against tests; graders are cached by their fields."""
  cache = {}

  def grade(answer, tests, *, limit=5, memory=512, **fields):
    key = json.dumps([fields, limit, memory], sort_keys=True)
    if key not in cache:
      cache[key] = graders.make(
        {
          'type': 'code',
          'name': 'c',
          'tests': '{{ item.tests }}',
          'time_limit_seconds': limit,
          **fields,
        },
        sandbox=graders.SandboxConfig(memory_limit_mb=memory),
        ungradable_reward=-1.0,
      )
    return cache[key]({'tests': tests, 'name': 'double'}, {'output_text': answer})

  yield grade
  for grader in cache.values():
    grader.close()


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(
  'answer, score',
  [
    ('def double(x):\n  return x + x', 1.0),
    ('double = lambda x: 2 * x', 1.0),
    ('def double(x):\n  return float(x) * 2', 0.75),
    ('def double(x):\n  return 4', 0.25),
    ('def double(x):\n  pass', 0.0),
    ('def double(x) return x', 0.0),
    ('def twice(x):\n  return x + x', 0.0),
    ('', 0.0),
    ('1 / 0', 0.0),
    ('def double(x):\n  return x + x\nraise ValueError', 0.0),
    ('import helpers_that_are_not_there\ndef double(x):\n  return x + x', 0.0),
    ('(' * 100000, 0.0),
  ],
)
def test_the_score_is_the_share_of_tests_passed(graded, answer, score):
  assert graded(answer, DOUBLE) == (score, {'c': score}, {})


@pytest.mark.parametrize(
  'answer, score',
  [('def double(x):\n  return x + x', 1.0), ('def double(x):\n  return float(x) * 2', 0.0)],
)
def test_score_all_is_1_only_if_every_test_passes(graded, answer, score):
  assert graded(answer, DOUBLE, score='all').reward == score


def test_each_test_function_of_one_source_is_a_test(graded):
  tests = (
    'def test_two(): assert double(2) == 4\ndef helper(): assert False\n'
    'def test_text(): assert double("a") == "aa"\n'
    'def test_none(): assert double(None) is None'
  )
  assert graded('def double(x):\n  return x + x', tests).reward == pytest.approx(2 / 3)
  assert graded('def double(x):\n  return x + x', [tests, 'assert double(1) == 2']).reward == 0.5


def test_a_source_without_test_functions_is_one_test(graded):
  assert graded('def double(x):\n  return x + x', '\n'.join(DOUBLE)).reward == 1.0
  assert graded('def double(x):\n  return 4', '\n'.join(DOUBLE)).reward == 0.0


@pytest.mark.parametrize(
  'text, program',
  [
    ('x = 1', 'x = 1'),
    ('Here:\n```python\nx = 1\n```\nthat is it', 'x = 1\n'),
    ('```\nx = 1\n```', 'x = 1\n'),
    ('```python\nx = 1\n```\nbetter:\n```py\nx = 2\n```\n```sh\nls\n```', 'x = 2\n'),
    ('```Python title="a"\n  return 1\n```', '  return 1\n'),
    ('```python\nx = 1', '```python\nx = 1'),
  ],
)
def test_the_program_is_the_last_python_block(text, program):
  assert code.extract_program(text) == program


@pytest.mark.parametrize(
  'answer',
  ['    return x + x', 'def double(x):\n    return x + x', 'import math\ndouble = lambda x: x + x'],
)
def test_a_program_continues_setup_or_runs_after_it(graded, answer):
  setup = 'import math\ndef double(x):\n    """Twice x."""\n'
  tests = 'def check(candidate):\n  assert candidate(2) == 4 and math.floor(candidate(0.5)) == 1'
  assert graded(answer, tests, setup=setup, entry_point='{{ item.name }}').reward == 1.0


@pytest.mark.parametrize(
  'program, test',
  [
    ('def f(x):\n  x.append(1)\n  x[0].append(2)', 'a = [[]]\nf(a)\nassert a == [[2], 1]'),
    ('def f(x):\n  x.clear()\n  x["b"] = {1}', 'a = {"a": 1}\nf(a)\nassert a == {"b": {1}}'),
    (
      'def f(): return (1, [2.5, None], {"a": {3}}, b"x", 1j, range(3), 2 ** 5000, True)',
      'assert f() == (1, [2.5, None], {"a": {3}}, b"x", 1j, range(3), 2 ** 5000, True)',
    ),
    (
      'import decimal, fractions, datetime\ndef f(): return [decimal.Decimal("1.5"), '
      'fractions.Fraction(1, 3), datetime.date(2020, 1, 2)]',
      'import decimal, fractions, datetime\nassert f() == [decimal.Decimal("1.5"), '
      'fractions.Fraction(1, 3), datetime.date(2020, 1, 2)]',
    ),
    (
      'import collections\ndef f(x): return collections.Counter(x), collections.deque(x)',
      'a, b = f("aab")\nassert a == {"a": 2, "b": 1} and a.most_common(1) == [("a", 2)]\n'
      'assert list(b) == ["a", "a", "b"] and type(b).__name__ == "deque"',
    ),
    (
      'import numpy\ndef f(n): return numpy.arange(n).reshape(2, -1) / 2',
      'import numpy\nassert f(4).shape == (2, 2) and numpy.allclose(f(4), [[0, .5], [1, 1.5]])',
    ),
    (
      'def f(): return float("nan"), float("-inf")',
      'a, b = f()\nassert a != a and b == -float("inf")',
    ),
    (
      'def f(x): raise ValueError("no " + x)',
      'try: f("x")\nexcept ValueError as error: assert str(error) == "no x"\nelse: assert False',
    ),
    (
      'class Odd(KeyError): pass\ndef f(): raise Odd',
      'try: f()\nexcept KeyError: pass\nelse: assert False',
    ),
    (
      'def f(g, x): return [g(g(one)) for one in x]',
      'assert f(lambda n: n * 3, [1, 2]) == [9, 18]',
    ),
    (
      'def f(n):\n  for i in range(n): yield i',
      'assert list(f(4)) == [0, 1, 2, 3] and next(f(1)) == 0',
    ),
    (
      'class Stack:\n  def __init__(self, *x): self.x = list(x)\n  def push(self, y):\n'
      '    self.x.append(y)\n    return self\n  def __len__(self): return len(self.x)\n'
      '  def __getitem__(self, i): return self.x[i]\n  def __eq__(self, o): return self.x == o.x',
      's = Stack(1)\nassert len(s.push(2)) == 2 and s[1] == 2 and s.x == [1, 2]\n'
      's.x = [5]\nassert s.x == [5] and s == Stack(5) and s != Stack(6) and isinstance(s, Stack)',
    ),
    (
      'import dataclasses\n@dataclasses.dataclass\nclass P:\n  x: int\n  y: int = 0',
      'assert P(1) == P(1, 0) and P(1) != P(2) and P(3).x == 3 and repr(P(1)) == "P(x=1, y=0)"',
    ),
    (
      'import enum\nclass Size(enum.IntEnum):\n  SMALL = 1\nclass Name(str): pass\n'
      'def f(): return Size.SMALL, Name("a")',
      'assert f() == (1, "a")',
    ),
    ('LIMIT = 7\nimport math as m\ndef f(): return LIMIT', 'assert f() == LIMIT == m.floor(7.5)'),
    (
      'async def f(): pass\ndef g(*a, k=1, **b): return [a, k, b]',
      'assert g(1, 2, k=3, z=4) == [(1, 2), 3, {"z": 4}]',
    ),
  ],
)
def test_values_and_objects_reach_the_tests_unchanged(graded, program, test):
  assert graded(program, [test]).reward == 1.0, test


# ---------------------------------------------------------------- programs that try to cheat

GOOD = 'def double(x):\n  return x + x\n'
CHEATS = {
  'exits with 0': 'import os\nos._exit(0)',
  'exits with 0 in a call': 'import os\ndef double(x): os._exit(0)',
  'sys.exit': 'import sys\nsys.exit(0)',
  'sys.exit in a call': 'import sys\ndef double(x): sys.exit(0)',
  'prints': 'print("passed\\n" * 9)\nprint(\'["done", ""]\')\ndef double(x): print(x)',
  'equals everything': (
    'class Yes:\n  def __eq__(self, other): return True\n'
    '  def __ne__(self, other): return False\n'
    '  __hash__ = None\ndef double(x): return Yes()'
  ),
  'an int that equals everything': (
    'class Yes(int):\n  def __eq__(self, other): return True\ndef double(x): return Yes(3)'
  ),
  'a float that equals everything': (
    'class Yes(float):\n  def __eq__(self, other): return True\ndef double(x): return Yes(3)'
  ),
  'a list that equals everything': (
    'class Yes(list):\n  def __eq__(self, other): return True\ndef double(x): return Yes()'
  ),
  'patches builtins': (
    'import builtins\nbuiltins.AssertionError = ZeroDivisionError\nbuiltins.exec = print\n'
    'builtins.compile = builtins.len = builtins.isinstance = lambda *a: 1\n'
    'def double(x): return None'
  ),
  'hides builtins of the tests': (
    'def double(x): return 3\ndef check(f): pass\nabs = all = any = sorted = lambda *a: True\n'
    '__builtins__ = {}\n__name__ = "x"'
  ),
  'patches json': (
    'import json\njson.dumps = lambda *a, **k: \'["passed", ""]\'\ndef double(x): return None'
  ),
  'raises what ends a loop': 'def double(x): raise StopIteration',
  'looks for the caller': (
    'import sys\ndef double(x):\n  frame = sys._getframe()\n  while frame:\n'
    '    for value in list(frame.f_locals.values()) + list(frame.f_code.co_consts):\n'
    '      if isinstance(value, str) and chr(97) + "ssert" in value: return 2 * x\n'
    '    frame = frame.f_back\n'
  ),
  'looks through all objects': (
    'import gc\ndef double(x):\n  for one in gc.get_objects():\n'
    '    if isinstance(one, dict) and "tests" in one and "split" in one: return 2 * x\n'
  ),
  'writes verdicts to all descriptors': (
    'import os\nlines = b\'["total", 1]\\n["passed", ""]\\n["done", ""]\\n\'\n'
    'for number in range(3, 64):\n  try: os.write(number, lines)\n  except OSError: pass\n'
    'def double(x): return None'
  ),
  'kills the other processes': (
    'import os, signal\nfor number in range(2, 200):\n  try:\n'
    '    if number != os.getpid(): os.kill(number, signal.SIGKILL)\n  except OSError: pass\n'
    'def double(x): return None'
  ),
  'stays as a daemon': (
    'import os, time\nif not os.fork():\n  os.setsid()\n  time.sleep(100)\n'
    'def double(x): return None'
  ),
  'answers twice from a child': 'import os\nos.fork()\ndef double(x): return None',
  'raises in the background': (
    'import _thread, time\ndef late():\n  time.sleep(.01)\n  _thread.interrupt_main()\n'
    '_thread.start_new_thread(late, ())\ntime.sleep(1)'
  ),
  'takes ten gigabytes': 'kept = bytes(10 * 2 ** 30)\n' + GOOD,
  'takes memory in a call': (
    'def double(x):\n  kept = []\n  while True: kept.append(bytes(2 ** 24))'
  ),
  'segmentation fault': 'import ctypes\ndef double(x): ctypes.string_at(0)',
  'nests without end': 'def double(x):\n  a = []\n  for _ in range(10 ** 5): a = [a]\n  return a',
  'holds itself': 'def double(x):\n  a = []\n  a.append(a)\n  return a',
  'returns a gigabyte': 'def double(x): return "x" * (2 ** 28 + 1)',
  'fork bomb': 'import os\nwhile True:\n  try: os.fork()\n  except OSError: break\nos._exit(0)',
}


@pytest.mark.parametrize('name', CHEATS)
def test_no_cheating_program_passes(graded, name):
  if name == 'kills the other processes' and isolation.isolation_level() != 'namespace':
    pytest.skip('would end processes of the user on this machine')
  assert graded(CHEATS[name], DOUBLE) == (0.0, {'c': 0.0}, {})
  assert graded(GOOD, DOUBLE) == (1.0, {'c': 1.0}, {})


def test_a_program_cannot_read_the_tests_or_another_answer(graded):
  # It can read the arguments of calls. The expected values are not in its process.
  program = (
    'import gc, os, sys\nseen = []\nfor number in range(3, 64):\n  try:\n'
    '    os.set_blocking(number, False)\n    seen.append(os.read(number, 1 << 20))\n'
    '  except OSError: pass\nseen += os.listdir(".")\n'
    'found = [one for one in gc.get_objects() if isinstance(one, (dict, list)) '
    'and "SECRET" + "VALUE" in str(one)[:10000]]\n'
    'def double(x): return len(found) + any(b"VALUE" in one for one in seen if '
    'isinstance(one, bytes)) + len([one for one in seen if isinstance(one, str)])'
  )
  tests = ['assert double(2) != "SECRETVALUE"']
  wrong = 'def double(x): open("left", "w").write("SECRETVALUE"); return "SECRETVALUE"'
  assert graded(wrong, tests).reward == 0.0
  # Its reads remove bytes from the pipes, so that some calls may fail; if it read a secret, this
  # test would pass.
  assert graded(program, ['assert double(1) != 0']).reward == 0.0


def test_a_time_out_fails_the_tests_that_had_not_finished(graded):
  program = 'def double(x):\n  while x == 0: pass\n  return 2 * x'
  assert graded(program, DOUBLE, limit=0.7) == (0.25, {'c': 0.25}, {})
  assert graded('while True: pass', DOUBLE, limit=0.7) == (0.0, {'c': 0.0}, {})
  assert graded(program, DOUBLE, limit=0.7, score='all').reward == 0.0


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
  'tests', ['assert double(2 ==', ['assert True', 'def ('], 'x\0', [], '', ['# none'], [1, 2]]
)
def test_tests_that_do_not_compile_are_a_grader_fault(graded, tests):
  grade = graded(GOOD, tests)
  assert grade.reward is None and grade.errors['other_error'] is True, grade
  assert 'tests' in grade.errors['other_error_details']


def test_a_row_without_tests_is_a_grader_fault_and_a_missing_answer_a_policy_fault():
  with_json = {
    'type': 'code',
    'name': 'c',
    'input': '{{ sample.output_json.program }}',
    'tests': '{{ item.tests }}',
  }
  grader = graders.make(with_json, ungradable_reward=-1.0)
  try:
    assert grader({}, {'output_text': 'x'}).errors['invalid_variable_error'] is True
    assert grader({}, {'output_text': 'x'}).reward is None
    assert grader({'tests': DOUBLE}, {'output_text': 'x'}).reward == -1.0
    sample, _ = graders.make_sample(json.dumps({'program': GOOD}))
    assert grader({'tests': DOUBLE}, sample).reward == 1.0
  finally:
    grader.close()


@pytest.mark.parametrize(
  'change, words',
  [
    ({'tests': '{{ item.tests'}, 'tests: the {{'),
    ({'score': 'any'}, "score='any'"),
    ({'time_limit_seconds': 0}, 'time_limit_seconds=0'),
    ({'setup': 7}, 'setup: 7, need a string'),
    ({'pass_threshold': 'x'}, "pass_threshold='x'"),
    ({'langage': 'c'}, "unknown field 'langage'"),
  ],
)
def test_wrong_fields_are_refused_by_name(change, words):
  with pytest.raises(ValueError) as caught:
    graders.make({'type': 'code', 'name': 'c', 'tests': '{{ item.tests }}', **change})
  assert words in str(caught.value)


def test_item_fields_are_those_of_all_templates():
  grader = graders.make(
    {
      'type': 'code',
      'name': 'c',
      'tests': '{{ item.a }}',
      'setup': '{{ item.b }}',
      'entry_point': '{{ item.c }}',
    }
  )
  grader.close()
  assert grader.item_fields() == {'a', 'b', 'c'}
  assert graders.describe(grader)['type'] == 'code'


# ---------------------------------------------------------------- HumanEval


@pytest.mark.full
@pytest.mark.skipif(not HUMANEVAL.exists(), reason='needs ../shared/data/humaneval')
def test_humaneval_solutions_pass_and_empty_bodies_do_not():
  rows = [json.loads(line) for line in (HUMANEVAL / 'test.jsonl').read_text().splitlines()]
  grader = graders.make(
    {
      'type': 'code',
      'name': 'humaneval',
      'setup': '{{ item.prompt_code }}',
      'tests': '{{ item.test }}',
      'entry_point': '{{ item.entry_point }}',
      'time_limit_seconds': 20,
    },
    sandbox=graders.SandboxConfig(workers=2),
  )

  def count_passed(answer):
    pairs = [(row, {'output_text': answer(row)}) for row in rows]
    return sum(grade.reward for grade in grader.many(pairs))

  try:
    assert len(rows) == 164
    assert (
      count_passed(lambda row: f'```\n{row["prompt_code"]}{row["canonical_solution"]}```') == 164
    )
    assert count_passed(lambda row: row['canonical_solution']) == 164
    assert count_passed(lambda row: row['prompt_code'] + '    pass\n') == 0
  finally:
    grader.close()
