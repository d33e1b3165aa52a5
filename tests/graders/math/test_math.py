"""math: what is equal, which part of an answer counts, and what its processes survive."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import math_verify
import pytest
from paths import ROOT

from rft_jax import graders
from rft_jax.graders.math import pool as math_pool

MATH = {
  'type': 'math',
  'name': 'math',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}
BOMB = '\\boxed{9^{9^{9^9}}}'


@pytest.fixture(scope='module')
def grader():
  made = graders.make({**MATH, 'time_limit_seconds': 20}, ungradable_reward=-1.0)
  yield made
  made.close()


def grade(grader, wanted, given):
  return grader({'answer': wanted}, {'output_text': given})


@pytest.mark.parametrize(
  'wanted, given, score',
  [
    ('72', 'so she pays 8 * 9 = 72.', 1),
    ('72', 'The answer is 71.', 0),
    ('72', '', 0),
    ('72', 'no number at all', 0),
    ('72', '72', 1),
    (72, '\\boxed{72}', 1),
    ('72', '**72**', 1),
    ('1/2', '\\boxed{\\frac{1}{2}}', 1),
    ('1/2', '0.5', 1),
    ('\\frac{1}{2}', '$\\frac{2}{4}$', 1),
    ('1/3', '0.333333', 1),
    ('1/3', '0.33', 0),
    ('4 1/2', '\\boxed{9/2}', 1),
    ('\\sqrt{8}', '$2\\sqrt{2}$', 1),
    ('\\sqrt{2}', '\\sqrt{2}', 1),
    ('x^2 - 1', '$(x-1)(x+1)$', 1),
    ('(1, 2)', '$(1,2)$', 1),
    ('\\{1, 2\\}', '$\\{2, 1\\}$', 1),
    ('-3', '\\boxed{\u22123}', 1),
    # commas, percent, units, powers of ten
    ('1234', '\\boxed{1,234}', 1),
    ('1,234', 'It is 1234 m.', 1),
    ('1000000', '1 000 000', 1),
    ('1000000', '\\boxed{1\\,000\\,000}', 1),
    ('50%', '\\boxed{50\\%}', 1),
    ('0.5', '50 %', 1),
    ('5', '\\boxed{5\\text{ cm}}', 1),
    ('5 cm', '\\boxed{5}', 1),
    ('$18', '\\boxed{\\$18}', 1),
    ('18', 'She makes $18 a day.', 1),
    ('100000', 'The answer is 1e5.', 1),
    ('1', '1e5', 0),
    # integers beyond 2^53
    ('9007199254740993', '\\boxed{9007199254740993}', 1),
    ('9007199254740993', '\\boxed{9007199254740992}', 0),
    (2**70, str(2**70), 1),
    (2**70, str(2**70 + 1), 0),
    (2**70, '$2^{70}$', 1),
    # words
    ('east', '\\boxed{\\text{East}}', 1),
    ('east', '\\boxed{seat}', 0),
    ('no solution', '0', 0),
    ('no solution', 'There is \\boxed{no solution}', 1),
    ('Yes', 'No', 0),
  ],
)
def test_equal_is_1_and_all_else_is_0(grader, wanted, given, score):
  assert grade(grader, wanted, given) == (score, {'math': score}, {})


@pytest.mark.parametrize(
  'given, score',
  [
    ('\\boxed{1}. No, rather \\boxed{2}', 1),
    ('\\boxed{2}. No, rather \\boxed{1}', 0),
    ('\\boxed{2} and \\boxed{1}', 0),
    ('$\\boxed{1}$ or $\\boxed{2}$', 0),
    ('\\boxed{1, 2}', 0),
    ('\\boxed{2} and \\boxed{2}', 1),
    ('\\boxed{1 \\text{ or } 2}', 0),
    ('\\boxed{2} and then \\boxed{1', 0),
    ('\\boxed{2} and then \\boxed{((}', 0),
    ('\\boxed{2}, since 1 + 1 makes two and not 3', 1),
    ('The final answer is 3: \\boxed{2}', 1),
    ('answer 7 ... 1 + 1 = 2\n#### 2', 1),
    ('#### 2\n#### 3', 0),
    ('so $x = 3$, and $y = 2$', 1),
    ('first 2, then 3', 0),
    ('\\boxed{\\{2\\}}', 1),
  ],
)
def test_what_is_said_in_the_end_counts(grader, given, score):
  assert grade(grader, '2', given).reward == score


@pytest.mark.parametrize(
  'wanted, given',
  [
    ('$1 < x < 2$', '$(1, 2)$'),
    ('$(1, 2)$', '$1 < x < 2$'),
    ('$x = 5$', '$5$'),
    ('$5$', '$x = 5$'),
    ('$x^2 = 4$', '$4$'),
    ('$4$', '$x^2 = 4$'),
    ('$\\frac{3}{4}$', '$0.75$'),
    ('$a + b$', '$b + a$'),
  ],
)
def test_the_verdict_is_that_of_math_verify_with_the_reference_first(grader, wanted, given):
  expected = math_verify.verify(math_verify.parse(wanted), math_verify.parse(given))
  assert grade(grader, wanted, given).reward == float(expected)


def test_the_order_of_the_two_matters(grader):
  assert grade(grader, '$1 < x < 2$', '$(1, 2)$').reward == 1.0
  assert grade(grader, '$(1, 2)$', '$1 < x < 2$').reward == 0.0


@pytest.mark.parametrize('wanted', ['', '  ', '\\boxed{', '\\boxed{}', '####', '1/0', '$$'])
def test_a_reference_that_spells_nothing_never_verifies_and_is_the_rows_fault(grader, wanted):
  for given in (wanted, '\\boxed{}', '', '7'):
    found = grade(grader, wanted, given)
    assert found.reward is None and found.components == {'math': None}
    assert found.errors['other_error'] is True
    assert repr(wanted) in found.errors['other_error_details']


def test_missing_fields_are_the_rows_fault_or_the_answers(grader):
  grades = graders.grade_many(
    grader,
    [({}, {'output_text': '7'}), ({'answer': '7'}, {}), ({'answer': '7'}, {'output_text': '7'})],
  )
  assert [one.reward for one in grades] == [None, -1.0, 1.0]
  assert all(one.errors['invalid_variable_error'] is True for one in grades[:2])
  assert grader.item_fields() == {'answer'}


def test_odd_texts_have_a_score(grader):
  for given in ('\x00', '\ud800 \\boxed{7}', '{' * 500, '\\boxed{' * 300, '7' * 5000, '"\n\\'):
    assert grade(grader, '8', given).reward == 0.0


def test_a_bomb_ends_in_sigkill_and_the_answers_beside_it_are_graded():
  made = graders.make({**MATH, 'time_limit_seconds': 1.0})
  try:
    pairs = [({'answer': '7'}, {'output_text': text}) for text in ('7', BOMB, '8', '\\boxed{7}')]
    start = time.monotonic()
    grades = graders.grade_many(made, pairs, retries=0)
    assert time.monotonic() - start < 15
  finally:
    made.close()
  assert [one.reward for one in grades] == [1.0, None, 0.0, 1.0]
  assert grades[1].errors['python_grader_server_error'] is True
  assert grades[1].errors['python_grader_server_error_type'] == 'timeout'
  assert '9^9' in grades[1].errors['python_grader_server_error_details']


def test_an_answer_too_large_for_the_memory_is_a_grader_fault_and_the_next_is_graded():
  made = graders.make(MATH, sandbox=graders.SandboxConfig(memory_limit_mb=256))
  try:
    found = grade(made, '7', '7' * (100 << 20))
    assert found.reward is None and found.errors['python_grader_server_error'] is True
    assert found.errors['python_grader_server_error_type'] in ('memory_limit', 'worker_killed')
    assert len(found.errors['python_grader_server_error_details']) < 1000
    assert grade(made, '7', '7').reward == 1.0
  finally:
    made.close()


def test_an_interrupted_call_leaves_no_answer_for_the_next_one(monkeypatch):
  pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)
  # A process that was started in the background ignores the signal.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with monkeypatch.context() as patched:
      patched.setattr(math_pool, '_answer', lambda process, seconds: signal.raise_signal(2))
      with pytest.raises(KeyboardInterrupt):
        pool.verify([('7', '7')])
    assert pool.verify([('7', '8')]) == [('different', '')]
  finally:
    signal.signal(signal.SIGINT, before)
    pool.close()


def test_a_forked_process_does_not_kill_what_it_does_not_own():
  code = (
    'import os; from rft_jax.graders.math import pool as math_pool\n'
    'pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)\n'
    'child = os.fork()\n'
    'pool.close() if not child else os.waitpid(child, 0)\n'
    'if child: print(pool._workers[0]._process.poll(), pool.verify([("7", "7")])[0].kind)'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == 'None equal\n', done.stderr


def test_several_processes_work_at_once_and_keep_the_order():
  made = graders.make({**MATH, 'time_limit_seconds': 1.5}, sandbox=graders.SandboxConfig(workers=2))
  try:
    texts = [BOMB, *('7' if place % 3 else '8' for place in range(30)), BOMB]
    grades = graders.grade_many(
      made, [({'answer': '7'}, {'output_text': text}) for text in texts], retries=0
    )
  finally:
    made.close()
  assert [one.reward for one in grades] == [
    None,
    *(float(bool(place % 3)) for place in range(30)),
    None,
  ]


def test_a_process_is_replaced_after_so_many_calls_and_after_its_death(monkeypatch):
  monkeypatch.setattr(math_pool, 'CALLS_EACH', 3)
  pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)
  try:
    ids = []
    for _ in range(7):
      assert pool.verify([('7', '7')]) == [('equal', '')]
      ids.append(pool._workers[0]._process.pid)
    assert ids[0] == ids[2] != ids[3] == ids[5] != ids[6]
    os.kill(ids[6], 9)
    pool._workers[0]._process.wait()
    assert pool.verify([('7', '8')]) == [('different', '')]
  finally:
    pool.close()


def test_a_process_dies_with_the_program_that_started_it():
  code = (
    'from rft_jax.graders.math import pool as math_pool; import os, sys\n'
    'pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)\n'
    'print(pool._workers[0]._process.pid, flush=True)\n'
    'os.kill(os.getpid(), 9)'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  process, deadline = pathlib.Path('/proc', done.stdout.strip()), time.monotonic() + 20
  while process.exists() and 'State:\tZ' not in (process / 'status').read_text():
    assert time.monotonic() < deadline, 'it is still there'
    time.sleep(0.05)


def test_the_worker_loads_neither_jax_nor_this_package():
  code = (
    'import sys; sys.argv[1:] = ["5", "2048"]\n'
    'import runpy; worker = runpy.run_path(%r)\n'
    'assert worker["verify"]("1/2", "0.5") == ["equal", ""]\n'
    'assert not {"jax", "rft_jax"} & set(sys.modules)' % str(math_pool.WORKER)
  )
  subprocess.run([sys.executable, '-P', '-c', code], cwd='/', check=True)


def test_where_no_process_starts_the_grader_is_refused(monkeypatch, tmp_path):
  broken = tmp_path / 'worker.py'
  broken.write_text('raise SystemExit(3)')
  monkeypatch.setattr(math_pool, 'WORKER', broken)
  with pytest.raises(RuntimeError, match='code 3'):
    graders.make(MATH)


def test_a_closed_grader_grades_nothing_more():
  made = graders.make(MATH)
  made.close()
  made.close()
  assert grade(made, '7', '7').reward is None


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'time_limit_seconds': 0}, 'time_limit_seconds=0'),
    ({'input': '{{ x }}'}, 'input:'),
    ({'time_limit_seconds': True}, 'time_limit_seconds=True'),
    ({'timeout': 3}, "field 'timeout'"),
    ({'time_limit_seconds': float('nan')}, 'nan'),
    ({'reference': 7}, 'reference: 7'),
  ],
)
def test_a_grader_that_is_wrong_is_refused(fields, words):
  with pytest.raises(ValueError) as caught:
    graders.make({**MATH, **fields})
  assert words in str(caught.value)


def test_describe_gives_back_what_was_given(grader):
  assert graders.describe(grader) == {**MATH, 'time_limit_seconds': 20}


@pytest.mark.skipif(
  not (ROOT.parent / 'shared/data/gsm8k/train.jsonl').exists(),
  reason='../shared/data/gsm8k is not here',
)
def test_every_reference_of_gsm8k_can_be_read_and_its_own_solution_is_right(grader):
  with open(ROOT.parent / 'shared/data/gsm8k/train.jsonl', encoding='utf-8') as lines:
    rows = [json.loads(line) for line, _ in zip(lines, range(300))]
  pairs = [
    (row, {'output_text': text})
    for row in rows
    for text in (f'So \\boxed{{{row["answer"]}}}.', row['solution'])
  ]
  assert [one.reward for one in graders.grade_many(grader, pairs)] == [1.0] * len(pairs)
