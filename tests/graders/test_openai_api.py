"""graders/run and graders/validate responses, and --mode=grade, which prints them."""

import json
import subprocess
import sys

import pytest
from paths import ROOT

from rft_jax import graders
from rft_jax.graders import openai_api

EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}
# The keys that the API marks as required, from the example response of its documentation.
FLAGS = {
  'formula_parse_error',
  'sample_parse_error',
  'truncated_observation_error',
  'unresponsive_reward_error',
  'invalid_variable_error',
  'other_error',
  'python_grader_server_error',
  'python_grader_server_error_type',
  'python_grader_runtime_error',
  'python_grader_runtime_error_details',
  'model_grader_server_error',
  'model_grader_refusal_error',
  'model_grader_parse_error',
  'model_grader_server_error_details',
}


def _grade(*arguments):
  command = [sys.executable, '-m', 'rft_jax.main', '--mode=grade', *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_run_returns_the_response_of_the_api():
  response = openai_api.run(graders.make(EXACT), 'x', {'answer': 'x'})
  assert response['reward'] == 1.0 and response['sub_rewards'] == {'exact': 1.0}
  assert set(response) == {
    'reward',
    'metadata',
    'sub_rewards',
    'model_grader_token_usage_per_model',
  }
  metadata = response['metadata']
  assert (metadata['name'], metadata['type']) == ('exact', 'string_check')
  assert set(metadata['errors']) >= FLAGS and metadata['execution_time'] > 0
  assert not any(metadata['errors'].values())
  assert metadata['token_usage'] is None and metadata['sampled_model_name'] is None


def test_run_distinguishes_grader_faults_from_policy_faults():
  grader = graders.make(EXACT, ungradable_reward=-1.0)
  response = openai_api.run(grader, 'x', {})
  assert response['reward'] is None
  assert response['metadata']['errors']['invalid_variable_error'] is True
  schema = {'type': 'json_schema', 'name': 'n', 'schema': {'type': 'object'}}
  response = openai_api.run(grader, '[1]', {'answer': 'x'}, response_format=schema)
  assert response['reward'] == -1.0 and response['sub_rewards'] == {}
  assert response['metadata']['errors']['sample_parse_error'] is True


def test_validate_adds_a_missing_name_and_uses_the_spelling_of_the_api():
  grader = {key: value for key, value in EXACT.items() if key != 'name'} | {'operation': 'neq'}
  described = openai_api.validate(graders.make(grader))['grader']
  assert described['name'].startswith('grader-') and len(described['name']) == 7 + 12
  assert described['operation'] == 'ne' and described['type'] == 'string_check'


def test_a_file_of_answers_is_graded_line_by_line(tmp_path):
  (tmp_path / 'grader.json').write_text(json.dumps(EXACT))
  lines = [{'model_sample': str(n), 'item': {'answer': str(n - n % 2)}} for n in range(600)]
  lines.append({'model_sample': 'x'})
  (tmp_path / 'answers.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  result = _grade(f'--grader={tmp_path}/grader.json', f'--input={tmp_path}/answers.jsonl')
  assert result.returncode == 0, result.stderr
  responses = [json.loads(line) for line in result.stdout.splitlines()]
  assert [response['reward'] for response in responses] == [1.0, 0.0] * 300 + [None]
  summary = json.loads(result.stderr.splitlines()[-1])
  assert (summary['answers'], summary['graded'], summary['reward_mean']) == (601, 600, 0.5)
  assert summary['errors'] == {'invalid_variable_error': 1}
  result = _grade(
    f'--grader={tmp_path}/grader.json',
    f'--input={tmp_path}/answers.jsonl',
    f'--to={tmp_path}/out.jsonl',
  )
  assert result.stdout == '' and len((tmp_path / 'out.jsonl').read_text().splitlines()) == 601


def test_validate_only_prints_the_normal_form(tmp_path):
  (tmp_path / 'grader.json').write_text(json.dumps(EXACT))
  result = _grade(f'--grader={tmp_path}/grader.json', '--validate_only')
  assert result.returncode == 0 and json.loads(result.stdout)['grader']['type'] == 'string_check'


@pytest.mark.parametrize(
  'grader, lines, words',
  [
    (
      EXACT,
      '{"sample": "x"}\nnot json\n{"model_sample": 3}\n[]',
      [
        "answers.jsonl:1: unknown key 'sample'",
        'answers.jsonl:2: not JSON',
        'answers.jsonl:3: model_sample is',
        'answers.jsonl:4: the line is an array',
      ],
    ),
    (EXACT, '', ['no lines']),
    (dict(EXACT, operation='equals'), '{"model_sample": "x"}', ["operation='equals'"]),
    (dict(EXACT, type='string_chek'), '{"model_sample": "x"}', ['string_check']),
  ],
)
def test_invalid_graders_and_lines_are_refused_without_a_traceback(tmp_path, grader, lines, words):
  (tmp_path / 'grader.json').write_text(json.dumps(grader))
  (tmp_path / 'answers.jsonl').write_text(lines)
  result = _grade(f'--grader={tmp_path}/grader.json', f'--input={tmp_path}/answers.jsonl')
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert not [word for word in words if word not in result.stderr], result.stderr


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], '--grader=FILE is missing'),
    (['--grader=nowhere.json', '--validate_only'], 'nowhere.json'),
    (['--grader=setup.cfg'], '--input=FILE is missing'),
  ],
)
def test_missing_flags_are_named(arguments, words):
  result = _grade(*arguments)
  assert result.returncode == 2 and words in result.stderr
