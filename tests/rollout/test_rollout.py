"""From prompts to graded episodes: whose fault a missing grade is, and what is told of it."""

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
EQUAL = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}


@pytest.fixture(scope='module')
def components(tmp_path_factory):
  config = tiny.config(tmp_path_factory.mktemp('rollout'), chat=THINKING, grader=EQUAL)
  with build.components(config) as made:
    yield config, made


@pytest.fixture
def graded(components, monkeypatch):
  """Grades texts as if the policy had sampled them; gives the episodes of one group."""
  config, made = components

  def run(texts, *, stop='stop', grader=EQUAL, response_format=None, **changes):
    eos = list(made.chat.stop_ids[:1]) if stop == 'stop' else []
    group = [
      Sample(ids + eos, [-1.0] * (len(ids) + len(eos)), None, stop)
      for ids in made.chat.encode(texts)
    ]

    def sample(*args, on_finished, on_statistics, **kwargs):
      for g, completion in enumerate(group):
        on_finished(0, g, completion)
      on_statistics(engine.Statistics(tokens=1, decoded=1, prompt_tokens=1, runs=1))

    monkeypatch.setattr(engine, 'sample', sample)
    settings = rollout.RolloutConfig(prompts_per_step=1, samples_per_prompt=len(texts), **changes)
    run_it = rollout.make(
      made.chat,
      graders.make(grader, ungradable_reward=settings.ungradable_reward),
      settings,
      seed=0,
      mesh=None,
      response_format=response_format,
    )
    return run_it(None, made.train[0][:1], [0], 5)

  return run


def test_the_grader_sees_the_answer_and_not_the_reasoning(graded, components):
  answer = components[1].train[0][0].item.row['answer']
  right, wrong, reasoned = graded(
    [f'<think>hm</think>{answer}', '<think>hm</think>no', f'<think>{answer}</think>no']
  ).groups[0]
  assert [e.grade.reward for e in (right, wrong, reasoned)] == [1.0, 0.0, 0.0]
  assert right.output_text == answer and right.text.startswith('<think>hm</think>')
  assert 0 < right.reasoning_tokens < len(right.sample.tokens)
  assert right.policy_step == 5


def test_no_end_of_reasoning_is_a_policy_fault(graded):
  episode = graded(['<think>for ever', '<think>'], ungradable_reward=-1.0).groups[0][0]
  assert episode.grade.reward == -1.0
  assert episode.grade.errors == {'unresponsive_reward_error': True}


def test_what_was_cut_off_is_a_policy_fault_unless_asked_otherwise(graded, components):
  answer = components[1].train[0][0].item.row['answer']
  texts = [f'<think></think>{answer}'] * 2
  cut = graded(texts, stop='length').groups[0][0]
  assert cut.grade.reward == 0.0 and cut.grade.errors == {'truncated_observation_error': True}
  kept = graded(texts, stop='length', grade_truncated=True).groups[0][0]
  assert kept.grade.reward == 1.0


def test_an_answer_outside_the_response_format_is_a_policy_fault(graded):
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
  found = graded(texts, grader=grader, response_format=schema).groups[0]
  assert [e.grade.reward for e in found] == [3.0, 0.0, 0.0]
  assert found[1].grade.errors['sample_parse_error'] is True


def test_grader_faults_give_no_reward_and_too_many_stop_the_run(graded):
  grader = dict(EQUAL, reference='{{ item.absent }}')
  texts = ['<think></think>1', '<think>']
  found = graded(texts, grader=grader, max_grader_faults=0.6)
  assert [e.grade.reward for e in found.groups[0]] == [None, 0.0]
  assert found.metrics['groups_dropped'] == 1 and 'reward' not in found.metrics
  with pytest.raises(GraderFaults, match='invalid_variable_error'):
    graded(texts, grader=grader, max_grader_faults=0.4)


def test_a_multi_tells_its_total_as_the_reward_and_its_parts_by_their_keys(graded, components):
  answer = components[1].train[0][0].item.row['answer']
  other = {**EQUAL, 'operation': 'ne'}
  both = {
    'type': 'multi',
    'name': 'both',
    'graders': {'same': EQUAL, 'other': other},
    'calculate_output': '2 * same - other',
  }
  values = graded([f'<think>a</think>{answer}', '<think>a</think>no'], grader=both).metrics
  assert values['reward'] == (2 - 1) / 2
  assert values['rewards/same/mean'] == values['rewards/other/mean'] == 0.5
  assert 'rewards/both/mean' not in values


def test_metrics_have_trls_definitions(graded, components):
  answer = components[1].train[0][0].item.row['answer']
  metrics = graded(
    [f'<think></think>{answer}', '<think></think>no', '<think>', '<think></think>x']
  ).metrics
  assert metrics['reward'] == 0.25
  assert metrics['reward_std'] == pytest.approx(0.5)  # ddof 1, within the group
  assert metrics['frac_reward_zero_std'] == 0.0
  assert metrics['rewards/exact/mean'] == pytest.approx(1 / 3)  # of those it scored
  assert metrics['errors/unresponsive_reward_error'] == 0.25
  assert metrics['completions/clipped_ratio'] == 0.0


def test_episodes_carry_what_was_really_sampled(components):
  config, made = components
  policy, _ = hf.load(config.model.source)
  settings = rollout.RolloutConfig(prompts_per_step=2, samples_per_prompt=3, max_new_tokens=6)
  run = rollout.make(made.chat, made.grader, settings, seed=4, mesh=None)
  groups = run(policy, made.train[0][:2], [7, 8], 1).groups
  again = engine.generate(
    policy,
    [made.train[0][1].prompt_ids],
    samples_per_prompt=3,
    max_new_tokens=6,
    seed=4,
    step=1,
    occurrences=[8],
    stop_ids=made.chat.stop_ids,
  )
  assert [e.sample for e in groups[1]] == again[0]
  assert [(e.occurrence, e.index) for e in groups[1]] == [(8, 0), (8, 1), (8, 2)]
