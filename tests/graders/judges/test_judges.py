"""Model judges: requests to an endpoint, parsing of verdicts, errors, and the verdict cache."""

import json
import re
import sqlite3

import local_server
import pytest
from local_server import Reply

from rft_jax import graders
from rft_jax.graders.judges import cache as judge_cache
from rft_jax.graders.judges import grading
from rft_jax.types import Grade

ITEM, SAMPLE = {'answer': 'BRCA2'}, {'output_text': 'the gene is BRCA2'}
SCORE = {
  'type': 'score_model',
  'name': 'judge',
  'model': 'gpt-4.1-2025-04-14',
  'input': [
    {'role': 'developer', 'content': 'Wanted: {{ item.answer }}'},
    {'role': 'user', 'content': 'Rate this: {{ sample.output_text }}'},
  ],
}
LABEL = {
  'type': 'label_model',
  'name': 'tone',
  'model': 'm',
  'labels': ['kind', 'rude', 'neither'],
  'passing_labels': ['kind', 'neither'],
  'input': [{'role': 'user', 'content': '{{ sample.output_text }}'}],
}
USAGE = {
  'prompt_tokens': 190,
  'completion_tokens': 134,
  'total_tokens': 324,
  'prompt_tokens_details': {'cached_tokens': 64},
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  monkeypatch.setenv('no_proxy', '*')
  monkeypatch.setenv('OPENAI_API_KEY', 'key-9')
  monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
  monkeypatch.setattr('openai._base_client.INITIAL_RETRY_DELAY', 0.01)
  monkeypatch.setattr('openai._base_client.MAX_RETRY_DELAY', 0.02)


def completion(content, *, finish_reason='stop', refusal=None, usage=USAGE, **reply) -> Reply:
  """A chat completion as OpenAI's API gives it."""
  message = {'role': 'assistant', 'content': content, 'refusal': refusal}
  return Reply(
    {
      'id': 'c',
      'object': 'chat.completion',
      'created': 1,
      'model': 'm',
      'usage': usage,
      'choices': [{'index': 0, 'finish_reason': finish_reason, 'message': message}],
    },
    **reply,
  )


def verdict(result, **reply) -> Reply:
  steps = [{'description': 'gene', 'conclusion': 'right'}]
  return completion(json.dumps({'steps': steps, 'result': result}), **reply)


def error(status, message='no') -> Reply:
  return Reply({'error': {'message': message, 'type': 'x', 'code': None}}, status)


class JudgeRun:
  """The grades, requests and counts of grading against a local server with these answers."""

  def __init__(self, answer, grader_json=SCORE, pairs=((ITEM, SAMPLE),), retries=0, **config):
    answer = answer if callable(answer) else (lambda *_, reply=answer: reply)
    with local_server.serving(answer) as server:
      judges = graders.Judges(graders.JudgeConfig(base_url=server.url + '/v1', **config))
      self.grader = graders.make(grader_json, judges=judges)
      self.grades = graders.grade_many(self.grader, list(pairs), retries=retries)
      judges.close()
    self.grade, self.server, self.requests = self.grades[0], server, server.requests
    self.bodies = [request['body'] for request in server.requests]
    self.counts = self.grader.tallies[self.grader.name].take()


def test_a_verdict_is_the_score_and_its_tokens_are_counted():
  run = JudgeRun(verdict(0.75))
  assert run.grade == Grade(0.75, {'judge': 0.75}, {})
  assert run.counts.pop('seconds') > 0
  assert run.counts == {
    'grades': 1,
    'usage/prompt_tokens': 190,
    'usage/total_tokens': 324,
    'usage/completion_tokens': 134,
    'usage/cached_tokens': 64,
  }
  assert run.grader.tallies['judge'].model == 'gpt-4.1-2025-04-14'


def test_requests_have_the_form_of_chat_completions():
  grader_json = {
    **SCORE,
    'sampling_params': {
      'seed': 1,
      'temperature': 0,
      'max_completions_tokens': 99,
      'top_p': None,
      'reasoning_effort': 'low',
    },
  }
  [request] = JudgeRun(verdict(1), grader_json).requests
  assert request['path'] == '/v1/chat/completions'
  assert request['headers']['Authorization'] == 'Bearer key-9'
  body = request['body']
  assert body.pop('messages')[0]['role'] == 'system'
  schema = body.pop('response_format')['json_schema']
  assert body == {
    'model': 'gpt-4.1-2025-04-14',
    'seed': 1,
    'temperature': 0,
    'max_tokens': 99,
    'reasoning_effort': 'low',
  }
  assert schema['strict'] is True and schema['schema']['properties']['result'] == {'type': 'number'}


def test_the_config_overrides_model_and_max_tokens():
  [body] = JudgeRun(verdict(1), model='qwen', max_tokens=77).bodies
  assert body['model'] == 'qwen' and body['max_tokens'] == 77


@pytest.mark.parametrize(
  'result, bounds, score',
  [(7, [0, 5], 5.0), (-3, [0, 5], 0.0), (3.5, [0, 5], 3.5), (2, [0, 1], 1.0), (-9, [-2, -1], -2.0)],
)
def test_a_number_out_of_range_is_clamped(result, bounds, score):
  run = JudgeRun(verdict(result), {**SCORE, 'range': bounds})
  assert run.grade == Grade(score, {'judge': score}, {})
  assert f'from {bounds[0]} to {bounds[1]}' in run.bodies[0]['messages'][0]['content']


@pytest.mark.parametrize('label, score', [('kind', 1.0), ('neither', 1.0), ('rude', 0.0)])
def test_a_label_passes_or_not(label, score):
  run = JudgeRun(verdict(label), LABEL)
  assert run.grade == Grade(score, {'tone': score}, {})
  schema = run.bodies[0]['response_format']['json_schema']['schema']
  assert schema['properties']['result']['enum'] == ['kind', 'rude', 'neither']


@pytest.mark.parametrize(
  'grader_json, reply',
  [
    (SCORE, verdict('high')),
    (SCORE, verdict('0.5')),
    (SCORE, verdict(True)),
    (SCORE, verdict(None)),
    (SCORE, completion('{"result": NaN}')),
    (SCORE, completion('0.5')),
    (SCORE, completion('{"result": 1' + '0' * 400 + '}')),
    (SCORE, completion('{"score": 1}')),
    (SCORE, completion('')),
    (SCORE, completion(None)),
    (SCORE, completion('{"a":' * 5000)),
    (LABEL, verdict('Kind')),
    (LABEL, verdict(['kind'])),
    (LABEL, verdict(1)),
  ],
)
def test_an_answer_without_a_verdict_is_retried_and_then_a_grader_fault(grader_json, reply):
  run = JudgeRun(reply, grader_json, retries=0)
  assert len(run.requests) == 4  # once, and 3 retries
  assert run.grade.reward is None and list(run.grade.components.values()) == [None]
  assert run.grade.errors['model_grader_parse_error'] is True
  assert run.grade.errors['model_grader_parse_error_details']
  assert run.counts['usage/total_tokens'] == 4 * 324  # of all attempts
  assert run.counts['errors/model_grader_parse_error'] == 1


def test_an_answer_that_can_be_parsed_at_the_second_attempt_counts():
  run = JudgeRun(lambda _, n: verdict(0.5) if n else completion('well...'))
  assert run.grade.reward == 0.5 and len(run.requests) == 2
  assert run.counts['usage/total_tokens'] == 2 * 324


@pytest.mark.parametrize(
  'text, result',
  [
    ('{"result": 0.5, "steps": []}', 0.5),
    ('```json\n{"result": 1}\n```', 1),
    ('The answer says {"result": 1}. It is wrong: {"steps": [{"a": {}}], "result": 0}', 0),
    ('<think>{"result": 3}</think> {"steps": [], "result": 2} Done {1}.', 2),
    ('{{{"result": 4}', 4),
  ],
)
def test_the_last_verdict_in_the_text_counts(text, result):
  assert grading.parse_result(text) == result


@pytest.mark.parametrize(
  'reply, key, words',
  [
    (completion(None, refusal='I will not.'), 'refusal', 'I will not.'),
    (completion(None, finish_reason='content_filter'), 'refusal', 'content filter'),
    (error(401, 'Incorrect key: key-9'), 'server', 'Incorrect key: ***'),
    (error(404, 'no such model'), 'server', 'no such model'),
    (Reply(b'<html>', 200, {'Content-Type': 'text/html'}), 'server', ''),
    (Reply({'choices': []}), 'server', ''),
    (Reply(b'{"choices": [', 200), 'server', ''),
  ],
)
def test_other_failures_are_grader_faults_of_their_own_kind(reply, key, words):
  run = JudgeRun(reply)
  assert run.grade.reward is None and run.grade.components == {'judge': None}
  assert run.grade.errors[f'model_grader_{key}_error'] is True
  assert words in run.grade.errors[f'model_grader_{key}_error_details']
  assert len(run.requests) == 1 and 'key-9' not in str(run.grade)


def test_a_truncated_answer_is_an_error_of_its_own_kind():
  run = JudgeRun(completion('{"steps": [', finish_reason='length'))
  assert run.grade == Grade(None, {'judge': None}, {'model_grader_exceeded_max_tokens_error': True})


@pytest.mark.parametrize('status', [429, 500, 503])
def test_an_overloaded_endpoint_is_retried(status):
  run = JudgeRun(lambda _, n: verdict(1) if n == 2 else error(status))
  assert run.grade.reward == 1.0 and len(run.requests) == 3


def test_an_endpoint_that_stays_down_is_a_grader_fault():
  run = JudgeRun(error(500, 'out of memory'), retries=0)
  assert len(run.requests) == 4
  assert 'out of memory' in run.grade.errors['model_grader_server_error_details']


def test_a_time_out_is_a_grader_fault_after_retries():
  config = {'timeout_seconds': 0.5}
  with local_server.serving(lambda *_: verdict(1, seconds=1.0)) as server:
    judges = graders.Judges(graders.JudgeConfig(base_url=server.url, retries=1, **config))
    grade = graders.make(SCORE, judges=judges)(ITEM, SAMPLE)
    judges.close()
    assert len(server.requests) == 2
  assert 'Timeout' in grade.errors['model_grader_server_error_details']


def test_after_an_endpoint_refused_a_schema_requests_are_for_plain_text():
  def answer(request, _):
    if 'response_format' in request['body']:
      return error(400, 'response_format is not supported')
    return completion('Sure!\n```json\n{"steps": [], "result": 0.25}\n```')

  pairs = [(ITEM, {'output_text': text}) for text in 'abc']
  run = JudgeRun(answer, pairs=pairs, concurrency=1)
  assert [grade.reward for grade in run.grades] == [0.25] * 3
  assert ['response_format' in body for body in run.bodies] == [True, False, False, False]
  assert '"result"' in run.bodies[1]['messages'][0]['content']


def test_a_request_that_is_refused_with_and_without_schema_reports_the_first_reason():
  def answer(request, _):
    return error(400, 'too long' if 'response_format' in request['body'] else 'second')

  assert 'too long' in JudgeRun(answer).grade.errors['model_grader_server_error_details']


def test_requests_are_concurrent_up_to_the_limit():
  pairs = [(ITEM, {'output_text': str(n)}) for n in range(8)]
  run = JudgeRun(verdict(1, seconds=0.1), pairs=pairs, concurrency=3)
  assert run.server.max_concurrent == 3 and len(run.requests) == 8


def test_two_judges_in_a_multi_share_the_limit_of_concurrency():
  multi = {
    'type': 'multi',
    'name': 'both',
    'graders': {'a': SCORE, 'b': LABEL},
    'calculate_output': '(a + b) / 2',
  }

  def answer(request, _):
    return verdict('kind' if request['body']['model'] == 'm' else 0.5, seconds=0.05)

  with local_server.serving(answer) as server:
    judges = graders.Judges(graders.JudgeConfig(base_url=server.url, concurrency=2))
    grader = graders.make(multi, judges=judges)
    pairs = [(ITEM, {'output_text': str(n)}) for n in range(4)]
    assert [grade.reward for grade in graders.grade_many(grader, pairs)] == [0.75] * 4
    judges.close()
    assert server.max_concurrent == 2
  counts = {key: tally.take() for key, tally in grader.tallies.items()}
  assert counts['a']['grades'] == counts['b']['grades'] == 4
  assert counts['a']['usage/total_tokens'] == 4 * 324


def test_faults_of_row_and_answer_send_no_request():
  grader_json = {
    **SCORE,
    'input': [
      {'role': 'user', 'content': '{{ sample.output_json.x }}'},
      {'role': 'user', 'content': '{{ item.answer }}'},
    ],
  }
  run = JudgeRun(verdict(1), grader_json, pairs=[(ITEM, SAMPLE), ({}, SAMPLE)])
  assert [grade.reward for grade in run.grades] == [0.0, None] and run.requests == []
  assert run.grades[0].errors['sample_parse_error'] is True
  assert run.grades[1].errors['invalid_variable_error'] is True
  assert run.grader.item_fields() == {'answer'}


def test_text_that_is_not_utf8_is_a_fault_and_no_crash():
  grade = JudgeRun(verdict(1), pairs=[({'answer': '\ud800'}, SAMPLE)]).grade
  assert grade.reward is None and 'model_grader_server_error' in grade.errors


# ------------------------------------------------------------------ the cache


def test_the_same_request_is_sent_once_also_by_a_later_run(tmp_path):
  pairs = [(ITEM, SAMPLE), (ITEM, {'output_text': 'other'}), (ITEM, SAMPLE)]
  first = JudgeRun(verdict(0.5), pairs=pairs, cache=str(tmp_path))
  assert len(first.requests) == 2 and first.counts['usage/total_tokens'] == 2 * 324
  with local_server.serving(lambda *_: verdict(0.9)) as server:
    # Another base_url is another judge: verdicts of the first do not count.
    judges = graders.Judges(graders.JudgeConfig(base_url=server.url, cache=str(tmp_path)))
    grader = graders.make(SCORE, judges=judges)
    assert grader(ITEM, SAMPLE).reward == 0.9
    judges.close()
    later_judges = graders.Judges(graders.JudgeConfig(base_url=server.url, cache=str(tmp_path)))
    grader = graders.make(SCORE, judges=later_judges)
    grade = grader(ITEM, SAMPLE)
    assert grade.reward == 0.9 and len(server.requests) == 1
    counts = grader.tallies['judge'].take()
    assert counts.pop('seconds') >= 0 and counts == {'grades': 1}  # no tokens used
    for change in ({'sampling_params': {'seed': 2}}, {'model': 'other'}, {'range': [0, 2]}):
      graders.make({**SCORE, **change}, judges=later_judges)(ITEM, SAMPLE)
    assert len(server.requests) == 4
    later_judges.close()


def test_without_a_folder_verdicts_are_cached_in_memory():
  with local_server.serving(lambda *_: verdict(0.9)) as server:
    judges = graders.Judges(graders.JudgeConfig(base_url=server.url))
    grader = graders.make(SCORE, judges=judges)
    assert [grader(ITEM, SAMPLE).reward for _ in range(3)] == [0.9] * 3
    assert len(server.requests) == 1
    judges.close()


def test_faults_are_not_cached(tmp_path):
  replies = [error(401), completion('?'), verdict(1)]
  run = JudgeRun(lambda _, n: replies[n], pairs=[(ITEM, SAMPLE)], retries=1, cache=str(tmp_path))
  assert run.grade.reward == 1.0 and len(run.requests) == 3


def test_the_cache_file_holds_digests_and_verdicts_and_no_prompt(tmp_path):
  JudgeRun(verdict(0.5), cache=str(tmp_path))
  [row] = sqlite3.connect(tmp_path / judge_cache.FILE).execute('SELECT key, text FROM answers')
  assert re.fullmatch('[0-9a-f]{64}', row[0]) and json.loads(row[1])['result'] == 0.5
  assert b'BRCA2' not in (tmp_path / judge_cache.FILE).read_bytes()


def test_a_cache_folder_that_cannot_be_used_is_refused(tmp_path):
  (tmp_path / judge_cache.FILE).write_bytes(b'no database ' * 100)
  config = graders.JudgeConfig(base_url='http://localhost', cache=str(tmp_path))
  with pytest.raises(ValueError, match='judge.cache: .* cannot be used'):
    graders.make(SCORE, judges=graders.Judges(config))
  config.cache = str(tmp_path / judge_cache.FILE / 'deeper')
  with pytest.raises(ValueError, match='judge.cache: .* cannot be created'):
    graders.make(SCORE, judges=graders.Judges(config))
  config.cache = str(tmp_path / 'new' / 'folder')
  graders.make(SCORE, judges=graders.Judges(config))
  assert not (tmp_path / 'new').exists()  # until there is something to store


# ------------------------------------------------------------------ refusals


def refusal(grader_json, **config) -> str:
  with pytest.raises(ValueError) as caught:
    graders.make(grader_json, judges=graders.Judges(graders.JudgeConfig(**config)))
  return str(caught.value)


def test_all_problems_of_a_judge_are_reported_at_once():
  message = refusal(
    {
      'type': 'score_model',
      'name': 'x',
      'model': '',
      'range': [1, 0],
      'rang': 1,
      'sampling_params': {'temperature': 3, 'seed': 1.5, 'top_k': 1, 'max_completion_tokens': 0},
      'input': [
        {'role': 'usr', 'content': '{{ item }}', 'name': 'n'},
        'x',
        {'role': 'user'},
        {'role': 'user', 'content': [{'type': 'text', 'text': 'x'}, '{{ smaple.x }}']},
        {'role': 'user', 'content': {'type': 'input_image', 'file_id': 'f'}},
        {
          'role': 'user',
          'content': {'type': 'input_image', 'image_url': '{{ sample.output_text }}'},
        },
      ],
    }
  )
  for words in (
    "model=''",
    'range=[1, 0]',
    "unknown field 'rang' (did you mean 'range'?)",
    'sampling_params.temperature=3',
    'sampling_params.seed=1.5',
    "unknown field 'top_k'",
    'sampling_params.max_completion_tokens=0',
    "input[0].role='usr' (did you mean 'user'?)",
    'input[0].content: {{ item }} names no field',
    "input[0]: unknown field 'name'",
    'input[1] is a string',
    'input[2].content is null',
    "input[3].content[0]: type='text'",
    'input[3].content[1]: {{ smaple.x }}',
    'input[4].content.file_id',
    'input[5].content.image_url: reads sample',
  ):
    assert words in message


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'labels': []}, 'labels=[]'),
    ({'labels': ['a', 'a']}, "labels=['a', 'a']"),
    ({'labels': 'kind'}, "labels='kind'"),
    ({'passing_labels': []}, 'passing_labels=[]'),
    ({'passing_labels': ['kidn']}, "'kidn' is not among labels (did you mean 'kind'?)"),
  ],
)
def test_bad_labels_are_refused(changes, words):
  assert words in refusal({**LABEL, **changes})


