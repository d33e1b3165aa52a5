"""The decoder against itself: shared prompts, padding, remat, precision, and making one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoders import (
  LLAMA3,
  RICH,
  TINY,
  V,
  assert_close,
  assert_trees_close,
  call,
  completion_hidden,
  concatenated,
  count_traces,
  full_forward_states,
  make,
  ragged,
  with_config,
)

from rft_jax import models
from rft_jax.models import rotary
from rft_jax.sharding import name_of


# --- prompts computed once ------------------------------------------------------------------------
@pytest.mark.parametrize(
  'config, G', [(TINY, 3), (RICH, 1), (RICH, 3)], ids=['tiny-3', 'rich-1', 'rich-3']
)
def test_completion_hidden_equals_full_forward_in_value_and_gradient(config, G):
  model, batch = make(config), ragged(G=G)
  real = np.arange(batch[2].shape[1]) < batch[3][:, None]
  weights = jax.random.normal(jax.random.key(5), (*real.shape, V)) * real[..., None]

  def evaluate(states):
    def loss(model):
      hidden = states(model)
      return (weights * jax.nn.log_softmax(model.logits(hidden))).sum(), hidden

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(model)

  (_, shared), shared_gradient = evaluate(lambda m: m.completion_hidden(*batch[:3]))
  (_, full), full_gradient = evaluate(lambda m: full_forward_states(m, batch))
  assert_close(np.array(shared)[real], np.array(full)[real])
  assert_trees_close(shared_gradient, full_gradient)


def test_completions_packed_in_one_row_equal_separate_rows():
  model, (prompts, n, completions, lengths) = make(RICH), ragged(G=3)
  apart = np.array(jax.jit(lambda m: m.completion_hidden(prompts, n, completions))(model))
  P, T = len(n), completions.shape[1]
  W = 3 * T
  packed, segment_starts = np.zeros((P, W), int), np.broadcast_to(np.arange(W), (P, W)).copy()
  places = {}  # row -> (packed row, first column)
  for p in range(P):
    column = 0
    for b in range(3 * p, 3 * p + 3):
      packed[p, column : column + lengths[b]] = completions[b, : lengths[b]]
      segment_starts[p, column : column + lengths[b]] = column
      places[b] = p, column
      column += lengths[b]
  together = np.array(
    jax.jit(lambda m: m.completion_hidden(prompts, n, packed, segment_starts))(model)
  )
  for b, (p, column) in places.items():
    assert_close(together[p, column : column + lengths[b]], apart[b, : lengths[b]])


def test_a_completion_does_not_attend_to_its_siblings_or_other_prompts():
  model, (prompts, n, completions, _) = make(TINY), ragged(G=3)
  forward = jax.jit(lambda p, c: model.completion_hidden(p, n, c))
  before = np.array(forward(prompts, completions))
  other = completions.copy()
  other[4] = (other[4] + 1) % V
  changed = np.abs(forward(prompts, other) - before).max(axis=(1, 2)) > 0
  assert changed.tolist() == [b == 4 for b in range(9)]
  other = prompts.copy()
  other[2, 0] = (other[2, 0] + 1) % V
  changed = np.abs(forward(other, completions) - before).max(axis=(1, 2)) > 0
  assert changed.tolist() == [b >= 6 for b in range(9)]


def test_completions_that_are_no_multiple_of_the_prompts_are_an_error():
  model = make(TINY)
  with pytest.raises(ValueError, match='7 completions of 3 prompts'):
    model.completion_hidden(jnp.zeros((3, 4), int), jnp.ones(3, int), jnp.zeros((7, 2), int))


# --- padding --------------------------------------------------------------------------------------
def test_padding_changes_nothing():
  model, (prompts, n, completions, lengths) = make(RICH), ragged()
  real = np.arange(completions.shape[1]) < lengths[:, None]
  short = completion_hidden(model, prompts, n, completions)[real]
  wide = completion_hidden(
    model,
    np.pad(prompts, [(0, 0), (0, 5)], constant_values=3),
    n,
    np.pad(completions, [(0, 0), (0, 4)], constant_values=7),
  )
  assert_close(wide[:, :6][real], short)
  garbage = np.where(real, completions, -100)  # out of range, on padding alone
  np.testing.assert_array_equal(completion_hidden(model, prompts, n, garbage)[real], short)

  rows, row_lengths, _ = concatenated(prompts, n, completions, lengths)
  real = np.arange(rows.shape[1]) < row_lengths[:, None]
  garbage = np.pad(np.where(real, rows, 10**6), [(0, 0), (0, 3)])
  assert_close(
    call(model, garbage, row_lengths)[:, :-3][real], call(model, rows, row_lengths)[real]
  )


def test_empty_rows_have_finite_values_and_gradients():
  model, (prompts, _, completions, _) = make(RICH), ragged()
  n = np.array([0, 1, 0], np.int32)

  def loss(model):
    hidden = model.completion_hidden(prompts, n, completions)
    plain = model(prompts, lengths=n)
    return (hidden**2).sum() + (plain**2).sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(model)
  assert np.isfinite(value) and value > 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


# --- equivalences of execution --------------------------------------------------------------------
@pytest.mark.full
@pytest.mark.parametrize('remat', sorted(set(models.REMAT) - {'none'}))
def test_remat_gives_the_same_gradients(remat):
  model, batch = make(TINY), ragged()

  def gradient(remat):
    def loss(model):
      alone = model.hidden(batch[0], lengths=batch[1], remat=remat)
      hidden = model.completion_hidden(*batch[:3], remat=remat)
      return (model.logits(hidden) ** 2).sum() + (model.logits(alone) ** 2).sum()

    return jax.jit(jax.grad(loss))(model)

  assert_trees_close(gradient(remat), gradient('none'))


def test_scan_equals_a_loop_over_layers():
  model, (prompts, n, _, _) = make(RICH), ragged()

  @jax.jit
  def loop(model):
    rope = rotary.table(jnp.arange(7)[None], rotary.frequencies(8, RICH.rope_theta, LLAMA3))
    x = model.embed[...][prompts]
    for layer in range(RICH.layers):
      block = jax.tree.map(lambda leaf: leaf[layer], model.blocks)
      x, _ = block(x, rope)
    return model.final_norm(x)

  scanned = jax.jit(lambda m: m.hidden(prompts, lengths=n))(model)
  assert_close(scanned, loop(model), tolerance=2e-6)


@pytest.mark.full
def test_the_update_of_a_donated_model_traces_once():
  model, batch = make(TINY), ragged()
  step, traces = count_traces(
    lambda m: jax.tree.map(
      lambda w, g: w - 0.01 * g,
      m,
      jax.grad(lambda m: (m.completion_hidden(*batch[:3]) ** 2).sum())(m),
    ),
    donate_argnums=0,
  )
  model = step(step(model))
  assert traces() == 1 and isinstance(model, models.Decoder)


# --- precision ------------------------------------------------------------------------------------
@pytest.mark.full
def test_bfloat16_compute_keeps_float32_weights_and_gradients():
  exact, batch = make(TINY), ragged()
  config = dataclasses.replace(TINY, dtype='bfloat16')
  model = with_config(exact, config)

  def loss(model):
    hidden = model.completion_hidden(*batch[:3])
    logits = model.logits(hidden)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    return logits.max(-1).sum(), hidden

  gradient, hidden = jax.jit(jax.grad(loss, has_aux=True))(model)
  assert {x.dtype for x in jax.tree.leaves((model, gradient))} == {jnp.dtype('float32')}
  full = completion_hidden(exact, *batch[:3])
  difference = np.abs(np.array(hidden, np.float32) - full)
  # bfloat16 has 8 bits: a few roundings a layer, a few percent of the spread after two layers
  assert 0 < difference.mean() < 0.03 * full.std()


# --- settings -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
  'change',
  [dict(rope_scaling=LLAMA3), dict(rope_theta=100.0), dict(norm_epsilon=0.1)],
  ids=['scaling', 'theta', 'epsilon'],
)
def test_each_setting_reaches_the_logits(change):
  tokens, lengths = ragged()[0], np.full(3, 7, np.int32)
  model = make(TINY)
  other = with_config(model, dataclasses.replace(TINY, **change))
  assert np.abs(call(model, tokens, lengths) - call(other, tokens, lengths)).max() > 0.01


# --- making ---------------------------------------------------------------------------------------
def test_make_gives_the_stated_distribution_and_depends_on_the_seed():
  config = dataclasses.replace(RICH, dim=128, mlp_dim=256)
  model, twin, other = models.make(config, 0), models.make(config, 0), models.make(config, 1)
  leaves = {name_of(p): np.array(x) for p, x in jax.tree_util.tree_leaves_with_path(model)}
  assert {n for n in leaves if not leaves[n].any()} == {n for n in leaves if n.endswith('bias')}
  assert all((x == 1).all() for n, x in leaves.items() if n.endswith('scale'))
  for name in ('embed', 'blocks/attention/q/kernel', 'blocks/mlp/up/kernel', 'head/kernel'):
    assert abs(leaves[name].std() / 0.02 - 1) < 0.05, name
  for name in ('blocks/attention/o/kernel', 'blocks/mlp/down/kernel'):
    assert abs(leaves[name].std() / 0.01 - 1) < 0.05, name  # 0.02 / sqrt(2 x 2 layers)
  assert np.abs(leaves['blocks/mlp/up/kernel'][0] - leaves['blocks/mlp/up/kernel'][1]).max() > 0
  jax.tree.map(np.testing.assert_array_equal, model, twin)
  assert (other.embed[...] != model.embed[...]).mean() > 0.99


def test_make_names_every_problem_of_a_config():
  config = dataclasses.replace(TINY, kv_heads=3, head_dim=7, dtype='float16')
  with pytest.raises(ValueError) as caught:
    models.make(config, 0)
  for field in ('kv_heads=3', 'head_dim=7', "dtype='float16'"):
    assert field in str(caught.value)


def test_tied_logits_use_the_embedding_and_untied_ones_the_head():
  hidden = jax.random.normal(jax.random.key(0), (2, 32))
  tied, untied = make(TINY), make(RICH)
  np.testing.assert_allclose(tied.logits(hidden), hidden @ tied.embed[...].T, atol=1e-5)
  np.testing.assert_allclose(untied.logits(hidden), hidden @ untied.head.kernel[...], atol=1e-5)
  assert tied.head().shape == untied.head().shape == (32, V)
