"""Grader JSON written for OpenAI's service: loads unchanged and grades as documented.

The objects are the examples of the service's documentation, with their abbreviated parts filled in.
"""

import json

import local_server
import pytest
from local_server import Reply

from rft_jax import graders
from rft_jax.graders import openai_api

STRING_CHECK = {
  'type': 'string_check',
  'name': 'x',
  'input': '{{sample.output_text}}',
  'reference': '{{item.reference_answer}}',
  'operation': 'eq',
}
TEXT_SIMILARITY = {
  'type': 'text_similarity',
  'name': 'x',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.reference_answer }}',
  'evaluation_metric': 'fuzzy_match',
  'pass_threshold': 0.8,
}
PYTHON = {
  'type': 'python',
  'name': 'x',
  'image_tag': '2025-05-08',
  'source': 'def grade(sample, item):\n    return 1.0',
}
SCORE_MODEL = {
  'type': 'score_model',
  'name': 'judge',
  'model': 'gpt-4.1-2025-04-14',
  'input': [
    {'type': 'message', 'role': 'developer', 'content': 'Rate from 0 to 1.'},
    {
      'role': 'user',
      'content': {'type': 'input_text', 'text': '{{item.reference_answer}} {{sample.output_text}}'},
    },
  ],
  'range': [0, 1],
  'pass_threshold': 0.5,
  'sampling_params': {
    'seed': 1,
    'top_p': 1.0,
    'temperature': 0,
    'max_completions_tokens': 512,
    'reasoning_effort': 'low',
  },
}
LABEL_MODEL = {
  'type': 'label_model',
  'name': 'tone',
  'model': 'gpt-4o-mini-2024-07-18',
  'input': [{'role': 'user', 'content': '{{sample.output_text}}'}],
  'labels': ['good', 'bad'],
  'passing_labels': ['good'],
}
MULTI = {
  'type': 'multi',
  'name': 'x',
  'calculate_output': '(name + email) / 2',
  'graders': {
    'name': {
      'type': 'string_check',
      'name': 'name',
      'operation': 'eq',
      'input': '{{sample.output_json.name}}',
      'reference': '{{item.name}}',
    },
    'email': {
      'type': 'text_similarity',
      'name': 'email',
      'evaluation_metric': 'fuzzy_match',
      'input': '{{sample.output_json.email}}',
      'reference': '{{item.email}}',
    },
  },
}
ENDPOINT = {
  'type': 'endpoint',
  'name': 'mine',
  'url': '',
  'headers': {},
  'rate_limit': 50,
  'pass_threshold': 8,
}


def _reward(grader, text, item):
  grader = graders.make(grader)
  try:
    return openai_api.run(grader, text, item)
  finally:
    grader.close()


@pytest.mark.parametrize(
  'grader, text, item, reward',
  [
    (STRING_CHECK, 'JKT-URB-009', {'reference_answer': 'JKT-URB-009'}, 1.0),
    (STRING_CHECK, 'jkt-urb-009', {'reference_answer': 'JKT-URB-009'}, 0.0),
    (dict(STRING_CHECK, operation='neq'), 'a', {'reference_answer': 'b'}, 1.0),
    (dict(STRING_CHECK, operation='ilike'), 'A JKT-urb.', {'reference_answer': 'jkt-URB'}, 1.0),
    (TEXT_SIMILARITY, 'Fuzzy was a bear', {'reference_answer': 'fuzzy WAS a bear!'}, 1.0),
    (PYTHON, 'anything', {}, 1.0),
    (MULTI, '{"name": "Ada", "email": "ada@x.org"}', {'name': 'Ada', 'email': 'ada@x.org'}, 1.0),
    (MULTI, '{"name": "Bob", "email": "ada@x.org"}', {'name': 'Ada', 'email': 'ada@x.org'}, 0.5),
    (
      dict(MULTI, graders=list(MULTI['graders'].values())),
      '{"name": "Bob", "email": "ada@x.org"}',
      {'name': 'Ada', 'email': 'ada@x.org'},
      0.5,
    ),
    (MULTI, 'no JSON', {'name': 'Ada', 'email': 'ada@x.org'}, 0.0),
  ],
)
def test_documented_graders_grade_as_documented(grader, text, item, reward):
  assert _reward(grader, text, item)['reward'] == reward


