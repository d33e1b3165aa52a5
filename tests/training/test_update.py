"""The update: its gradient does not depend on microbatches, order, padding or mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rft_jax import sharding
from rft_jax.algorithms import sft
from rft_jax.data import batching
from rft_jax.objectives.masked import AGGREGATIONS
from rft_jax.objectives.off_policy import CorrectionConfig
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.run import compilation
from rft_jax.training import optim, scoring
from rft_jax.training import update as updates
from rft_jax.training.update import UpdateConfig
from rft_jax.types import TrainState

G = 3  # completions of each prompt of the batch


def grpo_loss(**changes):
  return functools.partial(
    policy_objective, config=ObjectiveConfig(kl_coef=0.1, **changes), max_new_tokens=20
  )


def sgd_gradient(model, batch, *, loss, mesh=None, skip_zero_advantages=False, **settings):
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


def assert_close(result, expected, tolerance=2e-5):
  """Compares (gradient, metrics) of two updates."""
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[0]))
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(result[0]), jax.tree.leaves(expected[0])
  ):
    np.testing.assert_allclose(a, b, atol=tolerance * scale, err_msg=sharding.name_of(path))
  for name in set(expected[1]) - {'token_efficiency'}:
    np.testing.assert_allclose(
      result[1][name], expected[1][name], rtol=1e-4, atol=1e-5, err_msg=name
    )


def plain_objective(model, batch, separate_rows, cap):
  """Returns the GRPO objective written plainly, over rows of prompt and completion."""
  ids, lengths, starts = separate_rows
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


@pytest.mark.full
@pytest.mark.parametrize('cap', [0.0, 1.1])
def test_the_update_follows_the_gradient_of_the_plainly_written_objective(
  model, batch, separate_rows, cap
):
  correction = (
    CorrectionConfig(correction='tis', cap=cap) if cap else CorrectionConfig(correction='none')
  )
  value, gradient = jax.jit(
    jax.value_and_grad(lambda m: plain_objective(m, batch, separate_rows, cap))
  )(model)
  result, metrics = sgd_gradient(model, batch, loss=grpo_loss(correction=correction))
  np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
  assert_close((result, {}), (gradient, {}))


@pytest.mark.full
@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_splitting_a_batch_does_not_change_loss_or_gradient(model, batch, aggregation):
  whole = sgd_gradient(model, batch, loss=grpo_loss(aggregation=aggregation))
  for tokens in (1, 200):
    in_parts = sgd_gradient(
      model, batch, loss=grpo_loss(aggregation=aggregation), microbatch_tokens=tokens
    )
    assert_close(in_parts, whole)


def test_row_order_and_padding_do_not_change_loss_or_gradient(model, batch):
  whole = sgd_gradient(model, batch, loss=grpo_loss())
  shuffled = batching.select(batch, np.random.default_rng(0).permutation(8))
  wide = shuffled._replace(
    prompts=np.pad(shuffled.prompts, [(0, 0), (0, 30)], constant_values=9),
    **{
      name: np.pad(getattr(shuffled, name), [(0, 0), (0, 40)])
      for name in (
        'completions',
        'loss_mask',
        'advantages',
        'old_logprobs',
        'reference_logprobs',
        'sampler_logprobs',
      )
    },
  )
  assert_close(sgd_gradient(model, wide, loss=grpo_loss()), whole)


@pytest.mark.full
@pytest.mark.parametrize('axes', [(8, 1, 1), (2, 2, 2), (1, 4, 2)])
def test_eight_devices_match_one(model, batch, axes):
  expected = sgd_gradient(model, batch, loss=grpo_loss(), microbatch_tokens=300)
  eight = sgd_gradient(
    model, batch, loss=grpo_loss(), mesh=sharding.make_mesh(*axes), microbatch_tokens=300
  )
  assert_close(eight, expected)


@pytest.mark.full
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_rematerialisation_does_not_change_the_gradient(model, batch, remat):
  assert_close(
    sgd_gradient(model, batch, loss=grpo_loss(), remat=remat),
    sgd_gradient(model, batch, loss=grpo_loss(), remat='none'),
  )


def test_the_supervised_loss_is_the_mean_over_target_tokens(model, batch):
  supervised = batch._replace(
    advantages=None, old_logprobs=None, reference_logprobs=None, sampler_logprobs=None
  )
  _, metrics = sgd_gradient(model, supervised, loss=sft.loss)
  scores = scoring.score_batch(
    model,
    supervised,
    UpdateConfig(),
    temperature=jnp.float32(0.8),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]),
  ).logprobs
  np.testing.assert_allclose(metrics['loss'], -scores.sum() / batch.loss_mask.sum(), rtol=1e-5)


@pytest.mark.full
def test_a_zero_variance_group_keeps_its_tokens_in_the_denominator(model, batch):
  advantages = batch.advantages.copy()
  advantages[:G] = 0
  loss = functools.partial(policy_objective, config=ObjectiveConfig(), max_new_tokens=20)
  with_zeros, _ = sgd_gradient(model, batch._replace(advantages=advantages), loss=loss)
  without_group, _ = sgd_gradient(model, batching.select(batch, np.arange(1, 8)), loss=loss)
  share = batch.loss_mask[G:].sum() / batch.loss_mask.sum()
  assert_close((with_zeros, {}), (jax.tree.map(lambda x: share * x, without_group), {}))


@pytest.mark.full
def test_skipping_zero_advantages_changes_nothing(model, batch):
  advantages = batch.advantages.copy()
  advantages[: 2 * G] = advantages[5 * G : 6 * G] = 0
  loss = functools.partial(policy_objective, config=ObjectiveConfig(), max_new_tokens=20)
  with_zeros = batch._replace(advantages=advantages)
  skipped, metrics = sgd_gradient(model, with_zeros, loss=loss, skip_zero_advantages=True)
  whole, _ = sgd_gradient(model, with_zeros, loss=loss)
  assert_close((skipped, {}), (whole, {}))
  all_zero, _ = sgd_gradient(
    model, batch._replace(advantages=0 * advantages), loss=loss, skip_zero_advantages=True
  )
  assert not any(x.any() for x in jax.tree.leaves(all_zero)) and np.isfinite(metrics['loss'])


@pytest.mark.full
def test_without_old_logprobs_those_of_the_policy_are_used(model, batch):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  own = scoring.score_batch(
    model, batch, UpdateConfig(), temperature=jnp.float32(0.8), mesh=mesh
  ).logprobs
  expected = sgd_gradient(model, batch._replace(old_logprobs=own), loss=grpo_loss())
  result = sgd_gradient(model, batch._replace(old_logprobs=None), loss=grpo_loss())
  assert_close(result, expected, tolerance=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(model, batch):
  advantages = batch.advantages.copy()
  advantages[0, 0] = np.inf
  gradient, metrics = sgd_gradient(
    model, batch._replace(advantages=advantages, old_logprobs=None), loss=grpo_loss()
  )
  assert metrics['skipped_nonfinite'] == 1
  assert all((x == 0).all() for x in jax.tree.leaves(gradient))


@pytest.mark.full
def test_update_compiles_once_for_batches_of_one_shape(model, batch):
  mesh = sharding.make_mesh(2, 2, 2)
  tx = optim.make(optim.OptimConfig(learning_rate=1e-3, warmup_steps=2), steps=4)
  update = updates.make_update(
    grpo_loss(), {'policy': tx}, config=UpdateConfig(), temperature=1.0, mesh=mesh
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
