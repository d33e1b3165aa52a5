"""Rewards of reasoning steps: process, prefix and resample sources, ungraded groups, the grader."""

import dataclasses

import numpy as np
import pytest
from credit_groups import (
  GOOD,
  LINES,
  ROLLOUT,
  byte_chat,
  credit_group,
  replace_engine,
  rewards_of_steps,
)

from rft_jax.data import batching
from rft_jax.errors import GraderFaults, InputError
from rft_jax.rollout import credit
from rft_jax.rollout.credit import CreditConfig
from rft_jax.run import build


def test_process_rewards_are_the_grades_of_the_steps():
  steps = rewards_of_steps([credit_group(('one\nfour\ntwo', 1.0), ('four\none', 0.0))], LINES)
  assert steps.rewards == [[1.0, 0.0, 1.0], [0.0, 1.0]]
  assert steps.ends == [[3, 8, 12], [4, 8]]
  assert steps.metrics['credit/reasoning_steps_mean'] == 2.5
  assert steps.metrics['credit/reasoning_step_reward'] == pytest.approx(3 / 5)
  assert steps.metrics['credit/groups_without_step_rewards'] == 0


def test_the_step_grader_reads_text_prefix_and_index_of_the_step():
  grader = {
    'type': 'string_check',
    'name': 'fields',
    'operation': 'eq',
    'input': '{{ item.reasoning_step.index }}|{{ item.reasoning_step.before }}|'
    '{{ item.reasoning_step.text }}|{{ sample.output_text }}|{{ item.answer }}',
    'reference': '1|one|two|two|7',
  }
  config = dataclasses.replace(LINES, grader=grader)
  groups = [credit_group(('one\ntwo\ntwo', 1.0))]
  assert rewards_of_steps(groups, config).rewards == [[0.0, 1.0, 0.0]]
  grader['input'], grader['reference'] = '{{ sample.output_text }}', 'one\ntwo'
  prefix = dataclasses.replace(config, source='prefix')
  groups = [credit_group(('one\ntwo\ntwo', 0.25))]
  # Values: 0 without text, 0, 1, and the final grade.
  assert rewards_of_steps(groups, prefix).rewards == [[0.0, 1.0, -0.75]]


def test_prefix_rewards_sum_to_the_final_grade_of_the_runs_grader():
  config = CreditConfig(level='reasoning_step', step_boundary='delimiter', delimiter=';')
  steps = rewards_of_steps([credit_group(('7;8;9', 0.0), ('1;7', 1.0), ('7', 1.0))], config)
  assert steps.rewards == [[1.0, -1.0, 0.0], [0.0, 1.0], [1.0]]


def test_resample_rewards_are_the_increases_of_the_mean_grades(monkeypatch):
  chat = byte_chat(('<think>', '</think>'))
  arguments = replace_engine(
    monkeypatch,
    [
      ['b</think>7', 'b</think>8'],  # after a: 1/2
      ['7', '7'],  # after b: 1
      ['7', ' no'],  # after c: 1/2
    ],
    chat,
  )
  config = CreditConfig(
    level='reasoning_step', step_boundary='line', source='resample', resamples=2
  )
  answers = ('<think>a\nb</think>7', 1.0), ('<think>c</think>8', 0.0)
  groups = [credit_group(*answers, occurrence=5, chat=chat)]
  steps = rewards_of_steps(groups, config, chat)
  # The value of the prompt is the grade of the other sample: 0 for the first, 1 for the second.
  assert steps.rewards == [[0.5, 0.5, 0.0], [-0.5, -0.5]]
  assert arguments['prompts'][0] == [1, 2, *chat.encode(['<think>a\n'])[0]]
  assert arguments['prompts'][1] == [1, 2, *chat.encode(['<think>a\nb</think>'])[0]]
  assert [row[0] for row in arguments['limits'][:3]] == [40 - 9, 40 - 18, 40 - 16]
  assert arguments['occurrences'][:3] == [5 * 80 + 8, 5 * 80 + 17, (5 * 2 + 1) * 40 + 15]
  assert arguments['step'] == 3 and arguments['seed'] != 0
  assert steps.metrics['credit/resampled'] == 6
  assert steps.metrics['credit/resampled_tokens'] == 2 * 11 + 2 + 2 + 2 + 4
  advantages = credit.advantages(groups, np.ones((2, 20)), [[1.0, -1.0]], steps, config)
  np.testing.assert_array_equal(advantages[0, :9], 0.5)  # the differences alone, no outcome
  np.testing.assert_array_equal(advantages[1, :16], -0.5)


def test_a_group_with_an_ungraded_step_has_the_advantages_of_its_samples():
  grader = dict(GOOD, input='{{ item.good }}{{ item.more }}')
  config = dataclasses.replace(LINES, grader=grader)
  groups = [
    credit_group(('one', 1.0), ('six\ntwo', 0.0)),  # a row without the field `more`
    credit_group(('one', 1.0), ('six\ntwo', 0.0), row={'good': 'one', 'more': ''}),
  ]
  with pytest.raises(GraderFaults, match='3 of 6 reasoning steps.*credit.grader'):
    rewards_of_steps(groups, config)
  tolerant = dataclasses.replace(ROLLOUT, max_grader_faults=0.5)
  steps = rewards_of_steps(groups, config, rollout=tolerant)
  assert steps.complete.tolist() == [False, True]
  assert steps.metrics['credit/groups_without_step_rewards'] == 1
  outcome = np.array([[0.7, -0.7], [0.3, -0.3]], np.float32)
  batch = batching.from_groups(groups, outcome)
  advantages = credit.advantages(groups, batch.loss_mask, outcome, steps, config)
  np.testing.assert_array_equal(advantages[:2], batch.advantages[:2])
  assert (advantages[2:] != batch.advantages[2:]).any()


def test_the_step_grader_is_checked_before_anything_is_computed(grpo_config, tmp_path):
  with_grader = lambda grader: dataclasses.replace(
    grpo_config, credit=dataclasses.replace(LINES, grader=grader)
  )
  missing_field = dict(GOOD, input='{{ item.proof }}', reference='{{ item.reasoning_step.text }}')
  for grader, message in (
    (dict(GOOD, operation='resembles'), 'resembles'),
    (str(tmp_path / 'none.json'), 'credit.grader=.*cannot be read'),
    (missing_field, 'proof'),
  ):
    with pytest.raises(InputError, match=message):
      with build.components(with_grader(grader)):
        pass
  config = with_grader(str(tmp_path / 'none.json'))
  with build.components(config, training=False) as components:
    assert components.step_grader is None