def test_the_example_of_hydrogen_bonds():
  """A python grader over a nested reference, as the guide's own rows have it."""
  source = (
    'def grade(sample, item):\n'
    '    answer, reference = sample["output_json"], item["reference_answer"]\n'
    '    return sum(answer[key] == reference[key] for key in reference) / len(reference)\n'
  )
  item = {'messages': [], 'reference_answer': {'donor_bond_counts': 5, 'acceptor_bond_counts': 7}}
  text = json.dumps({'donor_bond_counts': 5, 'acceptor_bond_counts': 6})
  assert _reward(dict(PYTHON, source=source), text, item)['reward'] == 0.5
  response = _reward(dict(PYTHON, source=source), 'five and six', item)
  assert response['reward'] == 0.0
  assert response['metadata']['errors']['python_grader_runtime_error'] is True
  assert 'KeyError' in response['metadata']['errors']['python_grader_runtime_error_details']


def _completion(content):
  usage = {'prompt_tokens': 190, 'completion_tokens': 134, 'total_tokens': 324}
  return Reply(
    {
      'id': 'c',
      'object': 'chat.completion',
      'created': 1,
      'model': 'm',
      'usage': usage,
      'choices': [
        {'index': 0, 'finish_reason': 'stop', 'message': {'role': 'assistant', 'content': content}}
      ],
    }
  )


def _judged(grader, content, monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setenv('OPENAI_API_KEY', 'k')
  with local_server.serving(lambda *_: _completion(content)) as server:
    judges = graders.Judges(graders.JudgeConfig(base_url=f'{server.url}/v1'))
    grader = graders.make(grader, judges=judges)
    response = openai_api.run(grader, 'five', {'reference_answer': '5'})
    judges.close()
  return response, server.requests


def test_the_documented_score_model_asks_and_counts(monkeypatch):
  answer = json.dumps({'steps': [{'description': 'd', 'conclusion': 'c'}], 'result': 0.75})
  response, requests = _judged(SCORE_MODEL, answer, monkeypatch)
  assert response['reward'] == 0.75 and requests[0]['body']['model'] == 'gpt-4.1-2025-04-14'
  assert response['metadata']['token_usage']['prompt_tokens'] == 190
  assert response['metadata']['sampled_model_name'] == 'gpt-4.1-2025-04-14'
  usage = response['model_grader_token_usage_per_model']['gpt-4.1-2025-04-14']
  assert (usage['completion_tokens'], usage['total_tokens']) == (134, 324)
  assert (
    _judged(dict(SCORE_MODEL, range=[0, 5]), answer.replace('0.75', '9'), monkeypatch)[0]['reward']
    == 5.0
  )  # clamped to its range


def test_the_documented_label_model_passes_its_labels(monkeypatch):
  for label, reward in (('good', 1.0), ('bad', 0.0)):
    answer = json.dumps({'steps': [], 'result': label})
    assert _judged(LABEL_MODEL, answer, monkeypatch)[0]['reward'] == reward


def test_the_documented_endpoint_posts_sample_and_item():
  with local_server.serving(lambda *_: Reply({'score': 8.5})) as server:
    assert _reward(dict(ENDPOINT, url=server.url), 'five', {'n': 1})['reward'] == 8.5
  body = server.requests[0]['body']
  assert body['sample']['output_text'] == 'five' and body['item'] == {'n': 1}
  assert 'trace_id' in body


@pytest.mark.parametrize(
  'response_format',
  [
    {
      'type': 'json_schema',
      'json_schema': {
        'name': 'n',
        'strict': True,
        'schema': {
          'type': 'object',
          'required': ['name'],
          'properties': {'name': {'type': 'string'}},
        },
      },
    },
    {
      'type': 'json_schema',
      'name': 'n',
      'strict': True,
      'schema': {
        'type': 'object',
        'required': ['name'],
        'properties': {'name': {'type': 'string'}},
      },
    },
  ],
)
def test_answers_are_validated_under_both_spellings_of_response_format(response_format):
  grader = graders.make(MULTI['graders']['name'])
  graded = openai_api.run(
    grader, '{"name": "Ada"}', {'name': 'Ada'}, response_format=response_format
  )
  assert graded['reward'] == 1.0
  broken = openai_api.run(
    grader, '{"nom": "Ada"}', {'name': 'Ada'}, response_format=response_format
  )
  assert broken['reward'] == 0.0 and broken['metadata']['errors']['sample_parse_error'] is True
