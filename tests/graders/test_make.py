"""Reading grader JSON, samples, and the calls that serve every type."""

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


def test_several_mistakes_are_all_named_at_once():
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


def test_two_mistakes_of_a_python_grader_and_its_sandbox_are_named_at_once():
  message = refusal(
    {'type': 'python', 'name': 'x', 'source': 'def grade(s): return 1', 'img': 'a'},
    sandbox=graders.SandboxConfig(workers=0),
  )
  for words in ("unknown field 'img'", 'sandbox.workers=0, need >= 1', 'exactly two positional'):
    assert words in message


def test_an_unknown_or_missing_type_is_refused():
  assert "did you mean 'string_check'" in refusal({'type': 'stringcheck'})
  assert "did you mean 'json_schema'" in refusal({'type': 'json_scheme'})
  assert all(kind in refusal({'type': 'none'}) for kind in graders.GRADERS)
  assert "'type' is missing" in refusal({'name': 'x'})
  assert 'type=[1] is unknown' in refusal({'type': [1]})


def test_a_missing_name_is_generated_and_is_the_same_in_every_run():
  nameless = {key: value for key, value in EXACT.items() if key != 'name'}
  name = graders.make(nameless).name
  assert name == graders.make(dict(reversed(nameless.items()))).name
  assert name.startswith('grader-') and len(name) == len('grader-') + 12 and name[7:].isalnum()
  assert name != graders.make({**nameless, 'operation': 'ne'}).name


def test_describe_is_the_normal_form_and_a_fixed_point():
  given = {**EXACT, 'operation': 'neq', 'pass_threshold': 0.5}
  described = graders.describe(graders.make(given))
  assert described == {**EXACT, 'operation': 'ne', 'pass_threshold': 0.5}
  assert graders.describe(graders.make(described)) == described


def test_a_grader_is_read_from_a_file(tmp_path):
  path = tmp_path / 'grader.json'
  path.write_text(json.dumps(EXACT))
  assert graders.describe(graders.make(path)) == graders.describe(graders.make(str(path))) == EXACT


def test_a_file_that_is_no_grader_is_refused_with_its_place(tmp_path):
  path = tmp_path / 'grader.json'
  path.write_text('{"type": "python",\n  oops}')
  assert f'{path}:2:3' in refusal(path)
  path.write_text('[]')
  assert str(path) in refusal(path) and 'an array' in refusal(path)
  assert 'nowhere.json' in refusal(tmp_path / 'nowhere.json')
  path.write_text(json.dumps({**EXACT, 'operation': 'is'}))
  assert str(path) in refusal(path)


def test_grade_takes_json_or_a_made_grader_and_parses_the_answer():
  reads_json = {**EXACT, 'input': '{{ sample.output_json.gene }}'}
  for grader in (reads_json, graders.make(reads_json)):
    grade = graders.grade(grader, item={'answer': 'X'}, sample={'output_text': '{"gene": "X"}'})
    assert grade == Grade(1.0, {'exact': 1.0}, {})


def test_grade_leaves_a_given_output_json_alone():
  grade = graders.grade(
    {**EXACT, 'input': '{{ sample.output_json.gene }}'},
    item={'answer': 'Y'},
    sample={'output_text': '{"gene": "X"}', 'output_json': {'gene': 'Y'}},
  )
  assert grade.reward == 1.0


def test_grade_refuses_an_answer_that_is_no_text():
  with pytest.raises(ValueError, match='output_text'):
    graders.grade(EXACT, item={}, sample={'output_text': {'gene': 'X'}})


class Flaky:
  """Fails with a grader fault until the tries for an item are used up; raises on 'broken'."""

  name, ungradable_reward = 'flaky', 0.0

  def __init__(self):
    self.calls = 0

  def __call__(self, item, sample):
    self.calls += 1
    if item.get('broken'):
      raise KeyError('nothing')
    item['failures'] -= 1
    return Grade(None if item['failures'] >= 0 else 1.0, {}, {})


