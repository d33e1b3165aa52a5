"""events.jsonl: OpenAI's names, the arithmetic behind them, and continuing."""

import json

import pytest

from rft_jax.graders import GraderInfo
from rft_jax.records.events import Events, GradedSamples
from rft_jax.types import Episode, Grade, Item, Sample

SECONDS = {'sampling': 2.0, 'training': 1.0, 'eval': 0.5, 'full_iteration': 3.5}
JUDGE = GraderInfo('clinical', 'score_model', 'judge-1')
EXACT = GraderInfo('exact', 'string_check', None)


def _episode(reward, components, errors=None, reasoning=5, tokens=7):
  sample = Sample([1] * tokens, [0.0] * tokens, None, 'stop')
  return Episode(
    Item({}, 'x.jsonl:1'),
    0,
    0,
    [1],
    sample,
    '',
    '',
    reasoning,
    Grade(reward, components, errors or {}),
    3,
  )


def _events(path):
  return [json.loads(line) for line in (path / 'events.jsonl').read_text().splitlines()]


def test_the_metrics_event_has_the_fields_of_openai(tmp_path):
  train = GradedSamples(
    [
      _episode(0.75, {'clinical': 0.5, 'exact': 1.0}),
      _episode(0.25, {'clinical': 0.5, 'exact': 0.0}, reasoning=9),
      _episode(0.0, {}, {'sample_parse_error': True, 'sample_parse_error_details': 'not JSON'}),
      _episode(None, {'clinical': None, 'exact': 1.0}, {'model_grader_server_error': True}),
      _episode(0.0, {}, {'unresponsive_reward_error': True}, reasoning=0, tokens=2),
    ],
    {
      'clinical': {
        'grades': 3,
        'seconds': 6.0,
        'errors/model_grader_server_error': 1,
        'usage/prompt_tokens': 300,
        'usage/completion_tokens': 60,
      },
      'exact': {'grades': 3, 'seconds': 0.03},
    },
  )
  valid = GradedSamples(
    [_episode(0.5, {'clinical': 0.5, 'exact': 0.5})],
    {'clinical': {'grades': 1, 'seconds': 1.0, 'usage/prompt_tokens': 80}, 'exact': {}},
  )
  with Events(tmp_path, resume_step=1, clock=lambda: 1746679539.4) as events:
    events.write_metrics(10, 20, [JUDGE, EXACT], train=train, valid=valid, seconds=SECONDS)
  (event,) = _events(tmp_path)
  assert event['message'] == (
    'Step 10/20 , train mean reward=0.25, full validation mean '
    'reward=0.50, full validation mean parse error=0.00'
  )
  assert (event['object'], event['type'], event['level'], event['created_at']) == (
    'fine_tuning.job.event',
    'metrics',
    'info',
    1746679539,
  )
  data = event['data']
  assert set(data) == {
    'step',
    'total_steps',
    'usage',
    'errors',
    'scores',
    'timing',
    'train_mean_reward',
    'full_valid_mean_reward',
    'full_valid_mean_parse_error',
    'reasoning_tokens_mean',
    'valid_reasoning_tokens_mean',
    'completion_tokens_mean',
    'mean_unresponsive_rewards',
    'model_graders_token_usage',
  }
  clinical, exact = data['errors']['graders']
  assert clinical['train_model_grader_server_error_count'] == 1
  assert clinical['train_model_grader_server_error_mean'] == pytest.approx(1 / 5)
  assert clinical['train_sample_parse_error_count'] == exact['train_sample_parse_error_count'] == 1
  assert exact['train_model_grader_server_error_count'] == 0
  assert data['errors']['train_policy_fault_count'] == 2
  assert data['errors']['train_grader_fault_count'] == 1
  assert data['scores']['train_reward_mean'] == data['train_mean_reward'] == 0.25
  assert data['scores']['graders'][0]['train_reward_mean'] == 0.5
  assert data['scores']['graders'][1]['train_reward_mean'] == pytest.approx(2 / 3)
  assert data['timing']['graders'][0]['train_execution_latency_mean'] == 2.0
  assert data['timing']['graders'][1]['valid_execution_latency_mean'] is None
  assert data['timing']['step'] == SECONDS
  assert [grader['name'] for grader in data['usage']['graders']] == ['clinical']
  assert data['usage']['graders'][0]['train_prompt_tokens_count'] == 300
  assert data['usage']['samples']['train_reasoning_tokens_count'] == 5 + 9 + 5 + 5
  assert data['model_graders_token_usage'] == {
    'judge-1': {
      'train_cached_tokens': 0,
      'train_prompt_tokens': 300,
      'train_completion_tokens': 60,
      'eval_cached_tokens': 0,
      'eval_prompt_tokens': 80,
      'eval_completion_tokens': 0,
    }
  }
  assert data['mean_unresponsive_rewards'] == 0.2
  assert data['completion_tokens_mean'] == pytest.approx((4 * 7 + 2) / 5)


def test_a_step_without_evaluation_has_null_for_held_out_rows(tmp_path):
  with Events(tmp_path, resume_step=1) as events:
    events.write_metrics(
      1,
      2,
      [EXACT],
      train=GradedSamples([_episode(1.0, {'exact': 1.0})], {}),
      valid=None,
      seconds=SECONDS,
    )
  data = _events(tmp_path)[0]['data']
  assert data['scores']['graders'][0] == {
    'name': 'exact',
    'type': 'string_check',
    'train_reward_mean': 1.0,
    'valid_reward_mean': None,
  }
  assert data['full_valid_mean_reward'] is None


def test_a_continued_run_writes_no_step_twice(tmp_path):
  for resume in (1, 3):
    with Events(tmp_path, resume_step=resume) as events:
      events.write_message('The run has started')
      for step in range(resume, 5):
        events.write_metrics(step, 4, [], train=None, valid=None, seconds=SECONDS, loss=1.0)
    with open(tmp_path / 'events.jsonl', 'a') as file:
      file.write('{"cut sho')
  with Events(tmp_path, resume_step=5):
    pass
  events = _events(tmp_path)
  assert [e['data']['step'] for e in events if e['type'] == 'metrics'] == [1, 2, 3, 4]
  assert sum(e['type'] == 'message' for e in events) == 2
  assert len({e['id'] for e in events}) == len(events)


def test_a_run_that_fails_says_so(tmp_path):
  with pytest.raises(RuntimeError):
    with Events(tmp_path, resume_step=1):
      raise RuntimeError('the grader failed on 9 of 10 samples\nand more')
  (event,) = _events(tmp_path)
  assert event['level'] == 'error' and event['message'].endswith(
    'RuntimeError: the grader failed on 9 of 10 samples'
  )
