"""The update: one batch gives one gradient, however it is cut, ordered, padded or spread."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rft_jax
from rft_jax import models, sharding
from rft_jax.algorithms import sft
from rft_jax.data import batching
from rft_jax.objectives import masked
from rft_jax.objectives.masked import AGGREGATIONS
from rft_jax.objectives.off_policy import CorrectionConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.run import compilation
from rft_jax.training import optim, scoring
from rft_jax.training import update as updates
from rft_jax.training.update import UpdateConfig
from rft_jax.types import Batch, TrainState

G = 3


@pytest.fixture(scope='module')
def model():
  config = models.DecoderConfig(
    vocab_size=48,
    dim=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    qkv_bias=True,
    tied_head=False,
    valid_vocab=44,
  )
  return jax.tree.map(lambda x: 3.0 * x, models.make(config, seed=1))


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(2)
  P, B, S, T = 8, 8 * G, 11, 17
  lengths = rng.integers(1, T + 1, B).astype(np.int32)
  weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
  noise = lambda scale: (scale * rng.normal(size=(B, T)) * weights).astype(np.float32)
  return Batch(
    rng.integers(0, 44, (P, S)).astype(np.int32),
    rng.integers(1, S + 1, P).astype(np.int32),
    rng.integers(0, 44, (B, T)).astype(np.int32),
    lengths,
    np.repeat(np.arange(P), G).astype(np.int32),
    weights,
    advantages=noise(1.0),
    old_logprobs=noise(0.3) - 3.8,
    reference_logprobs=noise(0.3) - 3.8,
    sampler_logprobs=noise(0.1) - 3.8,
    group_tokens=masked.tokens_of_groups(weights, np.repeat(np.arange(P), G)),
  )


def _loss(**changes):
  return functools.partial(
    policy_objective, config=ObjectiveConfig(kl_coef=0.1, **changes), max_new_tokens=20
  )


def _gradient(model, batch, *, loss, mesh=None, skip_zero_advantages=False, **settings):
  """Returns (minus the change of the weights at learning rate 1, metrics) of one update."""
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
  tx = optax.sgd(1.0)
  update = updates.make_update(
    loss,
    {'policy': tx},
    config=UpdateConfig(**settings),
    temperature=0.8,
    mesh=mesh,
    skip_zero_advantages=skip_zero_advantages,
  )
  place = lambda tree: jax.device_put(
    jax.tree.map(jnp.copy, tree), sharding.shardings_for(tree, mesh)
  )
  state, metrics = update(TrainState(0, place(model), {'policy': tx.init(model)}), batch)
  return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), model, state.policy), metrics


def _assert_close(found, expected, tolerance=2e-5):
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[0]))
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(found[0]), jax.tree.leaves(expected[0])
  ):
    np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=sharding.name_of(path))
  for name in set(expected[1]) - {'token_efficiency'}:
    np.testing.assert_allclose(
      found[1][name], expected[1][name], rtol=1e-4, atol=1e-5, err_msg=name
    )


def _separate_rows(batch):
  """Each prompt written out before each of its completions: ids [B, S + T], lengths, offsets."""
  starts = batch.prompt_lengths[batch.group]
  ids = np.zeros((len(starts), batch.prompts.shape[1] + batch.completions.shape[1]), np.int32)
  for row, (m, n) in enumerate(zip(starts, batch.completion_lengths)):
    ids[row, :m] = batch.prompts[batch.group[row], :m]
    ids[row, m : m + n] = batch.completions[row, :n]
  return ids, starts + batch.completion_lengths, starts


def _plain_objective(model, batch, cap):
  """The GRPO objective written plainly, each row's prompt and completion apart."""
  ids, lengths, starts = _separate_rows(batch)
  table = jax.nn.log_softmax(model(ids, lengths=lengths)[..., :44] / 0.8)
  rows, columns = np.nonzero(batch.loss_mask)
  places = starts[rows] + columns
  logprobs = table[rows, places - 1, ids[rows, places]]
  ratio = jnp.exp(logprobs - batch.old_logprobs[rows, columns])
  A = batch.advantages[rows, columns]
  policy = -jnp.minimum(ratio * A, jnp.clip(ratio, 1 - 0.2, 1 + 0.28) * A)
  q = np.exp(batch.old_logprobs - batch.sampler_logprobs)[rows, columns]
  if cap:
    policy *= np.minimum(q, cap)
  x = batch.reference_logprobs[rows, columns] - logprobs
  return policy.mean() + 0.1 * (jnp.exp(x) - x - 1).mean()