def test_grader_faults_are_retried_in_place_and_then_left():
  flaky = Flaky()
  pairs = [({'failures': n}, {}) for n in (0, 1, 2, 0)]
  assert [grade.reward for grade in graders.grade_many(flaky, pairs)] == [1.0, 1.0, None, 1.0]
  assert flaky.calls == 6
  pairs = [({'failures': n}, {}) for n in (0, 1, 2, 0)]
  rewards = [grade.reward for grade in graders.grade_many(Flaky(), pairs, retries=2)]
  assert rewards == [1.0, 1.0, 1.0, 1.0]


def test_an_exception_out_of_a_grader_does_not_end_the_batch():
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


@pytest.mark.parametrize(
  'text, value',
  [
    ('{"a": 1}', {'a': 1}),
    (' [1, "é"]\n', [1, 'é']),
    ('{}', {}),
    ('"text"', None),
    ('7', None),
    ('', None),
    ('{"a": NaN}', None),
    ('```json\n{}\n```', None),
    ('[' * 100_000, None),
    ('{"a": 1} and more', None),
  ],
)
def test_output_json_is_there_exactly_where_the_text_is_an_object_or_array(text, value):
  sample, errors = graders.make_sample(text)
  assert errors == {} and sample['output_text'] == text
  assert sample.get('output_json') == value and ('output_json' in sample) == (value is not None)
  assert sample['choices'][0]['message']['content'] == text and sample['output_tools'] == []


def test_more_fields_of_a_sample_are_handed_on():
  assert graders.make_sample('x', stop_reason='length')[0]['stop_reason'] == 'length'


GENES = {'type': 'array', 'items': {'$ref': '#/$defs/g'}}
SCHEMA = {
  'type': 'object',
  'properties': {'genes': GENES},
  'required': ['genes'],
  'additionalProperties': False,
  '$defs': {'g': {'type': 'string'}},
}
NESTED = {'type': 'json_schema', 'json_schema': {'name': 'n', 'strict': True, 'schema': SCHEMA}}
FLAT = {'type': 'json_schema', 'name': 'n', 'strict': True, 'schema': SCHEMA}


@pytest.mark.parametrize('response_format', [NESTED, FLAT])
@pytest.mark.parametrize(
  'text, words',
  [
    ('{"genes": ["A"]}', None),
    ('{"genes": []}', None),
    ('{"genes": [1]}', '$.genes[0]'),
    ('{"gene": []}', 'gene'),
    ('no', 'not JSON'),
    ('"A"', 'a string'),
    ('[]', '$'),
  ],
)
def test_an_answer_is_held_against_its_schema(response_format, text, words):
  assert graders.response_format_problems(response_format) == []
  _, errors = graders.make_sample(text, response_format)
  assert set(errors) == ({'sample_parse_error', 'sample_parse_error_details'} if words else set())
  assert not words or words in errors['sample_parse_error_details']


def test_json_object_wants_an_object_and_text_wants_nothing():
  assert graders.make_sample('{}', {'type': 'json_object'})[1] == {}
  assert graders.make_sample('[]', {'type': 'json_object'})[1]['sample_parse_error'] is True
  assert graders.make_sample('x', {'type': 'text'})[1] == {}


@pytest.mark.parametrize(
  'response_format, words',
  [
    ({'type': 'jsonschema'}, "did you mean 'json_schema'"),
    ({'type': 'json_schema'}, 'no schema found'),
    ({'type': 'json_schema', 'schema': {'type': 'objekt'}}, 'not a JSON Schema'),
    ({'type': 'json_schema', 'schema': {'$ref': '#/$defs/none'}}, 'leads nowhere'),
    ({'type': 'json_schema', 'schema': {'items': {'$ref': 'http://a.b/c'}}}, 'leads nowhere'),
    ('json', 'need an object'),
  ],
)
def test_a_bad_response_format_is_told(response_format, words):
  found = graders.response_format_problems(response_format)
  assert len(found) == 1 and words in found[0]
