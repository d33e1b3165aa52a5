"""What a run records during training: an event of each step in OpenAI's form."""

import json
import types

import pytest

from rft_jax.algorithms.noisy_grades import NoisyGradesState
from rft_jax.algorithms.rl_batch import RLState
from rft_jax.records import excluded_rows, metrics
from rft_jax.run import recording
from rft_jax.types import TrainState


def test_every_step_has_a_metrics_event_with_openai_names(finished):
  events = [json.loads(line) for line in (finished / 'events.jsonl').read_text().splitlines()]
  assert len({event['id'] for event in events}) == len(events)
  steps = [event['data'] for event in events if event['type'] == 'metrics']
  assert [data['step'] for data in steps] == [1, 2, 3, 4, 5, 6]
  assert steps[0]['train_loss'] > 0 and 'scores' not in steps[0]  # supervised
  rows = metrics.read(finished / 'metrics.jsonl')
  held_out = {row['step']: row for row in metrics.read(finished / 'evaluation.jsonl')}
  for step in (4, 5, 6):
    data, reward = steps[step - 1], rows[step - 1]['reward']
    assert data['train_mean_reward'] == pytest.approx(reward)
    # No sample is ungradable here: the one grader has the reward.
    grader = data['scores']['graders'][0]
    assert grader['train_reward_mean'] == pytest.approx(reward)
    assert data['full_valid_mean_reward'] == (
      pytest.approx(held_out[step]['grade']['mean']) if step in held_out else None
    )
    assert data['errors']['train_grader_fault_count'] == 0
    assert data['timing']['step']['full_iteration'] >= data['timing']['step']['sampling'] > 0
    assert data['timing']['graders'][0]['train_execution_latency_mean'] > 0
  message = next(event['message'] for event in events if event['data'].get('step') == 6)
  assert f'Step 6/6 , train mean reward={rows[5]["reward"]:.2f}, full validation' in message
  assert events[-1]['message'] == 'The run has completed all its steps'


def test_rows_are_no_longer_listed_as_excluded_in_a_stage_without_rollouts(tmp_path):
  history = {
    'streak': 2,
    'began': 1,
    'visits': 2,
    'answer': '7',
    'share': 1.0,
    'grade': 0.0,
    'agrees': False,
  }
  excluding = NoisyGradesState(rows={'rows.jsonl:1': history}, excluded_rows={'rows.jsonl:1': 2})
  ignored = types.SimpleNamespace(write=lambda *_: None, update=lambda *_, **__: None)
  run = types.SimpleNamespace(workdir=tmp_path, metrics=ignored, progress=ignored)
  stage = types.SimpleNamespace(span=types.SimpleNamespace(number=0), name='any')
  for algorithm_state, lines in ((RLState(noisy_grades=excluding), 1), (None, 0)):
    state = TrainState(3, None, None, algorithm_state=algorithm_state)
    recording.record_step(run, stage, state, {}, tokens=0)
    text = (tmp_path / excluded_rows.FILE).read_text()
    assert text.count('\n') == lines