@pytest.mark.parametrize('cap', [0.0, 1.1])
def test_the_update_follows_the_gradient_of_the_plainly_written_objective(model, batch, cap):
  correction = (
    CorrectionConfig(correction='tis', cap=cap) if cap else CorrectionConfig(correction='none')
  )
  value, gradient = jax.jit(jax.value_and_grad(lambda m: _plain_objective(m, batch, cap)))(model)
  found, metrics = _gradient(model, batch, loss=_loss(correction=correction))
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
  _assert_close((found, {}), (gradient, {}))


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_splitting_a_batch_does_not_change_loss_or_gradient(model, batch, aggregation):
  whole = _gradient(model, batch, loss=_loss(aggregation=aggregation))
  for tokens in (1, 200):
    cut = _gradient(model, batch, loss=_loss(aggregation=aggregation), microbatch_tokens=tokens)
    _assert_close(cut, whole)


def test_row_order_and_padding_do_not_change_loss_or_gradient(model, batch):
  whole = _gradient(model, batch, loss=_loss())
  shuffled = batching.select(batch, np.random.default_rng(0).permutation(8))
  wide = shuffled._replace(
    prompts=np.pad(shuffled.prompts, [(0, 0), (0, 30)], constant_values=9),
    **{
      name: np.pad(getattr(shuffled, name), [(0, 0), (0, 40)])
      for name in (
        'completions',
        'weights',
        'advantages',
        'old_logprobs',
        'reference_logprobs',
        'sampler_logprobs',
      )
    },
  )
  _assert_close(_gradient(model, wide, loss=_loss()), whole)


