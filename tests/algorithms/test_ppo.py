"""PPO: values, the value loss, warm-up of the critic, GAE over steps, and whole runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from workdirs import assert_same_runs, checkpoint_arrays

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import ppo
from rft_jax.config import Stage
from rft_jax.objectives.logprobs import TokenStatistics
from rft_jax.objectives.policy_objective import ObjectiveConfig
from rft_jax.records import metrics as metrics_file
from rft_jax.training import scoring
from rft_jax.training import update as updates
from rft_jax.training.optim import OptimConfig
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, TrainState

DECODER = models.DecoderConfig(
  vocab_size=48, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64, tied_head=True
)


def random_batch(seed=0, P=4, G=3, S=6, T=9):
  rng = np.random.default_rng(seed)
  B = P * G
  lengths = rng.integers(1, T + 1, B).astype(np.int32)
  loss_mask = (np.arange(T) < lengths[:, None]).astype(np.float32)
  noise = lambda: (rng.normal(size=(B, T)) * loss_mask).astype(np.float32)
  return Batch(
    rng.integers(0, 48, (P, S)).astype(np.int32),
    rng.integers(1, S + 1, P).astype(np.int32),
    rng.integers(0, 48, (B, T)).astype(np.int32),
    lengths,
    np.repeat(np.arange(P), G).astype(np.int32),
    loss_mask,
    advantages=noise(),
    old_values=noise(),
    returns=noise(),
  )


def make_critic(policy, kind, seed=3):
  critic = models.make_critic(policy, kind)
  critic.score.kernel[...] = 0.3 * jax.random.normal(jax.random.key(seed), (DECODER.dim, 1))
  return critic


@pytest.mark.full
@pytest.mark.parametrize('kind', ['separate', 'head'])
def test_a_value_is_that_of_the_state_before_its_token(kind):
  policy, batch = models.make(DECODER, seed=1), random_batch()
  critic = make_critic(policy, kind)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  config = UpdateConfig(microbatch_tokens=60)
  values = scoring.value_batch(policy, critic, batch, config, mesh=mesh)
  for row in range(len(batch.group)):
    prompt = batch.prompts[batch.group[row]][: batch.prompt_lengths[batch.group[row]]]
    n = batch.completion_lengths[row]
    tokens = np.concatenate([prompt, batch.completions[row, :n]])[None]
    hidden = policy.hidden(jnp.asarray(tokens), lengths=jnp.array([tokens.shape[1]]))[0]
    expected = np.asarray(hidden, np.float64) @ np.asarray(critic.score.kernel[...], np.float64)
    np.testing.assert_allclose(values[row, :n], expected[len(prompt) - 1 : -1, 0], atol=2e-5)
    assert (values[row, n:] == 0).all()


def test_the_value_term_is_the_clipped_squared_error_over_the_tokens_of_the_step():
  batch, config = random_batch(1), ppo.CriticConfig(vf_coef=0.7, clip=0.3)
  values = np.random.default_rng(5).normal(size=batch.loss_mask.shape).astype(np.float32)
  logprobs = np.full_like(values, -1.0)
  terms, metrics = ppo.loss(
    TokenStatistics(logprobs, logprobs, logprobs > 0, values),
    batch,
    objective=ObjectiveConfig(),
    config=config,
    max_new_tokens=9,
  )
  total = count = clipped = 0.0
  for b, t in zip(*np.nonzero(batch.loss_mask)):
    v, old, target = (float(x[b, t]) for x in (values, batch.old_values, batch.returns))
    near = min(max(v, old - 0.3), old + 0.3)
    total += max((v - target) ** 2, (near - target) ** 2) / 2
    clipped += (near - target) ** 2 > (v - target) ** 2
    count += 1
  assert terms['value'].coefficient == 0.7 and set(terms) == {'policy', 'value'}
  np.testing.assert_allclose(terms['value'].sum, (total, count), rtol=1e-5)
  np.testing.assert_allclose(metrics['critic/clip_ratio'], (clipped, count))


@pytest.mark.full
@pytest.mark.parametrize(
  'kind, trained', [('separate', {'critic'}), ('head', {'critic', 'policy'})]
)
def test_the_value_loss_trains_the_policy_through_a_head_and_not_in_a_warm_up(kind, trained):
  policy, mesh = models.make(DECODER, seed=1), sharding.make_mesh(devices=jax.devices()[:1])
  batch = random_batch()._replace(advantages=np.zeros((12, 9), np.float32))
  tx = {name: optax.sgd(0.1) for name in ('policy', 'critic')}
  loss = lambda statistics, batch: ppo.loss(
    statistics, batch, objective=ObjectiveConfig(), config=ppo.CriticConfig(), max_new_tokens=9
  )
  update = updates.make_update(
    loss, tx, config=UpdateConfig(microbatch_tokens=80), temperature=1.0, mesh=mesh
  )
  for names, expected in ((('policy', 'critic'), trained), (('critic',), {'critic'})):
    copy = lambda tree: jax.tree.map(jnp.copy, tree)
    state = TrainState(0, copy(policy), None, make_critic(policy, kind))
    before = copy({'policy': state.policy, 'critic': state.critic})
    state = state._replace(optimizer={name: tx[name].init(before[name]) for name in tx})
    state, metrics = update(state, batch, names)
    for name, model in (('policy', state.policy), ('critic', state.critic)):
      pairs = zip(jax.tree.leaves(before[name]), jax.tree.leaves(model))
      unchanged = all((old == new).all() for old, new in pairs)
      assert unchanged == (name not in expected)
    assert ('grad_norm' in metrics) == ('policy' in names) and metrics['critic/grad_norm'] > 0
    first = metrics['loss/value']
    for _ in range(3):
      state, metrics = update(state, batch, names)
    assert metrics['loss/value'] < first


def ppo_config(tmp_path, **objective):
  config = tiny.config(tmp_path)
  config.stages = (Stage(algorithm='ppo', steps=6, optim=OptimConfig(learning_rate=1e-2)),)
  config.critic.optim.learning_rate = 1e-2
  config.evaluate.every, config.checkpoints.every = 0, 2
  for name, value in objective.items():
    setattr(config.objective, name, value)
  return config


@pytest.mark.full
def test_a_run_continues_bit_for_bit(tmp_path):
  """With a critic and its warm-up, an adaptive KL in the reward, and a renewed reference."""
  config = ppo_config(
    tmp_path, kl_coef=0.05, kl_place='reward', kl_target=0.5, kl_horizon=100, reference_every=2
  )
  config.critic.warmup_steps, config.update.updates_per_batch = 1, 2
  rft_jax.train(config, tmp_path / 'whole', quiet=True)
  for stop in (3, 4):
    rft_jax.train(config, tmp_path / 'parts', quiet=True, stop_at_step=stop)
  rft_jax.train(config, tmp_path / 'parts', quiet=True)
  assert_same_runs(tmp_path / 'whole', tmp_path / 'parts', 6)
  arrays = checkpoint_arrays(tmp_path / 'whole', 6)
  assert any(name.startswith('critic/decoder/') for name in arrays)
  assert any(name.startswith('optimizer/critic/') for name in arrays)
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


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda c: setattr(c.critic, 'kind', 'shared'), "critic.kind='shared', need one of"),
    (lambda c: setattr(c.critic, 'gae_lambda', 2), 'critic.gae_lambda=2'),
    (lambda c: setattr(c.objective, 'kl_place', 'token'), "objective.kl_place='token'"),
    (lambda c: setattr(c.objective, 'kl_target', 1.0), 'KL in the reward'),
    (lambda c: setattr(c.objective, 'reference_every', 5), 'no reference to renew'),
    (
      lambda c: setattr(c.objective.policy_loss, 'ratio_level', 'reasoning_step'),
      'split into steps',
    ),
  ],
)
def test_invalid_settings_are_refused_with_the_reason(tmp_path, change, message):
  config = ppo_config(tmp_path)
  change(config)
  assert any(message in problem for problem in config.problems())


# ------------------------------------------------------------------ transitions of several tokens


def gae_over_steps(rewards, values, ends, discount, lam):
  """Returns (advantages, returns) of each token of one row, from a loop over its steps."""
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
  loss_mask = (np.arange(9) < np.array(lengths)[:, None]).astype(np.float32)
  rewards, values = (rng.normal(size=loss_mask.shape).astype(np.float32) for _ in range(2))
  estimate = ppo.estimate_advantages(rewards, values, loss_mask, ends, discount=0.9, gae_lambda=0.8)
  for b, n in enumerate(lengths):
    expected = gae_over_steps(rewards[b].astype(float), values[b].astype(float), ends[b], 0.9, 0.8)
    np.testing.assert_allclose(estimate.advantages[b, :n], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(estimate.returns[b, :n], expected[1], rtol=1e-5, atol=1e-6)
    assert (estimate.advantages[b, n:] == 0).all() and (estimate.returns[b, n:] == 0).all()


def test_transitions_of_one_token_have_the_advantages_of_tokens():
  rng = np.random.default_rng(1)
  loss_mask = (np.arange(6) < np.array([6, 3])[:, None]).astype(np.float32)
  rewards, values = (rng.normal(size=loss_mask.shape).astype(np.float32) for _ in range(2))
  settings = dict(discount=0.95, gae_lambda=0.7)
  by_token = ppo.estimate_advantages(rewards, values, loss_mask, None, **settings)
  ends = [list(range(6)), [0, 1, 2]]
  by_step = ppo.estimate_advantages(rewards, values, loss_mask, ends, **settings)
  for token_values, step_values in zip(by_token, by_step):
    np.testing.assert_allclose(token_values, step_values, rtol=1e-5, atol=1e-6)


STEP = {
  'type': 'python',
  'name': 'short',
  'source': 'def grade(sample, item):\n  return 1 / (1 + len(item["reasoning_step"]["text"]))\n',
}


@pytest.mark.full
@pytest.mark.parametrize(
  'level, source',
  [('response', 'prefix'), ('reasoning_step', 'process'), ('reasoning_step', 'prefix')],
)
def test_a_run_with_credit_by_reasoning_steps_or_responses(tmp_path, level, source):
  config = ppo_config(tmp_path)
  config.stages[0].steps = 2
  config.credit.level, config.credit.source = level, source
  config.credit.step_boundary, config.credit.delimiter = 'delimiter', '1'
  config.credit.grader = STEP if source == 'process' else ''
  if level == 'reasoning_step':
    config.objective.policy_loss.ratio_level = 'reasoning_step'
    config.update.updates_per_batch = 2
  rft_jax.train(config, tmp_path / 'run', quiet=True)
  rows = metrics_file.read(tmp_path / 'run' / 'metrics.jsonl')
  assert all(row['grad_norm'] > 0 and row['critic/grad_norm'] > 0 for row in rows)
  if level == 'reasoning_step':
    assert rows[0]['credit/reasoning_steps_mean'] > 1
  if source == 'prefix':  # the rewards of the steps sum to the final grade
    np.testing.assert_allclose(rows[0]['critic/return_mean'] > 0, rows[0]['reward'] > 0)
