"""make_sample: output_json, and validation of answers under a response_format."""

import pytest

from rft_jax import graders


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
def test_output_json_is_present_exactly_if_the_text_is_an_object_or_array(text, value):
  sample, errors = graders.make_sample(text)
  assert errors == {} and sample['output_text'] == text
  assert sample.get('output_json') == value and ('output_json' in sample) == (value is not None)
  assert sample['choices'][0]['message']['content'] == text and sample['output_tools'] == []


def test_more_fields_are_added_to_the_sample():
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
def test_an_answer_is_validated_against_the_schema(response_format, text, words):
  assert graders.response_format_problems(response_format) == []
  _, errors = graders.make_sample(text, response_format)
  assert set(errors) == ({'sample_parse_error', 'sample_parse_error_details'} if words else set())
  assert not words or words in errors['sample_parse_error_details']


def test_json_object_needs_an_object_and_text_needs_nothing():
  assert graders.make_sample('{}', {'type': 'json_object'})[1] == {}
  assert graders.make_sample('[]', {'type': 'json_object'})[1]['sample_parse_error'] is True
  assert graders.make_sample('x', {'type': 'text'})[1] == {}


@pytest.mark.parametrize(
  'response_format, words',
  [
    ({'type': 'jsonschema'}, "did you mean 'json_schema'"),
    ({'type': 'json_schema'}, 'it has no schema'),
    ({'type': 'json_schema', 'schema': {'type': 'objekt'}}, 'not a JSON Schema'),
    ({'type': 'json_schema', 'schema': {'$ref': '#/$defs/none'}}, 'does not resolve'),
    ({'type': 'json_schema', 'schema': {'items': {'$ref': 'http://a.b/c'}}}, 'does not resolve'),
    ('json', 'need an object'),
  ],
)
def test_an_invalid_response_format_has_one_problem(response_format, words):
  problems = graders.response_format_problems(response_format)
  assert len(problems) == 1 and words in problems[0]