@pytest.mark.parametrize('axes', [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_eight_devices_match_one(model, batch, axes):
  one = _gradient(model, batch, loss=_loss(), microbatch_tokens=300)
  eight = _gradient(
    model, batch, loss=_loss(), mesh=sharding.make_mesh(*axes), microbatch_tokens=300
  )
  _assert_close(eight, one)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_rematerialisation_does_not_change_the_gradient(model, batch, remat):
  _assert_close(
    _gradient(model, batch, loss=_loss(), remat=remat),
    _gradient(model, batch, loss=_loss(), remat='none'),
  )


def test_supervised_loss_is_the_mean_over_target_tokens(model, batch):
  plain = batch._replace(
    advantages=None, old_logprobs=None, reference_logprobs=None, sampler_logprobs=None
  )
  _, metrics = _gradient(model, plain, loss=sft.loss)
  scores = scoring.score_batch(
    model,
    plain,
    UpdateConfig(),
    temperature=jnp.float32(0.8),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
  ).logprobs
  np.testing.assert_allclose(metrics['loss'], -scores.sum() / batch.loss_mask.sum(), rtol=1e-5)


def test_a_zero_variance_group_keeps_its_tokens_in_the_denominator(model, batch):
  advantages = batch.advantages.copy()
  advantages[:G] = 0
  loss = functools.partial(policy_objective, config=ObjectiveConfig(), max_new_tokens=20)
  kept, _ = _gradient(model, batch._replace(advantages=advantages), loss=loss)
  dropped, _ = _gradient(model, batching.select(batch, np.arange(1, 8)), loss=loss)
  share = batch.loss_mask[G:].sum() / batch.loss_mask.sum()
  _assert_close((kept, {}), (jax.tree.map(lambda x: share * x, dropped), {}))


def test_groups_without_advantage_are_left_out_and_counted(model, batch):
  advantages = batch.advantages.copy()
  advantages[: 2 * G] = advantages[5 * G : 6 * G] = 0
  loss = functools.partial(policy_objective, config=ObjectiveConfig(), max_new_tokens=20)
  given = batch._replace(advantages=advantages)
  skipped, metrics = _gradient(model, given, loss=loss, skip_zero_advantages=True)
  whole, _ = _gradient(model, given, loss=loss)
  _assert_close((skipped, {}), (whole, {}))
  none, _ = _gradient(
    model, batch._replace(advantages=0 * advantages), loss=loss, skip_zero_advantages=True
  )
  assert not any(x.any() for x in jax.tree.leaves(none)) and np.isfinite(metrics['loss'])


def test_old_logprobs_left_out_are_those_of_the_policy_itself(model, batch):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  own = scoring.score_batch(
    model, batch, UpdateConfig(), temperature=jnp.float32(0.8), mesh=mesh
  ).logprobs
  given = _gradient(model, batch._replace(old_logprobs=own), loss=_loss())
  excluded_rows = _gradient(model, batch._replace(old_logprobs=None), loss=_loss())
  _assert_close(excluded_rows, given, tolerance=1e-4)


def test_score_batch_matches_score(model, batch):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  found = scoring.score_batch(
    model, batch, UpdateConfig(microbatch_tokens=200), temperature=jnp.float32(0.8), mesh=mesh
  ).logprobs
  ids, lengths, starts = _separate_rows(batch)
  expected = np.asarray(rft_jax.score(model, ids, lengths, 0.8))
  for row, (start, n) in enumerate(zip(starts, batch.completion_lengths)):
    np.testing.assert_allclose(found[row, :n], expected[row, start - 1 : start - 1 + n], atol=1e-5)
    assert (found[row, n:] == 0).all()


def test_score_refuses_what_does_not_fit(model):
  with pytest.raises(ValueError, match='lengths 0..2'):
    rft_jax.score(model, [[1, 2], [3, 4]], [0, 2])
  with pytest.raises(ValueError, match='ids 1..99'):
    rft_jax.score(model, [[1, 99]], [2])


def test_a_gradient_that_is_not_finite_changes_nothing(model, batch):
  advantages = batch.advantages.copy()
  advantages[0, 0] = np.inf
  gradient, metrics = _gradient(
    model, batch._replace(advantages=advantages, old_logprobs=None), loss=_loss()
  )
  assert metrics['skipped_nonfinite'] == 1
  assert all((x == 0).all() for x in jax.tree.leaves(gradient))


def test_update_compiles_once_for_batches_of_one_shape(model, batch):
  mesh = sharding.make_mesh(2, 2, 2)
  tx = optim.make(optim.OptimConfig(learning_rate=1e-3, warmup_steps=2), steps=4)
  update = updates.make_update(
    _loss(), {'policy': tx}, config=UpdateConfig(), temperature=1.0, mesh=mesh
  )
  state = TrainState(
    0, jax.device_put(jax.tree.map(jnp.copy, model), sharding.shardings_for(model, mesh)), None
  )
  state = state._replace(optimizer={'policy': sharding.place(tx.init, mesh, state.policy)})
  state, _ = update(state, batch)
  compiled = compilation.count()
  for _ in range(2):
    state, metrics = update(state, batch)
  assert compilation.count() == compiled
  assert np.isfinite(metrics['grad_norm'])


def test_global_norm_clip_and_schedule():
  config = optim.OptimConfig(
    optimizer='sgd', learning_rate=0.5, schedule='linear', warmup_steps=1, clip_norm=1.0
  )
  tx = optim.make(config, steps=3)
  params = {'a': jnp.zeros(2), 'b': jnp.zeros(1)}
  state = tx.init(params)
  steps = []
  for _ in range(3):
    change, state = tx.update({'a': jnp.array([0.0, 8.0]), 'b': jnp.array([6.0])}, state, params)
    steps.append(-float(change['a'][1]))
  # norm 10 is clipped to 1, so 8 counts 0.8; rates: half of the peak, the peak, half way to 0
  np.testing.assert_allclose(steps, [0.8 * 0.25, 0.8 * 0.5, 0.8 * 0.25], rtol=1e-6)


def test_decay_is_on_matrices_alone(model):
  decayed = {
    sharding.name_of(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(optim.decayed(model))
  }
  assert decayed['embed'] and decayed['blocks/mlp/up/kernel'] and decayed['head/kernel']
  assert not decayed['blocks/attention/q/bias'] and not decayed['final_norm/scale']


def test_sums_over_microbatches_divide_once():
  parts = [masked.Weighted(2.0, 1.0), masked.Weighted(1.0, 3.0)]
  added = jax.tree.map(lambda *x: sum(x), *parts)
  assert masked.means({'x': added})['x'] == 0.75  # not the mean of means, 1.1667
