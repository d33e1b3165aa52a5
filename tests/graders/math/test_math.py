"""The math grader: equality, the final answer in a text, and failures of its worker processes."""

import json
import os
import pathlib
import subprocess
import sys
import time

import math_verify
import pytest
from paths import ROOT
from processes import children

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
  grader = graders.make({**MATH, 'time_limit_seconds': 20}, ungradable_reward=-1.0)
  yield grader
  grader.close()


def grade(grader, reference, answer):
  return grader({'answer': reference}, {'output_text': answer})


def test_an_answer_equal_to_the_reference_scores_1_and_others_0(grader):
  cases = [  # reference, answer, score
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
  ]
  offenders = []
  for reference, answer, score in cases:
    actual = grade(grader, reference, answer)
    if actual != (score, {'math': score}, {}):
      offenders.append(f'{reference!r}, {answer!r}: {actual}, need {score}')
  assert not offenders


@pytest.mark.parametrize(
  'answer, score',
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
def test_the_final_answer_counts(grader, answer, score):
  assert grade(grader, '2', answer).reward == score


@pytest.mark.parametrize(
  'reference, answer',
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
def test_the_verdict_is_that_of_math_verify_with_the_reference_first(grader, reference, answer):
  expected = math_verify.verify(math_verify.parse(reference), math_verify.parse(answer))
  assert grade(grader, reference, answer).reward == float(expected)


def test_equality_of_reference_and_answer_is_not_symmetric(grader):
  assert grade(grader, '$1 < x < 2$', '$(1, 2)$').reward == 1.0
  assert grade(grader, '$(1, 2)$', '$1 < x < 2$').reward == 0.0


@pytest.mark.parametrize('reference', ['', '  ', '\\boxed{', '\\boxed{}', '####', '1/0', '$$'])
def test_a_reference_without_an_expression_is_a_grader_fault(grader, reference):
  for answer in (reference, '\\boxed{}', '', '7'):
    fault = grade(grader, reference, answer)
    assert fault.reward is None and fault.components == {'math': None}
    assert fault.errors['other_error'] is True
    assert repr(reference) in fault.errors['other_error_details']


def test_a_missing_field_is_a_grader_fault_in_the_row_and_a_policy_fault_in_the_answer(grader):
  grades = graders.grade_many(
    grader,
    [({}, {'output_text': '7'}), ({'answer': '7'}, {}), ({'answer': '7'}, {'output_text': '7'})],
  )
  assert [grade.reward for grade in grades] == [None, -1.0, 1.0]
  assert all(grade.errors['invalid_variable_error'] is True for grade in grades[:2])
  assert grader.item_fields() == {'answer'}


@pytest.mark.full
def test_unusual_texts_get_a_score(grader):
  for answer in ('\x00', '\ud800 \\boxed{7}', '{' * 500, '\\boxed{' * 300, '7' * 5000, '"\n\\'):
    assert grade(grader, '8', answer).reward == 0.0


def test_an_expression_bomb_is_killed_and_the_other_answers_are_graded():
  grader = graders.make({**MATH, 'time_limit_seconds': 1.0})
  try:
    pairs = [({'answer': '7'}, {'output_text': text}) for text in ('7', BOMB, '8', '\\boxed{7}')]
    start = time.monotonic()
    grades = graders.grade_many(grader, pairs, retries=0)
    assert time.monotonic() - start < 15
  finally:
    grader.close()
  assert [grade.reward for grade in grades] == [1.0, None, 0.0, 1.0]
  assert grades[1].errors['python_grader_server_error'] is True
  assert grades[1].errors['python_grader_server_error_type'] == 'timeout'
  assert '9^9' in grades[1].errors['python_grader_server_error_details']


@pytest.mark.full
def test_an_answer_too_large_for_the_memory_is_a_grader_fault_and_the_next_is_graded():
  grader = graders.make(MATH, sandbox=graders.SandboxConfig(memory_limit_mb=256))
  try:
    fault = grade(grader, '7', '7' * (100 << 20))
    assert fault.reward is None and fault.errors['python_grader_server_error'] is True
    assert fault.errors['python_grader_server_error_type'] in ('memory_limit', 'worker_killed')
    assert len(fault.errors['python_grader_server_error_details']) < 1000
    assert grade(grader, '7', '7').reward == 1.0
  finally:
    grader.close()


def test_an_interrupted_call_leaves_no_reply_for_the_next_one(monkeypatch):
  def interrupted_poll():
    raise KeyboardInterrupt

  pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)
  try:
    with monkeypatch.context() as patch:
      patch.setattr('select.poll', interrupted_poll)  # the call has been sent by then
      with pytest.raises(KeyboardInterrupt):
        pool.verify([('7', '7')])
    assert pool.verify([('7', '8')]) == [('different', '')]
  finally:
    pool.close()


def test_a_forked_process_does_not_kill_workers_of_its_parent():
  code = (
    'import os, sys; sys.path.append("tests")\n'
    'from processes import children; from rft_jax.graders.math import pool as math_pool\n'
    'pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)\n'
    'before, child = children(), os.fork()\n'
    'pool.close() if not child else os.waitpid(child, 0)\n'
    'if child: print(pool.verify([("7", "7")])[0].kind, children() == before)'
  )
  process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert process.stdout == 'equal True\n', process.stderr


@pytest.mark.full
def test_several_processes_work_in_parallel_and_keep_the_order():
  grader = graders.make(
    {**MATH, 'time_limit_seconds': 1.5}, sandbox=graders.SandboxConfig(workers=2)
  )
  try:
    texts = [BOMB, *('7' if index % 3 else '8' for index in range(30)), BOMB]
    grades = graders.grade_many(
      grader, [({'answer': '7'}, {'output_text': text}) for text in texts], retries=0
    )
  finally:
    grader.close()
  assert [grade.reward for grade in grades] == [
    None,
    *(float(bool(index % 3)) for index in range(30)),
    None,
  ]


@pytest.mark.full
def test_a_process_is_replaced_after_its_number_of_calls_and_after_its_death(monkeypatch):
  monkeypatch.setattr(math_pool, 'CALLS_PER_PROCESS', 3)
  other_ids = set(children())
  pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)
  try:
    ids = []
    for _ in range(7):
      assert pool.verify([('7', '7')]) == [('equal', '')]
      ids += set(children()) - other_ids
    assert len(ids) == 7 and ids[0] == ids[2] != ids[3] == ids[5] != ids[6]
    os.kill(ids[6], 9)
    wait_for_end(ids[6])
    assert pool.verify([('7', '8')]) == [('different', '')]
  finally:
    pool.close()


