"""Sandbox pools: processes are shared and replaced between the calls of a python grader."""

import pytest

from rft_jax import graders


def rewards_of(source, items, **limits):
  grader = graders.make(
    {'type': 'python', 'name': 'x', 'source': source},
    sandbox=graders.SandboxConfig(time_limit_seconds=5, **limits),
  )
  try:
    return [grade.reward for grade in grader.many([(item, {}) for item in items])]
  finally:
    grader.close()


def test_a_fresh_process_for_each_call_cannot_answer_for_others():
  source = (
    'import os\ndef grade(sample, item):\n  if item["n"] != 3: return item["n"]\n'
    '  while True:\n    for descriptor in range(3, 32):\n'
    '      try: os.write(descriptor, b\'["score", 99.0, "", true]\\n\')\n'
    '      except OSError: pass\n'
  )
  rewards = rewards_of(source, [{'n': n} for n in range(8)], calls_per_worker=1)
  assert rewards[3] == 99.0 and [*rewards[:3], *rewards[4:]] == [0, 1, 2, 4, 5, 6, 7]


def test_a_fresh_process_for_each_call_has_builtins_of_its_own():
  source = (
    'import builtins\ndef grade(sample, item):\n  score = len("abc")\n'
    '  builtins.len = lambda value: 99\n  return score'
  )
  assert rewards_of(source, [{}] * 3, calls_per_worker=1) == [3.0] * 3


def test_a_call_cannot_read_the_calls_after_it():
  source = (
    'import os\ndef grade(sample, item):\n  chunks = []\n'
    '  for number in range(3, 64):\n    try:\n'
    '      os.set_blocking(number, False)\n      chunks.append(os.read(number, 1 << 20))\n'
    '    except OSError: pass\n'
    '    try: os.set_blocking(number, True)\n    except OSError: pass\n'
    '  return float(any(b"secret" in chunk for chunk in chunks))\n'
  )
  assert rewards_of(source, [{'n': 'secret'}] * 20) == [0.0] * 20


@pytest.mark.parametrize(
  'count, expected', [(1, [1] * 6), (2, [1, 2, 1, 2, 1, 2]), (100, [1, 2, 3, 4, 5, 6])]
)
def test_a_worker_is_fresh_after_calls_per_worker(count, expected):
  source = 'calls = []\ndef grade(sample, item):\n  calls.append(0)\n  return len(calls)'
  assert rewards_of(source, [{}] * 6, calls_per_worker=count) == expected


def test_a_worker_is_fresh_after_an_error():
  source = (
    'calls = []\ndef grade(sample, item):\n  calls.append(0)\n'
    '  if item["bad"]: raise ValueError\n  return len(calls)'
  )
  assert rewards_of(source, [{'bad': bad} for bad in (0, 0, 1, 0, 0)]) == [1, 2, 0.0, 1, 2]


@pytest.mark.parametrize(
  'statement',
  ['threading.Thread(target=time.sleep, args=[100]).start()', 'os.fork() or time.sleep(100)'],
)
def test_a_worker_is_fresh_after_a_call_left_a_thread_or_process_running(statement):
  source = (
    'import os, threading, time\ncalls = []\ndef grade(sample, item):\n'
    f'  calls.append(0)\n  {statement}\n  return len(calls)'
  )
  assert rewards_of(source, [{}] * 3) == [1, 1, 1]


def test_files_of_a_call_that_failed_are_gone():
  source = (
    'import os\ndef grade(sample, item):\n  count = len(os.listdir())\n'
    '  open("file", "w").write("x")\n  if item["bad"]: raise ValueError\n  return count'
  )
  assert rewards_of(source, [{'bad': bad} for bad in (0, 0, 1, 0)]) == [0, 1, 0.0, 0]


def test_packages_that_are_installed_can_be_imported():
  source = (
    'import ctypes, multiprocessing, numpy, sqlite3, ssl, subprocess, sys, zoneinfo\n'
    'import rapidfuzz\n'
    'def grade(sample, item):\n'
    '  process = subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True)\n'
    '  return numpy.arange(4).sum() + (process.stdout == b"7\\n")'
  )
  assert rewards_of(source, [{}]) == [7.0]


@pytest.mark.parametrize('field, value', [('require', 'docker'), ('calls_per_worker', 0)])
def test_settings_out_of_range_are_refused(field, value):
  problems = graders.SandboxConfig(**{field: value}).validate()
  assert [problem for problem in problems if problem.startswith(f'{field}={value!r}')]
