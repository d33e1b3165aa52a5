"""Reward model training: the score position, the loss against plain loops, and whole runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import reward_model
from rft_jax.algorithms.base import StageContext
from rft_jax.config import Stage
from rft_jax.data import batching
from rft_jax.errors import InputError
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.records import metrics as metrics_file
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build, results
from rft_jax.training import scoring
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, Example, Item, TrainState

DECODER = models.DecoderConfig(
  vocab_size=48, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=32, tied_head=False
)


def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


def examples(count=5, rows=None):
  rng = np.random.default_rng(4)
  ids = lambda most: rng.integers(0, 48, rng.integers(1, most + 1)).tolist()
  return [
    Example(Item((rows or {}).get(n, {}), f'x:{n + 1}'), ids(6), ids(9), rejected_ids=ids(15))
    for n in range(count)
  ]


def policy_and_head():
  """A policy and a head that is not 0."""
  policy = jax.tree.map(lambda x: 2.0 * x, models.make(DECODER, seed=1))
  critic = models.make_critic(policy, 'head')
  critic.score.kernel[...] = jax.random.normal(jax.random.key(3), (DECODER.dim, 1))
  return policy, critic


@jax.jit
def at_last_tokens(models_, tokens, lengths):
  """Returns the head at the last token of each row, prompt and answer as one sequence: f32[B]."""
  scores = models_['critic'](models_['policy'].hidden(tokens, lengths=lengths))
  return jnp.take_along_axis(scores, lengths[:, None] - 1, axis=1)[:, 0]


def whole_rows(pairs):
  """Returns prompt + answer, chosen and rejected, of each pair: (i32[B, 24], i32[B])."""
  rows = [
    example.prompt_ids + ids
    for example in pairs
    for ids in (example.target_ids, example.rejected_ids)
  ]
  tokens = np.zeros((len(rows), 24), np.int32)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids
  return tokens, np.array([len(ids) for ids in rows], np.int32)


def plain_scores(policy, critic, pairs):
  """Returns the scores of the pairs, f64[N, 2]."""
  return np.asarray(
    at_last_tokens({'policy': policy, 'critic': critic}, *whole_rows(pairs)), np.float64
  ).reshape(-1, 2)


def log_sigma(x):
  return -np.log1p(np.exp(-x))


# --- the score position -------------------------------------------------------------------


@pytest.mark.parametrize('last_id', [0, 47])
def test_the_score_is_of_the_state_after_the_last_token(last_id):
  policy, critic = policy_and_head()
  batch = batching.with_score_positions(batching.from_pairs(examples()))
  batch.completions[np.arange(10), batch.completion_lengths - 1] = last_id
  values = scoring.value_batch(
    policy, critic, batch, UpdateConfig(microbatch_tokens=70), mesh=mesh()
  )
  answers = [ids for pair in examples() for ids in (pair.target_ids, pair.rejected_ids)]
  assert [row.nonzero()[0].tolist() for row in batch.loss_mask] == [[len(ids)] for ids in answers]
  np.testing.assert_allclose(
    [row[len(ids)] for row, ids in zip(values, answers)],
    plain_scores(policy, critic, examples()).reshape(-1),
    atol=2e-5,
  )


# --- the loss ---------------------------------------------------------------------------------


def test_the_gradient_is_that_of_bradley_terry_over_unpadded_rows():
  policy, critic = policy_and_head()
  margins, centring = np.array([0.0, 0.5, -0.2, 1.0, 0.3], np.float32), 0.1
  batch = batching.with_score_positions(batching.from_pairs(examples()))._replace(
    margins=np.repeat(margins, 2)
  )

  def formula(models_):
    better, worse = at_last_tokens(models_, *whole_rows(examples())).reshape(-1, 2).T
    return (-jax.nn.log_sigmoid(better - worse - margins) + centring * (better + worse) ** 2).mean()

  expected_loss, expected = jax.jit(jax.value_and_grad(formula))(
    {'policy': policy, 'critic': critic}
  )
  tx = {name: optax.sgd(1.0) for name in ('policy', 'critic')}
  update = updates.make_update(
    lambda *args: reward_model.loss(*args, centring=centring),
    tx,
    temperature=1.0,
    config=UpdateConfig(microbatch_tokens=70),
    mesh=mesh(),
  )
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  state = TrainState(0, copy(policy), {n: tx[n].init(policy) for n in tx}, copy(critic))
  state, metrics = update(state, batch, ('policy', 'critic'))
  np.testing.assert_allclose(metrics['loss'], expected_loss, rtol=1e-5)
  for name, before, after in (('policy', policy, state.policy), ('critic', critic, state.critic)):
    for b, a, g in zip(*map(jax.tree.leaves, (before, after, expected[name]))):
      np.testing.assert_allclose(np.float32(b) - a, g, rtol=1e-3, atol=1e-4)
  scores = plain_scores(policy, critic, examples())
  better, worse = scores.T
  np.testing.assert_allclose(metrics['accuracy'], (better > worse).mean())
  np.testing.assert_allclose(metrics['margin'], (better - worse).mean(), rtol=1e-4)
  np.testing.assert_allclose(metrics['mean_reward'], np.mean(scores), rtol=1e-4)
  assert (
    np.min(scores) - 1e-5
    <= metrics['min_reward']
    < metrics['max_reward']
    <= (np.max(scores) + 1e-5)
  )


def test_all_pairs_of_ranked_answers_count_and_every_prompt_has_equal_weight():
  """Three ranked answers; three with two equal grades; one alone with two padding rows."""
  scores = np.array([[0.3, -1.0, 2.0], [0.5, 0.7, -0.1], [1.5, np.nan, np.nan]], np.float32)
  grades = np.array([[3, 2, 1], [1, 1, 0], [1, 0, 0]], np.float32)
  lengths = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 0]]).reshape(-1)
  values = scores.reshape(-1, 1)
  batch = Batch(
    np.zeros((3, 2), np.int32),
    np.ones(3, np.int32),
    np.zeros((9, 1), np.int32),
    lengths,
    np.repeat(np.arange(3), 3),
    lengths[:, None].astype(np.float32),
    grades=grades.reshape(-1),
    margins=np.full(9, 0.25, np.float32),
  )
  zeros = np.zeros_like(values)
  terms, metrics = reward_model.loss(
    TokenStatistics(zeros, zeros, zeros > 0, values), batch, centring=0.0
  )
  pair = lambda p, i, j: -log_sigma(float(scores[p, i] - scores[p, j]) - 0.25)
  first = np.mean([pair(0, 0, 1), pair(0, 0, 2), pair(0, 1, 2)])
  second = np.mean([pair(1, 0, 2), pair(1, 1, 2)])
  np.testing.assert_allclose(terms['bradley_terry'].sum, (first + second, 2), rtol=1e-5)
  np.testing.assert_allclose(metrics['accuracy'], (1 + 2, 5))  # 0.3 > -1; both of the second
  np.testing.assert_allclose(
    metrics['mean_reward'], (0.3 - 1 + 2 + 0.5 + 0.7 - 0.1 + 1.5, 7), rtol=1e-5
  )


# --- rows and held-out pairs ------------------------------------------------------------------


def context(**changes):
  values = lambda state, batch: scoring.value_batch(
    state.policy, state.critic, batch, UpdateConfig(), mesh=mesh()
  )
  return StageContext(
    **dict(
      groups={'reward_model': reward_model.RewardModelConfig(margin=0.5)},
      seed=3,
      first_step=0,
      examples=examples(),
      validation=examples(),
      reference=None,
      rollout=None,
      score=None,
      values=values,
      greedy=None,
      record=None,
    )
    | changes
  )


def test_the_margin_of_a_row_replaces_the_default():
  rows = {1: {'margin': 2}, 3: {'margin': 0.0}}
  margins = reward_model.margins_of(examples(rows=rows), 0.5)
  np.testing.assert_array_equal(margins, [0.5, 2, 0.5, 0, 0.5])
  batch = reward_model.make(context(examples=examples(rows=rows))).collect(None, 0).batch
  assert (batch.margins[::2] == batch.margins[1::2]).all()
  assert set(batch.margins.tolist()) == {0.0, 0.5, 2.0}
  wrong = examples(rows={1: {'margin': 'much'}, 4: {'margin': float('inf')}})
  with pytest.raises(ValueError, match="x:2: margin='much', need a finite number\nx:5: margin=inf"):
    reward_model.make(context(examples=wrong))


def test_held_out_accuracy_counts_equal_scores_as_a_half():
  policy, critic = policy_and_head()
  measure = reward_model.held_out_pairs(examples(), context().values)
  columns = measure(TrainState(0, policy, None, critic))
  better, worse = plain_scores(policy, critic, examples()).T
  np.testing.assert_array_equal(columns['preference/accuracy'], better > worse)
  np.testing.assert_allclose(columns['preference/margin'], better - worse, atol=4e-5)
  untrained = measure(TrainState(0, policy, None, models.make_critic(policy, 'head')))
  np.testing.assert_array_equal(untrained['preference/accuracy'], np.full(5, 0.5))
  assert reward_model.held_out_pairs([], None) is None


# --- whole runs -------------------------------------------------------------------------------


def pairs(count, of=5):
  return [
    {
      'messages': [{'role': 'user', 'content': f'{n} + {of}'}],
      'chosen': {'role': 'assistant', 'content': str(n + of)},
      'rejected': {'role': 'assistant', 'content': 'no ' * (1 + n % 3)},
    }
    for n in range(count)
  ]


def reward_model_config(tmp_path, **changes):
  config = tiny.config(tmp_path, **dict(grader='') | changes)
  config.data.train = tiny.write_rows(tmp_path / 'pairs.jsonl', pairs(12))
  config.data.validation = tiny.write_rows(tmp_path / 'held_out.jsonl', pairs(6, of=7))
  config.stages = (Stage(algorithm='reward_model', steps=4, optim=OptimConfig(learning_rate=1e-2)),)
  config.reward_model.pairs_per_step = 6
  return config


@pytest.mark.full
def test_a_run_learns_and_continues_bit_for_bit(tmp_path):
  config = reward_model_config(tmp_path)
  last = rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=3)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert last['preference/accuracy']['mean'] == 1.0 and last['preference/accuracy']['low'] > 0.5
  rows = [metrics_file.read(tmp_path / name / 'evaluation.jsonl') for name in ('whole', 'parts')]
  assert rows[0] == rows[1] and rows[0][0]['preference/accuracy']['mean'] == 0.5
  assert not (tmp_path / 'whole/evaluations').exists()
  steps = metrics_file.read(tmp_path / 'whole/metrics.jsonl')
  assert {
    'accuracy',
    'margin',
    'mean_reward',
    'min_reward',
    'max_reward',
    'critic/grad_norm',
  } <= set(steps[0])
  assert steps[0]['accuracy'] == 0.5 and steps[-1]['accuracy'] > 0.9
  exported = [
    (tmp_path / name / 'export/model.safetensors').read_bytes() for name in ('whole', 'parts')
  ]
  assert exported[0] == exported[1]
  again = results.evaluate_checkpoint(config, tmp_path / 'whole', which='last')
  assert again == {name: last[name] for name in again} and 'preference/margin' in again


@pytest.mark.full
def test_after_a_warm_up_the_policy_becomes_the_trunk_and_is_not_sampled(tmp_path):
  """Checkpoints are ranked by the accuracy of the reward model alone."""
  config = reward_model_config(
    tmp_path, grader=dict(tiny.GRADER, source='def grade(sample, item):\n  return 5.0')
  )
  config.stages = (Stage(algorithm='sft', steps=1), config.stages[0])
  config.sft.target, config.stages[1].steps, config.evaluate.every = '', 2, 1
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  rows = metrics_file.read(tmp_path / 'run/evaluation.jsonl')
  assert ['grade' in row for row in rows] == [True, True, False, False]
  assert ['preference/accuracy' in row for row in rows] == [False, False, True, True]
  assert Checkpoints(tmp_path / 'run/checkpoints').best() > 1
  exported = json.loads((tmp_path / 'run/export/config.json').read_text())
  assert exported['architectures'] == ['LlamaForSequenceClassification']


@pytest.mark.parametrize(
  'change, message',
  [
    (
      lambda c: setattr(c, 'stages', c.stages + (Stage(algorithm='dpo', steps=1),)),
      "stages[0].algorithm='reward_model' is not the last stage",
    ),
    (lambda c: setattr(c.reward_model, 'pairs_per_step', 0), 'reward_model.pairs_per_step=0'),
    (lambda c: setattr(c.reward_model, 'centring', -1), 'reward_model.centring=-1'),
    (lambda c: setattr(c.reward_model, 'margin', float('nan')), 'reward_model.margin=nan'),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(tmp_path, change, message):
  config = reward_model_config(tmp_path)
  change(config)
  with pytest.raises(InputError) as caught:
    with build.components(config):
      pass
  assert message in str(caught.value)
