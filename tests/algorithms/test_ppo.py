"""PPO in the house: its batch, its critic, and runs that stop and go on as if they had not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import ppo
from rft_jax.config import Stage
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.records import metrics as metrics_file
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.training import scoring
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, TrainState

DECODER = models.DecoderConfig(
  vocab_size=48, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64, tied_head=True
)


def _batch(seed=0, P=4, G=3, S=6, T=9):
  rng = np.random.default_rng(seed)
  B = P * G
  lengths = rng.integers(1, T + 1, B).astype(np.int32)
  weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
  noise = lambda: (rng.normal(size=(B, T)) * weights).astype(np.float32)
  return Batch(
    rng.integers(0, 48, (P, S)).astype(np.int32),
    rng.integers(1, S + 1, P).astype(np.int32),
    rng.integers(0, 48, (B, T)).astype(np.int32),
    lengths,
    np.repeat(np.arange(P), G).astype(np.int32),
    weights,
    advantages=noise(),
    old_values=noise(),
    returns=noise(),
  )


def _critic(policy, kind, seed=3):
  critic = models.make_critic(policy, kind)
  critic.score.kernel[...] = 0.3 * jax.random.normal(jax.random.key(seed), (DECODER.dim, 1))
  return critic


@pytest.mark.parametrize('kind', ['separate', 'head'])
def test_values_are_of_the_state_before_each_token(kind):
  policy, batch = models.make(DECODER, seed=1), _batch()
  critic = _critic(policy, kind)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  found = scoring.value_batch(policy, critic, batch, UpdateConfig(microbatch_tokens=60), mesh=mesh)
  for row in range(len(batch.group)):
    prompt = batch.prompts[batch.group[row]][: batch.prompt_lengths[batch.group[row]]]
    n = batch.completion_lengths[row]
    tokens = np.concatenate([prompt, batch.completions[row, :n]])[None]
    hidden = policy.hidden(jnp.asarray(tokens), lengths=jnp.array([tokens.shape[1]]))[0]
    expected = np.asarray(hidden, np.float64) @ np.asarray(critic.score.kernel[...], np.float64)
    np.testing.assert_allclose(found[row, :n], expected[len(prompt) - 1 : -1, 0], atol=2e-5)
    assert (found[row, n:] == 0).all()


def test_the_value_term_is_the_clipped_squared_error_over_the_tokens_of_the_step():
  batch, config = _batch(1), ppo.CriticConfig(vf_coef=0.7, clip=0.3)
  values = np.random.default_rng(5).normal(size=batch.loss_mask.shape).astype(np.float32)
  logprobs = np.full_like(values, -1.0)
  terms, metrics = ppo.loss(
    TokenStatistics(logprobs, logprobs, logprobs > 0, values),
    batch,
    objective=ObjectiveConfig(),
    config=config,
    max_new_tokens=9,
  )
  total = count = bound = 0.0
  for b, t in zip(*np.nonzero(batch.loss_mask)):
    v, old, target = (float(x[b, t]) for x in (values, batch.old_values, batch.returns))
    held = min(max(v, old - 0.3), old + 0.3)
    total += max((v - target) ** 2, (held - target) ** 2) / 2
    bound += (held - target) ** 2 > (v - target) ** 2
    count += 1
  assert terms['value'].coefficient == 0.7 and set(terms) == {'policy', 'value'}
  np.testing.assert_allclose(terms['value'].sum, (total, count), rtol=1e-5)
  np.testing.assert_allclose(metrics['critic/clip_ratio'], (bound, count))


@pytest.mark.parametrize('kind, moved', [('separate', {'critic'}), ('head', {'critic', 'policy'})])
def test_who_is_trained(kind, moved):
  """The value loss reaches the policy through a head alone; a warm-up leaves the policy as it was."""
  policy, mesh = models.make(DECODER, seed=1), sharding.make_mesh(devices=jax.devices()[:1])
  batch = _batch()._replace(advantages=np.zeros((12, 9), np.float32))
  tx = {name: optax.sgd(0.1) for name in ('policy', 'critic')}
  loss = lambda statistics, batch: ppo.loss(
    statistics, batch, objective=ObjectiveConfig(), config=ppo.CriticConfig(), max_new_tokens=9
  )
  update = updates.make_update(
    loss, tx, config=UpdateConfig(microbatch_tokens=80), temperature=1.0, mesh=mesh
  )
  for trains, expected in ((('policy', 'critic'), moved), (('critic',), {'critic'})):
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    state = TrainState(0, copy(policy), None, _critic(policy, kind))
    before = copy({'policy': state.policy, 'critic': state.critic})
    state = state._replace(optimizer={name: tx[name].init(before[name]) for name in tx})
    state, metrics = update(state, batch, trains)
    for name, now in (('policy', state.policy), ('critic', state.critic)):
      same = all(
        (x == y).all() for x, y in zip(jax.tree.leaves(before[name]), jax.tree.leaves(now))
      )
      assert same == (name not in expected)
    assert ('grad_norm' in metrics) == ('policy' in trains) and metrics['critic/grad_norm'] > 0
    first = metrics['loss/value']
    for _ in range(3):
      state, metrics = update(state, batch, trains)
    assert metrics['loss/value'] < first


def _config(tmp_path, **objective):
  config = tiny.config(tmp_path)
  config.stages = (Stage(algorithm='ppo', steps=6, optim=OptimConfig(learning_rate=1e-2)),)
  config.critic.optim.learning_rate = 1e-2
  config.evaluate.every, config.checkpoints.every = 0, 2
  for name, value in objective.items():
    setattr(config.objective, name, value)
  return config


def _leaves(workdir, step):
  import orbax.checkpoint as ocp

  folder = Checkpoints(workdir / 'checkpoints').directory / f'step_{step:06d}'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    parts = {
      part: checkpointer.restore(folder / part)
      for part in ('policy', 'optimizer', 'critic')
      if (folder / part).is_dir()
    }
  return {
    f'{part}/{name}': np.asarray(value)
    for part, leaves in parts.items()
    for name, value in leaves.items()
  }


def _same(one, other, step):
  found, expected = _leaves(one, step), _leaves(other, step)
  for name, value in found.items():
    assert value.tobytes() == expected[name].tobytes(), name
  volatile = ('seconds/', 'compilations')
  rows = [
    [
      {key: value for key, value in row.items() if not key.startswith(volatile)}
      for row in metrics_file.read(workdir / 'metrics.jsonl')
    ]
    for workdir in (one, other)
  ]
  assert rows[0] == rows[1]
  return found


def test_ppo_stopped_and_continued_equals_uninterrupted(tmp_path):
  """With a critic, a warm-up of it, an adaptive KL in the reward, and a reference that is renewed."""
  config = _config(
    tmp_path, kl_coef=0.05, kl_place='reward', kl_target=0.5, kl_horizon=100, reference_every=2
  )
  config.critic.warmup_steps, config.update.updates_per_batch = 1, 2
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  for stop in (3, 4):
    rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=stop)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  found = _same(tmp_path / 'whole', tmp_path / 'parts', 6)
  assert any(name.startswith('critic/decoder/') for name in found)
  assert any(name.startswith('optimizer/critic/') for name in found)
  rows = metrics_file.read(tmp_path / 'whole' / 'metrics.jsonl')
  assert 'grad_norm' not in rows[0] and rows[0]['critic/grad_norm'] > 0
  assert all(row['grad_norm'] > 0 for row in rows[1:])
  assert rows[0]['kl_per_completion'] == rows[1]['kl_per_completion'] == 0
  assert rows[0]['kl_coef'] == 0.05 > rows[1]['kl_coef'] > rows[2]['kl_coef']
  # At steps 3 and 5 the policy itself has just become the reference.
  assert [row['kl_per_completion'] == 0 for row in rows] == [True, True, True, False, True, False]
  names = sorted(path.name for path in (tmp_path / 'whole/checkpoints').iterdir())
  assert [name for name in names if name.startswith('reference')] == [
    'reference_stage_0',
    'reference_stage_0_step_000004',
  ]


@pytest.mark.parametrize('estimator', ['remax', 'reinforce'])
def test_estimators_with_a_baseline_of_their_own(tmp_path, estimator):
  config = _config(tmp_path)
  config.stages[0].algorithm, config.stages[0].steps = 'grpo', 4
  config.advantage.estimator = estimator
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  _same(tmp_path / 'whole', tmp_path / 'parts', 4)
  rows = metrics_file.read(tmp_path / 'whole' / 'metrics.jsonl')
  assert all(row['grad_norm'] > 0 for row in rows)
  algorithm_state = Checkpoints(tmp_path / 'whole' / 'checkpoints').metadata('last')['algorithm_state']
  if estimator == 'remax':
    assert 0 <= rows[0]['greedy/reward'] <= 1
  else:
    expected = rows[0]['reward']
    for row in rows[1:]:
      expected = 0.9 * expected + 0.1 * row['reward']
    np.testing.assert_allclose(algorithm_state['baseline'], expected, rtol=1e-6)


def test_dynamic_sampling_refills_up_to_its_bound(tmp_path):
  config = _config(tmp_path)
  config.stages[0].algorithm, config.stages[0].steps = 'grpo', 3
  config.rollout.dynamic_sampling_rounds, config.rollout.samples_per_prompt = 2, 2
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=2)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  _same(tmp_path / 'whole', tmp_path / 'parts', 3)
  P = config.rollout.prompts_per_step
  for row in metrics_file.read(tmp_path / 'whole' / 'metrics.jsonl'):
    assert row['dynamic_sampling/prompts'] in (P, 2 * P, 3 * P)
    assert row['dynamic_sampling/used'] <= P
    assert row['dynamic_sampling/used'] == P or row['dynamic_sampling/prompts'] == 3 * P
    differing = (1 - row['frac_reward_zero_std']) * row['dynamic_sampling/prompts']
    assert round(differing) >= row['dynamic_sampling/used']
  assert (
    max(
      row['dynamic_sampling/prompts']
      for row in metrics_file.read(tmp_path / 'whole' / 'metrics.jsonl')
    )
    > P
  )


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda c: setattr(c.critic, 'kind', 'shared'), "critic.kind='shared', need one of"),
    (lambda c: setattr(c.critic, 'gae_lambda', 2), 'critic.gae_lambda=2'),
    (lambda c: setattr(c.objective, 'kl_place', 'token'), "objective.kl_place='token'"),
    (lambda c: setattr(c.objective, 'kl_target', 1.0), 'KL in the reward'),
    (lambda c: setattr(c.objective, 'reference_every', 5), 'no reference to renew'),
    (lambda c: setattr(c.objective.policy_loss, 'ratio_level', 'reasoning_step'), 'split into steps'),
  ],
)
def test_wrong_settings_say_what_is_meant(tmp_path, change, words):
  config = _config(tmp_path)
  change(config)
  assert any(words in problem for problem in config.problems())


# ------------------------------------------------------------------ transitions of several tokens


def _by_hand(rewards, values, ends, discount, lam):
  """GAE over the steps of one row: (advantages, returns), a number for each token."""
  starts = [0, *(end + 1 for end in ends[:-1])]
  r = [sum(rewards[start : end + 1]) for start, end in zip(starts, ends)]
  v = [values[start] for start in starts] + [0.0]
  advantages, later = [0.0] * len(ends), 0.0
  for j in reversed(range(len(ends))):
    later = r[j] + discount * v[j + 1] - v[j] + discount * lam * later
    advantages[j] = later
  lengths = [end - start + 1 for start, end in zip(starts, ends)]
  return np.repeat(advantages, lengths), np.repeat(np.add(advantages, v[:-1]), lengths)


def test_a_transition_of_several_tokens_has_one_value_one_advantage_and_one_return():
  rng = np.random.default_rng(0)
  lengths, ends = [7, 5, 1], [[1, 4, 6], [4], [0]]
  weights = (np.arange(9) < np.array(lengths)[:, None]).astype(np.float32)
  rewards, values = (rng.normal(size=weights.shape).astype(np.float32) for _ in range(2))
  found = ppo.estimated(rewards, values, weights, ends, discount=0.9, gae_lambda=0.8)
  for b, n in enumerate(lengths):
    expected = _by_hand(rewards[b].astype(float), values[b].astype(float), ends[b], 0.9, 0.8)
    np.testing.assert_allclose(found.advantages[b, :n], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.returns[b, :n], expected[1], rtol=1e-5, atol=1e-6)
    assert (found.advantages[b, n:] == 0).all() and (found.returns[b, n:] == 0).all()


def test_transitions_of_one_token_are_those_of_ppo():
  rng = np.random.default_rng(1)
  weights = (np.arange(6) < np.array([6, 3])[:, None]).astype(np.float32)
  rewards, values = (rng.normal(size=weights.shape).astype(np.float32) for _ in range(2))
  settings = dict(discount=0.95, gae_lambda=0.7)
  by_token = ppo.estimated(rewards, values, weights, None, **settings)
  by_step = ppo.estimated(rewards, values, weights, [list(range(6)), [0, 1, 2]], **settings)
  for one, other in zip(by_token, by_step):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


STEP = {
  'type': 'python',
  'name': 'short',
  'source': 'def grade(sample, item):\n  return 1 / (1 + len(item["reasoning_step"]["text"]))\n',
}


@pytest.mark.parametrize(
  'level, source', [('response', 'prefix'), ('reasoning_step', 'process'), ('reasoning_step', 'prefix')]
)
def test_ppo_gives_credit_to_steps_and_to_answers(tmp_path, level, source):
  config = _config(tmp_path)
  config.stages[0].steps = 2
  config.credit.level, config.credit.source = level, source
  config.credit.step_boundary, config.credit.delimiter = 'delimiter', '1'
  config.credit.grader = STEP if source == 'process' else ''
  if level == 'step':
    config.objective.policy_loss.ratio_level = 'reasoning_step'
    config.update.updates_per_batch = 2
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  rows = metrics_file.read(tmp_path / 'run' / 'metrics.jsonl')
  assert all(row['grad_norm'] > 0 and row['critic/grad_norm'] > 0 for row in rows)
  if level == 'step':
    assert rows[0]['credit/reasoning_steps_mean'] > 1
  if source == 'prefix':  # what the steps earn is the final grade, and no more
    np.testing.assert_allclose(rows[0]['critic/return_mean'] > 0, rows[0]['reward'] > 0)
