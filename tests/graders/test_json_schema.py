"""json_schema: validation against the grader's schema or the response_format of the run."""

import pytest

from rft_jax import graders

SCHEMA = {
  'type': 'object',
  'properties': {'genes': {'type': 'array', 'items': {'type': 'string'}}},
  'required': ['genes'],
  'additionalProperties': False,
}
FORMAT = {'type': 'json_schema', 'json_schema': {'name': 'n', 'schema': SCHEMA}}
JSON = {'type': 'json_schema', 'name': 'format'}


@pytest.mark.parametrize(
  'text, score',
  [
    ('{"genes": ["A"]}', 1.0),
    (' {"genes": []}\n', 1.0),
    ('{"genes": [1]}', 0.0),
    ('{"gene": []}', 0.0),
    ('{"genes": [], "x": 1}', 0.0),
    ('no', 0.0),
    ('', 0.0),
    ('{"genes": ["A"]} and more', 0.0),
    ('```json\n{"genes": []}\n```', 0.0),
    ('{"genes": NaN}', 0.0),
    ('[' * 100_000, 0.0),
  ],
)
def test_an_invalid_answer_scores_0_without_a_fault(text, score):
  for grader in (
    graders.make({**JSON, 'schema': SCHEMA}),
    graders.make(JSON, response_format=FORMAT),
  ):
    assert grader({}, {'output_text': text}) == (score, {'format': score}, {})


def test_the_schema_of_the_grader_has_priority_over_the_response_format():
  grader = graders.make({**JSON, 'schema': {'maxProperties': 0}}, response_format=FORMAT)
  assert grader({}, {'output_text': '{}'}).reward == 1.0
  assert grader({}, {'output_text': '{"genes": []}'}).reward == 0.0


def test_a_schema_accepts_any_json_value_and_json_object_only_an_object():
  grader = graders.make({**JSON, 'schema': {'type': 'integer', 'minimum': 3}})
  assert [grader({}, {'output_text': text}).reward for text in ('3', '2', '"3"')] == [1.0, 0.0, 0.0]
  grader = graders.make(JSON, response_format={'type': 'json_object'})
  assert [grader({}, {'output_text': text}).reward for text in ('{}', '[]', '3')] == [1.0, 0.0, 0.0]


def test_an_answer_that_jsonschema_cannot_check_is_invalid():
  number = {'multipleOf': 0.1}
  assert graders.make({**JSON, 'schema': number})({}, {'output_text': '1e400'}).reward == 0.0
  response_format = {'type': 'json_schema', 'schema': {'properties': {'a': number}}}
  assert graders.make_sample('{"a": 1e400}', response_format)[1]['sample_parse_error'] is True
  assert graders.make_sample('{"a": 3}', response_format)[1] == {}


def test_an_answer_without_text_is_a_policy_fault():
  grader = graders.make({**JSON, 'schema': SCHEMA}, ungradable_reward=-1.0)
  assert grader({}, {}).reward == -1.0 and grader.item_fields() == frozenset()


@pytest.mark.parametrize(
  'fields, response_format, words',
  [
    ({}, None, 'schema is missing'),
    ({}, {'type': 'text'}, 'schema is missing'),
    ({}, {'type': 'jsonschema'}, "did you mean 'json_schema'"),
    ({'schema': 'object'}, None, 'schema is a string'),
    ({'schema': {'type': 'objekt'}}, None, 'schema: not a JSON Schema'),
    ({'schema': {'$ref': 'http://a.b/c'}}, None, 'does not resolve'),
    ({'schema': {'items': {'$dynamicRef': '#x'}}}, None, 'use $ref'),
    ({'schema': {'pattern': '('}}, None, 'not a JSON Schema'),
  ],
)
def test_a_grader_without_a_valid_schema_is_refused(fields, response_format, words):
  with pytest.raises(ValueError, match='grader format') as caught:
    graders.make({**JSON, **fields}, response_format=response_format)
  assert words in str(caught.value)


def test_describe_does_not_include_the_response_format():
  assert graders.describe(graders.make(JSON, response_format=FORMAT)) == JSON
  assert graders.describe(graders.make({**JSON, 'schema': SCHEMA})) == {**JSON, 'schema': SCHEMA}
