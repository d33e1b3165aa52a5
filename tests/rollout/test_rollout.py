"""Rollouts: graded episodes, policy faults, grader faults, and a multi grader."""

import json

import pytest
import tiny

from rft_jax import graders, hf
from rft_jax.data.chat import ChatConfig
from rft_jax.errors import GraderFaults
from rft_jax.rollout import rollout
from rft_jax.run import build
from rft_jax.sampling import engine
from rft_jax.types import Sample

THINKING = ChatConfig(reasoning=('<think>', '</think>'))
EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}


@pytest.fixture(scope='module')
def components(tmp_path_factory):
  config = tiny.config(tmp_path_factory.mktemp('rollout'), chat=THINKING, grader=EXACT)
  with build.components(config) as run_components:
    yield config, run_components


@pytest.fixture
def grade_texts(components, monkeypatch):
  """Returns a function that grades texts as the samples of one prompt: texts -> Rollout."""
  config, run_components = components
  chat = run_components.chat

  def grade_texts(texts, *, stop_reason='stop', grader=EXACT, response_format=None, **changes):
    eos = list(chat.stop_ids[:1]) if stop_reason == 'stop' else []
    group = [
      Sample(ids + eos, [-1.0] * (len(ids) + len(eos)), None, stop_reason)
      for ids in chat.encode(texts)
    ]

    def sample(*args, on_finished, on_statistics, **kwargs):
      for g, completion in enumerate(group):
        on_finished(0, g, completion)
      on_statistics(engine.Statistics(tokens=1, decoded=1, prompt_tokens=1, runs=1))

    monkeypatch.setattr(engine, 'sample', sample)
    settings = rollout.RolloutConfig(prompts_per_step=1, samples_per_prompt=len(texts), **changes)
    run = rollout.make(
      chat,
      graders.make(grader, ungradable_reward=settings.ungradable_reward),
      settings,
      seed=0,
      mesh=None,
      response_format=response_format,
    )
    return run(None, run_components.train[0][:1], [0], 5)

  return grade_texts


def test_the_answer_without_the_reasoning_is_graded(grade_texts, components):
  answer = components[1].train[0][0].item.row['answer']
  right, wrong, reasoned = grade_texts(
    [f'<think>hm</think>{answer}', '<think>hm</think>no', f'<think>{answer}</think>no']
  ).groups[0]
  assert [e.grade.reward for e in (right, wrong, reasoned)] == [1.0, 0.0, 0.0]
  assert right.output_text == answer and right.text.startswith('<think>hm</think>')
  assert 0 < right.reasoning_tokens < len(right.sample.tokens)
  assert right.policy_step == 5


def test_reasoning_without_an_end_marker_is_a_policy_fault(grade_texts):
  episode = grade_texts(['<think>without end', '<think>'], ungradable_reward=-1.0).groups[0][0]
  assert episode.grade.reward == -1.0
  assert episode.grade.errors == {'unresponsive_reward_error': True}


def test_a_truncated_sample_is_a_policy_fault_unless_grade_truncated_is_set(
  grade_texts, components
):
  answer = components[1].train[0][0].item.row['answer']
  texts = [f'<think></think>{answer}'] * 2
  truncated = grade_texts(texts, stop_reason='length').groups[0][0]
  assert truncated.grade.reward == 0.0
  assert truncated.grade.errors == {'truncated_observation_error': True}
  graded = grade_texts(texts, stop_reason='length', grade_truncated=True).groups[0][0]
  assert graded.grade.reward == 1.0


def test_an_answer_outside_the_response_format_is_a_policy_fault(grade_texts):
  schema = {
    'type': 'json_schema',
    'json_schema': {
      'name': 'x',
      'schema': {'type': 'object', 'required': ['n'], 'properties': {'n': {'type': 'integer'}}},
    },
  }
  grader = {
    'type': 'python',
    'name': 'n',
    'source': 'def grade(sample, item):\n  return sample["output_json"]["n"]\n',
  }
  texts = [f'<think></think>{json.dumps(value)}' for value in ({'n': 3}, {'n': 'three'}, [1])]
  group = grade_texts(texts, grader=grader, response_format=schema).groups[0]
  assert [e.grade.reward for e in group] == [3.0, 0.0, 0.0]
  assert group[1].grade.errors['sample_parse_error'] is True


def test_grader_faults_give_no_reward_and_too_many_stop_the_run(grade_texts):
  grader = dict(EXACT, reference='{{ item.absent }}')
  texts = ['<think></think>1', '<think>']
  result = grade_texts(texts, grader=grader, max_grader_faults=0.6)
  assert [e.grade.reward for e in result.groups[0]] == [None, 0.0]
  assert result.metrics['groups_dropped'] == 1 and 'reward' not in result.metrics
  with pytest.raises(GraderFaults, match='invalid_variable_error'):
    grade_texts(texts, grader=grader, max_grader_faults=0.4)


def test_the_parts_of_a_multi_grader_have_metrics_under_their_keys(grade_texts, components):
  answer = components[1].train[0][0].item.row['answer']
  other = {**EXACT, 'operation': 'ne'}
  multi = {
    'type': 'multi',
    'name': 'multi',
    'graders': {'same': EXACT, 'other': other},
    'calculate_output': '2 * same - other',
  }
  values = grade_texts([f'<think>a</think>{answer}', '<think>a</think>no'], grader=multi).metrics
  assert values['reward'] == (2 - 1) / 2
  assert values['rewards/same/mean'] == values['rewards/other/mean'] == 0.5
  assert 'rewards/multi/mean' not in values


def test_episodes_hold_the_samples_of_the_engine(components):
  config, run_components = components
  policy, _ = hf.load(config.model.source)
  settings = rollout.RolloutConfig(prompts_per_step=2, samples_per_prompt=3, max_new_tokens=6)
  run = rollout.make(run_components.chat, run_components.grader, settings, seed=4, mesh=None)
  groups = run(policy, run_components.train[0][:2], [7, 8], 1).groups
  (expected,) = engine.generate(
    policy,
    [run_components.train[0][1].prompt_ids],
    samples_per_prompt=3,
    max_new_tokens=6,
    seed=4,
    step=1,
    occurrences=[8],
    stop_ids=run_components.chat.stop_ids,
  )
  assert [e.sample for e in groups[1]] == expected
  assert [(e.occurrence, e.index) for e in groups[1]] == [(8, 0), (8, 1), (8, 2)]
