"""Credit by steps: rewards of each source on paper, blends, and what equals credit by samples."""

import dataclasses
import functools
import pathlib
import tempfile

import numpy as np
import pytest
import tiny
import tiny_tokenizers

import rft_jax
from rft_jax import graders, hf
from rft_jax.config import Stage
from rft_jax.data import batching
from rft_jax.data import chat as chats
from rft_jax.data.chat import ChatConfig
from rft_jax.errors import GraderFaults, InputError
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.records import episodes, metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.rollout import credit, rollout, step_rewards
from rft_jax.rollout.credit import CreditConfig
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.run import build
from rft_jax.sampling import engine
from rft_jax.types import Episode, Grade, Item, Sample

GOOD = {
  'type': 'string_check',
  'name': 'good',
  'operation': 'like',
  'input': '{{ item.good }}',
  'reference': '{{ sample.output_text }}',
}
EXACT = {
  'type': 'string_check',
  'name': 'exact',
  'operation': 'eq',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
}
ROLLOUT = RolloutConfig(prompts_per_step=1, samples_per_prompt=2, max_new_tokens=40)


@functools.cache
def bytewise(markers=None):
  with tempfile.TemporaryDirectory() as directory:
    return chats.make(
      tiny_tokenizers.save(pathlib.Path(directory) / 'bytes'), ChatConfig(reasoning=markers)
    )


def episode(text, reward, index=0, occurrence=0, row=None, chat=None):
  chat = chat or bytewise()
  ids = chat.encode([text])[0] + [chat.eos_id]
  row = {'good': 'one two three', 'answer': '7'} if row is None else row
  return Episode(
    Item(row, 'x:1'),
    occurrence,
    index,
    [1, 2],
    Sample(ids, [0.0] * len(ids), None, 'stop'),
    text,
    text,
    0,
    Grade(reward, {}, {}),
    0,
  )


def group(*answers, **more):
  return [episode(text, reward, g, **more) for g, (text, reward) in enumerate(answers)]


def rewards_of(groups, config, chat=None, settings=ROLLOUT, grader=EXACT, **given):
  assert not config.validate()
  steps = config.grader and graders.make(config.grader)
  return step_rewards.make(
    chat or bytewise(),
    config,
    settings,
    grader=graders.make(grader),
    step_grader=steps or None,
    seed=0,
    mesh=None,
  )(None, groups, 3, **given)


LINES = CreditConfig(level='reasoning_step', step_boundary='line', source='process', grader=GOOD)


def test_process_rewards_are_the_grades_of_the_steps():
  found = rewards_of([group(('one\nfour\ntwo', 1.0), ('four\none', 0.0))], LINES)
  assert found.rewards == [[1.0, 0.0, 1.0], [0.0, 1.0]]
  assert found.ends == [[3, 8, 12], [4, 8]]
  assert found.metrics['credit/reasoning_steps_mean'] == 2.5
  assert found.metrics['credit/reasoning_step_reward'] == pytest.approx(3 / 5)
  assert found.metrics['credit/groups_without_step_rewards'] == 0


def test_the_step_grader_sees_where_the_step_stands():
  check = {
    'type': 'string_check',
    'name': 'seen',
    'operation': 'eq',
    'input': '{{ item.reasoning_step.index }}|{{ item.reasoning_step.before }}|{{ item.reasoning_step.text }}|'
    '{{ sample.output_text }}|{{ item.answer }}',
    'reference': '1|one|two|two|7',
  }
  config = dataclasses.replace(LINES, grader=check)
  assert rewards_of([group(('one\ntwo\ntwo', 1.0))], config).rewards == [[0.0, 1.0, 0.0]]
  check['input'], check['reference'] = '{{ sample.output_text }}', 'one\ntwo'
  prefix = dataclasses.replace(config, source='prefix')
  # F: 0 for nothing, 0, 1, and the final grade.
  assert rewards_of([group(('one\ntwo\ntwo', 0.25))], prefix).rewards == [[0.0, 1.0, -0.75]]


def test_prefix_rewards_sum_to_the_final_grade_of_the_runs_grader():
  config = CreditConfig(level='reasoning_step', step_boundary='delimiter', delimiter=';')
  found = rewards_of([group(('7;8;9', 0.0), ('1;7', 1.0), ('7', 1.0))], config)
  assert found.rewards == [[1.0, -1.0, 0.0], [0.0, 1.0], [1.0]]