def test_without_an_api_key_or_base_url_a_judge_is_refused(monkeypatch):
  monkeypatch.delenv('OPENAI_API_KEY')
  message = refusal(SCORE)
  for words in (
    'no API key for https://api.openai.com/v1',
    'OPENAI_API_KEY',
    'judge.base_url',
    'judge.local',
  ):
    assert words in message
  assert (
    graders.make(
      SCORE, judges=graders.Judges(graders.JudgeConfig(base_url='http://localhost:1/v1'))
    ).name
    == 'judge'
  )
  monkeypatch.setenv('OPENAI_BASE_URL', 'http://localhost:1/v1')
  graders.make(SCORE).close()
  monkeypatch.delenv('OPENAI_BASE_URL')
  monkeypatch.setenv('MY_KEY', 'k')
  graders.make(SCORE, judges=graders.Judges(graders.JudgeConfig(api_key_env='MY_KEY')))


def test_without_the_client_the_error_says_how_to_install_it(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  assert "pip install 'rft_jax[judges]'" in refusal(SCORE)


def test_an_invalid_configuration_is_reported_with_its_fields():
  message = refusal(
    SCORE,
    base_url='localhost',
    concurrency=0,
    retries=-1,
    timeout_seconds=0,
    max_tokens=0,
    api_key_env='',
    local='here',
  )
  for field in (
    'base_url',
    'concurrency',
    'retries',
    'timeout_seconds',
    'max_tokens',
    'api_key_env',
    'local',
  ):
    assert f'judge.{field}=' in message


def test_describe_uses_the_spelling_of_the_api():
  with pytest.warns(UserWarning, match="'system' is taken as 'developer'"):
    grader = graders.make(
      {
        **SCORE,
        'sampling_params': {'max_completion_tokens': 5, 'seed': None},
        'input': [{'role': 'system', 'content': 'x'}],
      }
    )
  described = graders.describe(grader)
  assert described == {
    **SCORE,
    'range': [0, 1],
    'sampling_params': {'max_completions_tokens': 5},
    'input': [{'role': 'developer', 'content': 'x'}],
  }
  assert graders.describe(graders.make(described)) == described
