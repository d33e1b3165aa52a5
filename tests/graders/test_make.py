"""make, describe, grade and grade_many: reading grader JSON, and the calls for every type."""

import json
import subprocess
import sys

import pytest
from paths import ROOT

from rft_jax import graders
from rft_jax.types import Grade

EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
  'operation': 'eq',
}


def refusal(grader, **settings) -> str:
  with pytest.raises(ValueError) as caught:
    graders.make(grader, **settings)
  return str(caught.value)


def test_importing_graders_does_not_import_jax():
  code = "import rft_jax.graders, sys; assert not {'jax', 'numpy', 'jsonschema'} & set(sys.modules)"
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_all_problems_of_a_grader_are_listed():
  message = refusal(
    {
      'type': 'string_check',
      'name': 'x',
      'input': '{{ smaple.output_text }}',
      'refrence': 'y',
      'operation': 'equals',
      'pass_threshold': '0.5',
    }
  )
  for words in (
    "unknown field 'refrence' (did you mean 'reference'?)",
    "'reference' is missing",
    'input: {{ smaple.output_text }}',
    "operation='equals'",
    "pass_threshold='0.5'",
  ):
    assert words in message


def test_problems_of_a_python_grader_and_of_its_sandbox_are_listed_together():
  message = refusal(
    {'type': 'python', 'name': 'x', 'source': 'def grade(s): return 1', 'img': 'a'},
    sandbox=graders.SandboxConfig(workers=0),
  )
  for words in ("unknown field 'img'", 'sandbox.workers=0, need >= 1', 'exactly two positional'):
    assert words in message


def test_an_unknown_or_missing_type_is_refused():
  assert "did you mean 'string_check'" in refusal({'type': 'stringcheck'})
  assert "did you mean 'json_schema'" in refusal({'type': 'json_scheme'})
  assert all(name in refusal({'type': 'none'}) for name in graders.GRADERS)
  assert "'type' is missing" in refusal({'name': 'x'})
  assert 'type=[1] is unknown' in refusal({'type': [1]})


def test_a_missing_name_is_generated_and_is_the_same_in_every_run():
  nameless = {key: value for key, value in EXACT.items() if key != 'name'}
  name = graders.make(nameless).name
  assert name == graders.make(dict(reversed(nameless.items()))).name
  assert name.startswith('grader-') and len(name) == len('grader-') + 12 and name[7:].isalnum()
  assert name != graders.make({**nameless, 'operation': 'ne'}).name


def test_describe_is_the_normal_form_and_a_fixed_point():
  grader_json = {**EXACT, 'operation': 'neq', 'pass_threshold': 0.5}
  described = graders.describe(graders.make(grader_json))
  assert described == {**EXACT, 'operation': 'ne', 'pass_threshold': 0.5}
  assert graders.describe(graders.make(described)) == described


def test_a_grader_is_read_from_a_file(tmp_path):
  path = tmp_path / 'grader.json'
  path.write_text(json.dumps(EXACT))
  assert graders.describe(graders.make(path)) == graders.describe(graders.make(str(path))) == EXACT


def test_a_file_without_a_grader_is_refused_with_path_line_and_column(tmp_path):
  path = tmp_path / 'grader.json'
  path.write_text('{"type": "python",\n  oops}')
  message = refusal(path)
  assert f'{path}:2: not JSON' in message and 'column 3' in message
  path.write_text('[]')
  assert str(path) in refusal(path) and 'an array' in refusal(path)
  absent = tmp_path / 'nowhere.json'
  assert f'grader={absent}: cannot be read (No such file' in refusal(absent)
  path.write_text(json.dumps({**EXACT, 'operation': 'is'}))
  assert str(path) in refusal(path)


def test_grade_accepts_json_or_a_grader_and_parses_the_answer():
  reads_json = {**EXACT, 'input': '{{ sample.output_json.gene }}'}
  for grader in (reads_json, graders.make(reads_json)):
    grade = graders.grade(grader, item={'answer': 'X'}, sample={'output_text': '{"gene": "X"}'})
    assert grade == Grade(1.0, {'exact': 1.0}, {})


def test_grade_does_not_replace_output_json():
  grade = graders.grade(
    {**EXACT, 'input': '{{ sample.output_json.gene }}'},
    item={'answer': 'Y'},
    sample={'output_text': '{"gene": "X"}', 'output_json': {'gene': 'Y'}},
  )
  assert grade.reward == 1.0


def test_grade_refuses_an_output_text_that_is_not_a_string():
  with pytest.raises(ValueError, match='output_text'):
    graders.grade(EXACT, item={}, sample={'output_text': {'gene': 'X'}})


class Flaky:
  """Returns a grader fault item['failures'] times; raises if item['broken']."""

  name, ungradable_reward = 'flaky', 0.0

  def __init__(self):
    self.calls = 0

  def __call__(self, item, sample):
    self.calls += 1
    if item.get('broken'):
      raise KeyError('nothing')
    item['failures'] -= 1
    return Grade(None if item['failures'] >= 0 else 1.0, {}, {})


def test_grader_faults_are_retried_in_order_and_stay_after_the_last_attempt():
  flaky = Flaky()
  pairs = [({'failures': n}, {}) for n in (0, 1, 2, 0)]
  assert [grade.reward for grade in graders.grade_many(flaky, pairs)] == [1.0, 1.0, None, 1.0]
  assert flaky.calls == 6
  pairs = [({'failures': n}, {}) for n in (0, 1, 2, 0)]
  rewards = [grade.reward for grade in graders.grade_many(Flaky(), pairs, retries=2)]
  assert rewards == [1.0, 1.0, 1.0, 1.0]


def test_an_exception_in_a_grader_does_not_end_the_batch():
  pairs = [({'failures': 0}, {}), ({'broken': True}, {}), ({'failures': 0}, {})]
  grades = graders.grade_many(Flaky(), pairs)
  assert [grade.reward for grade in grades] == [1.0, None, 1.0]
  assert grades[1].errors['other_error'] is True
  assert 'KeyError' in grades[1].errors['other_error_details']


def test_a_policy_fault_is_not_retried():
  calls = []

  class Raises:
    name, ungradable_reward = 'x', -1.0

    def __call__(self, item, sample):
      calls.append(item['n'])
      return graders.policy_fault(self, {'python_grader_runtime_error': True})

  pairs = [({'n': n}, {}) for n in range(2)]
  assert [grade.reward for grade in graders.grade_many(Raises(), pairs)] == [-1.0, -1.0]
  assert calls == [0, 1]