def scripted(monkeypatch, texts, chat):
  """The engine gives these texts, one list for each state in turn, and tells what it was asked."""
  asked = {}

  def sample(policy, prompts, config, *, samples_per_prompt, limits, on_finished, **more):
    asked.update(more, prompts=prompts, limits=limits)
    for number, lines in enumerate(texts):
      for k, text in enumerate(lines):
        ids = chat.encode([text])[0]
        on_finished(number, k, Sample([*ids, chat.eos_id], [0.0] * (len(ids) + 1), None, 'stop'))
    for number in range(len(texts), len(prompts)):
      on_finished(number, 0, Sample([chat.eos_id], [0.0], None, 'stop'))

  monkeypatch.setattr(engine, 'sample', sample)
  return asked


def test_resampled_values_are_means_and_their_rises_the_rewards(monkeypatch):
  markers = ('<think>', '</think>')
  chat = bytewise(markers)
  texts = ['<think>a\nb</think>7', '<think>c</think>8']
  asked = scripted(
    monkeypatch,
    [
      ['b</think>7', 'b</think>8'],  # after a: 1/2
      ['7', '7'],  # after b: 1
      ['7', ' no'],  # after c: 1/2
    ],
    chat,
  )
  config = CreditConfig(level='reasoning_step', step_boundary='line', source='resample', resamples=2)
  groups = [
    [
      episode(text, reward, g, occurrence=5, chat=chat)
      for g, (text, reward) in enumerate(zip(texts, (1.0, 0.0)))
    ]
  ]
  found = rewards_of(groups, config, chat)
  # The prompt is worth what the other sample got: 0 for the first, 1 for the second.
  assert found.rewards == [[0.5, 0.5, 0.0], [-0.5, -0.5]]
  assert asked['prompts'][0] == [1, 2, *chat.encode(['<think>a\n'])[0]]
  assert asked['prompts'][1] == [1, 2, *chat.encode(['<think>a\nb</think>'])[0]]
  assert [row[0] for row in asked['limits'][:3]] == [40 - 9, 40 - 18, 40 - 16]
  assert asked['occurrences'][:3] == [5 * 2 * 40 + 8, 5 * 2 * 40 + 17, (5 * 2 + 1) * 40 + 15]
  assert asked['step'] == 3 and asked['seed'] != 0
  assert found.metrics['credit/resampled'] == 6
  assert found.metrics['credit/resampled_tokens'] == 2 * 11 + 2 + 2 + 2 + 4
  values = credit.advantages(groups, np.ones((2, 20)), [[1.0, -1.0]], found, config)
  np.testing.assert_array_equal(values[0, :9], 0.5)  # differences, and no outcome beside them
  np.testing.assert_array_equal(values[1, :16], -0.5)


def test_samples_in_the_same_state_are_resampled_once(monkeypatch):
  chat = bytewise(('<think>', '</think>'))
  texts = ['<think>a\nb</think>7', '<think>a\nc</think>8']
  asked = scripted(
    monkeypatch,
    [
      ['b</think>7', 'b</think>7'],  # after a, of both samples: 1
      ['7', 'no'],  # after a and b: 1/2
      ['7', '8'],  # after a and c: 1/2
    ],
    chat,
  )
  config = CreditConfig(level='reasoning_step', step_boundary='line', source='resample', resamples=2)
  groups = [
    [
      episode(text, reward, g, occurrence=5, chat=chat)
      for g, (text, reward) in enumerate(zip(texts, (1.0, 0.0)))
    ]
  ]
  found = rewards_of(groups, config, chat)
  assert found.rewards == [[1.0, -0.5, 0.5], [0.0, -0.5, -0.5]]
  assert found.metrics['credit/resampled'] == 6
  assert len(set(map(tuple, asked['prompts']))) == 3
  # Two prompts that happen to have the same text stay apart.
  apart = [[one._replace(occurrence=5 + g) for g, one in enumerate(groups[0])]]
  scripted(monkeypatch, [['7', '7']] * 4, chat)
  assert rewards_of(apart, config, chat).metrics['credit/resampled'] == 8