def wait_for_end(process_id: int):
  """Waits until a process has ended; it may be a zombie."""
  process, deadline = pathlib.Path('/proc', str(process_id)), time.monotonic() + 20
  while process.exists() and 'State:\tZ' not in (process / 'status').read_text():
    assert time.monotonic() < deadline, 'it still runs'
    time.sleep(0.05)


def test_a_process_dies_with_the_program_that_started_it():
  code = (
    'import os, sys; sys.path.append("tests")\n'
    'from processes import children; from rft_jax.graders.math import pool as math_pool\n'
    'pool = math_pool.Pool(workers=1, time_limit_seconds=20.0, memory_limit_mb=2048)\n'
    'print(*children(), flush=True)\n'
    'os.kill(os.getpid(), 9)'
  )
  process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  wait_for_end(int(process.stdout))


def test_the_worker_loads_neither_jax_nor_this_package():
  code = (
    'import sys; sys.argv[1:] = ["5", "2048"]\n'
    'import runpy; worker = runpy.run_path(%r)\n'
    'assert worker["verify"]("1/2", "0.5") == ["equal", ""]\n'
    'assert not {"jax", "rft_jax"} & set(sys.modules)' % str(math_pool.WORKER)
  )
  subprocess.run([sys.executable, '-P', '-c', code], cwd='/', check=True)


def test_if_no_process_can_start_the_grader_is_refused(monkeypatch, tmp_path):
  failing_worker = tmp_path / 'worker.py'
  failing_worker.write_text('raise SystemExit(3)')
  monkeypatch.setattr(math_pool, 'WORKER', failing_worker)
  with pytest.raises(RuntimeError, match='code 3'):
    graders.make(MATH)


def test_a_closed_grader_gives_a_grader_fault():
  grader = graders.make(MATH)
  grader.close()
  grader.close()
  assert grade(grader, '7', '7').reward is None


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
def test_invalid_fields_are_refused(fields, words):
  with pytest.raises(ValueError) as caught:
    graders.make({**MATH, **fields})
  assert words in str(caught.value)


def test_describe_returns_the_json_of_the_grader(grader):
  assert graders.describe(grader) == {**MATH, 'time_limit_seconds': 20}


@pytest.mark.skipif(
  not (ROOT.parent / 'shared/data/gsm8k/train.jsonl').exists(),
  reason='../shared/data/gsm8k is not here',
)
def test_references_of_gsm8k_can_be_parsed_and_their_solutions_score_1(grader):
  with open(ROOT.parent / 'shared/data/gsm8k/train.jsonl', encoding='utf-8') as lines:
    rows = [json.loads(line) for line, _ in zip(lines, range(300))]
  pairs = [
    (row, {'output_text': text})
    for row in rows
    for text in (f'So \\boxed{{{row["answer"]}}}.', row['solution'])
  ]
  assert [grade.reward for grade in graders.grade_many(grader, pairs)] == [1.0] * len(pairs)