def test_a_group_whose_steps_cannot_be_graded_has_credit_by_samples():
  broken = dataclasses.replace(LINES, grader=dict(GOOD, input='{{ item.good }}{{ item.more }}'))
  groups = [
    group(('one', 1.0), ('six\ntwo', 0.0)),
    group(('one', 1.0), ('six\ntwo', 0.0), row={'good': 'one', 'more': ''}),
  ]
  with pytest.raises(GraderFaults, match='3 of 6 steps.*credit.grader'):
    rewards_of(groups, broken)
  found = rewards_of(groups, broken, settings=dataclasses.replace(ROLLOUT, max_grader_faults=0.5))
  assert found.whole.tolist() == [False, True]
  assert found.metrics['credit/groups_without_step_rewards'] == 1
  outcome = np.array([[0.7, -0.7], [0.3, -0.3]], np.float32)
  batch = batching.from_groups(groups, outcome)
  values = credit.advantages(groups, batch.loss_mask, outcome, found, broken)
  np.testing.assert_array_equal(values[:2], batch.advantages[:2])
  assert (values[2:] != batch.advantages[2:]).any()


def test_blends_weigh_outcome_and_steps_and_leave_padding_alone():
  groups = [group(('one\nsix', 1.0), ('six\nsix', 0.0))]
  outcome = np.array([[0.5, -0.5]], np.float32)
  batch = batching.from_groups(groups, outcome)
  found = rewards_of(groups, LINES)
  assert found.rewards == [[1.0, 0.0], [0.0, 0.0]]
  # Centred at each step: (1/2, 0) and (-1/2, 0); summed to the end: the same.
  for weights, first, second in (
    ((-1.0, 1.0), 1.0, 0.5),
    ((2.0, 3.0), 2.5, 1.0),
    ((0.0, 1.0), 0.5, 0.0),
  ):
    config = dataclasses.replace(LINES, outcome_weight=weights[0], process_weight=weights[1])
    values = credit.advantages(groups, batch.loss_mask, outcome, found, config)
    expected = np.array([[first] * 4 + [second] * 4, [-first] * 4 + [-second] * 4], np.float32)
    np.testing.assert_allclose(values, expected, rtol=1e-6)
  short = batch.loss_mask.copy()
  short[:, -1] = 0
  assert (credit.advantages(groups, short, outcome, found, LINES)[:, -1] == 0).all()
  normalised = dataclasses.replace(LINES, estimator='normalised', outcome_weight=0.0)
  values = credit.advantages(groups, batch.loss_mask, outcome, found, normalised)
  # mean 1/4, std 1/2 (ddof 1): z = 1.5 and -0.5; the first row's sum to the end is 1.
  np.testing.assert_allclose(values[:, 0], [1.0, -1.0], rtol=1e-3)
  np.testing.assert_allclose(values[:, 4], [-0.5, -0.5], rtol=1e-3)


def test_one_step_a_sample_is_credit_by_samples():
  groups = [group(('7', 1.0), ('8\n9', 0.25), ('long', 0.5))]
  config = CreditConfig(level='reasoning_step', step_boundary='turn')
  outcome = group_advantages([[1.0, 0.25, 0.5]], AdvantageConfig(scale='none'))
  batch = batching.from_groups(groups, outcome)
  found = rewards_of(groups, config)
  np.testing.assert_array_equal(
    credit.advantages(groups, batch.loss_mask, outcome, found, config), batch.advantages
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(level='sentence'), "level='sentence'"),
    (dict(source='process'), 'grader is empty'),
    (dict(source='resample', grader=GOOD), 'need none for source='),
    (dict(source='process', grader=GOOD, estimator='difference'), 'no values of states'),
    (dict(step_boundary='delimiter'), "delimiter='' with steps='delimiter'"),
    (dict(delimiter=';'), "delimiter=';' with steps='paragraph'"),
    (dict(max_reasoning_steps=1), 'max_reasoning_steps=1'),
    (dict(outcome_weight=-0.5), 'outcome_weight=-0.5'),
    (dict(process_weight=0.0), 'process_weight=0.0'),
    (dict(resamples=0), 'resamples=0'),
    (dict(estimator='mean', steps='word', source='oracle'), "estimator='mean'"),
  ],
)
def test_wrong_settings_are_refused_with_the_reason(changes, words):
  problems = CreditConfig(**{'level': 'reasoning_step', **changes}).validate()
  assert any(words in problem for problem in problems)


# ------------------------------------------------------------------ in a run


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  config = tiny.config(tmp_path_factory.mktemp('credit'))
  config.stages = (Stage(algorithm='grpo', steps=2, optim=config.stages[1].optim),)
  config.grader = {
    'type': 'python',
    'name': 'letters',
    'source': 'def grade(sample, item):\n  return sum(map(ord, sample["output_text"])) % 7 / 6\n',
  }
  config.evaluate.every = 0
  return config


def run(config, workdir, **changes):
  """Trains and returns (the last policy, rows of metrics without clocks)."""
  config = dataclasses.replace(config, **changes)
  rft_jax.train(config, workdir, quiet=True)
  rows = [
    {name: value for name, value in row.items() if 'seconds' not in name and name != 'compilations'}
    for row in metrics.read(workdir / 'metrics.jsonl')
  ]
  return hf.load(workdir / 'export')[0], rows


def same(one, other):
  import jax

  return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)))


# The tiny policy writes bytes at random, of which half are no characters: they end its steps.
RESAMPLE = CreditConfig(
  level='reasoning_step', step_boundary='delimiter', delimiter='\ufffd', source='resample', resamples=2, max_reasoning_steps=3
)


def test_credit_by_tokens_is_refused_for_grpo(base):
  config = dataclasses.replace(base, credit=CreditConfig(level='token'))
  assert any("need algorithm 'ppo'" in problem for problem in config.problems())
  config.stages = (Stage(algorithm='sft', steps=1),)
  config.credit = RESAMPLE
  assert any("need a stage of 'grpo'" in problem for problem in config.problems())


def test_runs_with_one_step_a_sample_equal_runs_by_samples(base, tmp_path):
  unscaled = AdvantageConfig(scale='none')
  plain, rows = run(base, tmp_path / 'plain', advantage=unscaled)
  turns, told = run(
    base, tmp_path / 'turns', advantage=unscaled, credit=CreditConfig(level='reasoning_step', step_boundary='turn')
  )
  assert same(plain, turns)
  assert told[0]['credit/reasoning_steps_mean'] == 1 and 'credit/reasoning_steps_mean' not in rows[0]


def test_a_run_that_resamples_continues_bit_for_bit(base, tmp_path):
  whole, rows = run(base, tmp_path / 'whole', credit=RESAMPLE)
  rft_jax.train(
    dataclasses.replace(base, credit=RESAMPLE), tmp_path / 'parts', stop_at_step=1, quiet=True
  )
  assert Checkpoints(tmp_path / 'parts' / 'checkpoints').latest() == 1
  parts, again = run(base, tmp_path / 'parts', credit=RESAMPLE)
  assert same(whole, parts) and rows == again
  assert all(row['credit/resampled'] > 0 and row['grad_norm'] > 0 for row in rows)
  assert episodes.steps(tmp_path / 'whole') == [1, 2]


def test_what_is_resampled_depends_on_seed_step_and_state_alone(base):
  config = dataclasses.replace(base, credit=RESAMPLE)
  with build.components(config) as components:
    policy, _ = hf.load(config.model.source)
    draw = rollout.make(components.chat, components.grader, config.rollout, seed=0, mesh=None)
    groups = draw(policy, components.train[0][:3], [7, 8, 9], 1).groups
    values = lambda seed: step_rewards.make(
      components.chat,
      RESAMPLE,
      config.rollout,
      grader=components.grader,
      step_grader=None,
      seed=seed,
      mesh=None,
    )
    together = values(0)(policy, groups, 1).rewards
    assert values(0)(policy, groups[1:2], 1).rewards == together[4:8]
    assert values(1)(policy, groups, 1).rewards != together
    assert values(0)(policy, groups, 2).rewards != together
    assert max(map(len, together)) > 1


def test_a_step_grader_is_checked_before_anything_is_paid_for(base, tmp_path):
  wrong = dict(GOOD, operation='resembles')
  config = dataclasses.replace(base, credit=dataclasses.replace(LINES, grader=wrong))
  with pytest.raises(InputError, match='resembles'):
    with build.components(config):
      pass
  absent = dataclasses.replace(LINES, grader=str(tmp_path / 'none.json'))
  with pytest.raises(InputError, match='credit.grader=.*cannot be read'):
    with build.components(dataclasses.replace(base, credit=absent)):
      pass
  with build.components(dataclasses.replace(base, credit=absent), training=False) as components:
    assert components.step_grader is None
  missing = dict(GOOD, input='{{ item.proof }}', reference='{{ item.reasoning_step.text }}')
  with pytest.raises(InputError, match='proof'):
    with build.components(dataclasses.replace(base, credit=dataclasses.replace(LINES, grader=missing))):
      pass
