"""The decoder against itself: cache, shared prompts, padding, remat, precision, rope."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax import models
from rft_jax.models import decoding, rotary
from rft_jax.sharding import name_of

V = 61
LLAMA3 = models.Llama3Rope(
  factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16
)
TINY = models.DecoderConfig(
  vocab_size=V,
  dim=32,
  layers=2,
  heads=4,
  kv_heads=2,
  head_dim=8,
  mlp_dim=48,
  max_positions=128,
  tied_head=True,
)
RICH = dataclasses.replace(
  TINY,
  qkv_bias=True,
  output_bias=True,
  mlp_bias=True,
  qk_norm=True,
  tied_head=False,
  rope_scaling=LLAMA3,
)


def make(config, seed=0):
  """A model in which every leaf matters: no norm is 1, no bias 0, no attention nearly uniform."""

  def stir(path, x):
    key = jax.random.fold_in(jax.random.key(seed + 1), zlib.crc32(name_of(path).encode()))
    noise = 0.2 * jax.random.normal(key, x.shape)
    return 6 * x if name_of(path).endswith(('kernel', 'embed')) else x + noise

  return jax.jit(lambda m: jax.tree_util.tree_map_with_path(stir, m))(models.make(config, seed))


def with_config(model, config):
  """The weights of model under another config."""
  return jax.tree.unflatten(jax.tree.structure(models.abstract(config)), jax.tree.leaves(model))


def call(model, tokens, lengths):
  return np.array(jax.jit(lambda m, *xs: m(xs[0], lengths=xs[1]))(model, tokens, lengths))


def completion_hidden(model, *arrays):
  return np.array(jax.jit(lambda m, *xs: m.completion_hidden(*xs))(model, *arrays))


def counted(function, **options):
  """The function compiled, and how often it was traced so far.

  Not jit's own count: its table is one for the process, and when a long run of tests has filled it
  nothing new stays there.
  """
  traced = []

  def trace(*args):
    traced.append(None)
    return function(*args)

  return jax.jit(trace, **options), lambda: len(traced)


def ragged(P=3, G=3, S=7, T=6, seed=0):
  """Prompts of lengths 1 to S and completions of lengths 1 to T, with garbage on the padding."""
  rng = np.random.default_rng(seed)
  prompt_lengths = np.resize([S, 1, 4, 2], P).astype(np.int32)
  completion_lengths = np.resize([T, 1, 3, 5, 2], P * G).astype(np.int32)
  return (
    rng.integers(0, V, (P, S), np.int32),
    prompt_lengths,
    rng.integers(0, V, (P * G, T), np.int32),
    completion_lengths,
  )


def concatenated(prompts, prompt_lengths, completions, completion_lengths):
  """Each prompt with its completion as one right-padded row, and where its targets' states are."""
  B, T = completions.shape
  prompts = np.repeat(prompts, B // len(prompts), axis=0)
  n = np.repeat(prompt_lengths, B // len(prompt_lengths))
  rows = np.zeros((B, prompts.shape[1] + T), np.int32)
  for b in range(B):
    row = [*prompts[b, : n[b]], *completions[b, : completion_lengths[b]]]
    rows[b, : len(row)] = row
  return rows, n + completion_lengths, n[:, None] - 1 + np.arange(T)


def full_forward_states(model, batch):
  rows, lengths, at = concatenated(*batch)
  return jnp.take_along_axis(model.hidden(rows, lengths=lengths), at[..., None], axis=1)


def assert_close(a, b, tolerance=1e-5):
  """max |a - b| below tolerance x max |b|: the size of float32 rounding in sums of such terms."""
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


def assert_trees_close(a, b, tolerance=1e-5):
  """max |a - b| below tolerance x max |b|, leaf by leaf, and no leaf of b is all zero."""
  flat_b = jax.tree_util.tree_flatten_with_path(b)[0]
  for x, (path, y) in zip(jax.tree.leaves(a), flat_b, strict=True):
    scale = np.abs(y).max()
    assert scale > 0, name_of(path)
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale, err_msg=name_of(path))


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

  (_, once), once_gradient = evaluate(lambda m: m.completion_hidden(*batch[:3]))
  (_, full), full_gradient = evaluate(lambda m: full_forward_states(m, batch))
  assert_close(np.array(once)[real], np.array(full)[real])
  assert_trees_close(once_gradient, full_gradient)


@pytest.mark.parametrize('config', [TINY, RICH], ids=['tiny', 'rich'])
@pytest.mark.parametrize('width', [3, 8])  # in stretches, and at once
def test_prefill_and_decode_equal_the_full_forward(config, width):
  model, (prompts, n, completions, _) = make(config), ragged()
  (P, S), (B, T) = prompts.shape, completions.shape
  layers = jax.jit(decoding.layers_of)(model)
  kept = decoding.empty(config, P, -(-S // width) * width)
  read = jax.jit(decoding.prefill, static_argnames='first')
  wide = np.pad(prompts, [(0, 0), (0, -S % width)])
  for offset in range(0, S, width):
    kept = read(
      model,
      layers,
      kept,
      np.arange(P)[None],
      wide[None, :, offset : offset + width],
      np.int32(offset),
      first=offset == 0,
    )

  slot_assignment = decoding.SlotAssignment(np.arange(B).reshape(1, P, B // P), np.arange(B)[None])
  own, columns = decoding.empty(config, B, T), np.arange(T)
  decode, traces = counted(lambda *args: decoding.decode(*args))
  last = np.repeat(prompts[np.arange(len(n)), n - 1], B // len(n))
  start = np.repeat(n - 1, B // len(n))
  found = []
  for t in range(T):
    tokens = last if t == 0 else completions[:, t - 1]
    hidden, own = decode(
      model,
      layers,
      tokens,
      start + t,
      own,
      np.int32(t),
      np.broadcast_to(columns <= t, (B, T)),
      kept,
      n - 1,
      slot_assignment,
    )
    found.append(hidden)
  batch = prompts, n, completions, np.full(B, T)
  assert_close(np.stack(found, 1), jax.jit(lambda m: full_forward_states(m, batch))(model))
  assert traces() == 1


def test_completions_packed_in_one_row_are_those_of_separate_rows():
  model, (prompts, n, completions, lengths) = make(RICH), ragged(G=3)
  apart = np.array(jax.jit(lambda m: m.completion_hidden(prompts, n, completions))(model))
  P, T = len(n), completions.shape[1]
  W = 3 * T
  packed, begins = np.zeros((P, W), int), np.broadcast_to(np.arange(W), (P, W)).copy()
  prompt_slots = {}
  for p in range(P):
    column = 0
    for b in range(3 * p, 3 * p + 3):
      packed[p, column : column + lengths[b]] = completions[b, : lengths[b]]
      begins[p, column : column + lengths[b]] = column
      prompt_slots[b] = p, column
      column += lengths[b]
  together = np.array(jax.jit(lambda m: m.completion_hidden(prompts, n, packed, begins))(model))
  for b, (p, column) in prompt_slots.items():
    assert_close(together[p, column : column + lengths[b]], apart[b, : lengths[b]])


def test_a_completion_sees_neither_its_siblings_nor_other_prompts():
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


def test_completions_that_are_no_multiple_of_the_prompts_are_refused():
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


def test_the_update_of_a_donated_model_traces_once():
  model, batch = make(TINY), ragged()
  step, traces = counted(
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


def test_layers_for_decoding_hold_kernels_alone_in_the_compute_dtype():
  config = dataclasses.replace(RICH, dtype='bfloat16')
  layers = decoding.layers_of(make(config))
  assert len(layers) == config.layers
  kinds = {
    (name_of(p).rsplit('/')[-1], str(x.dtype))
    for p, x in jax.tree_util.tree_leaves_with_path(layers)
  }
  assert kinds == {('weight', 'bfloat16'), ('bias', 'bfloat16'), ('scale', 'float32')}


# --- rope -----------------------------------------------------------------------------------------
def test_llama3_frequencies_follow_the_published_rule():
  """Wavelengths below old / high are kept, above old / low divided, interpolated between."""
  scaling = models.Llama3Rope(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
  )
  expected = []
  for i in range(0, 128, 2):
    frequency = 500000.0 ** (-i / 128)
    wavelength = 2 * np.pi / frequency
    if wavelength < 8192 / 4.0:
      expected.append(frequency)
    elif wavelength > 8192 / 1.0:
      expected.append(frequency / 8.0)
    else:
      smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
      expected.append((1 - smooth) * frequency / 8.0 + smooth * frequency)
  found = rotary.frequencies(128, 500000.0, scaling)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  plain = rotary.frequencies(128, 500000.0)
  ratio = plain / found
  assert ratio[0] == 1 and ratio[-1] == 8 and ((ratio > 1.1) & (ratio < 7.9)).any()


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


def test_positions_matter_only_by_their_difference():
  table = lambda start: rotary.table(start + jnp.arange(4)[None], rotary.frequencies(8, 10000.0))
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 4, 1, 8))
  scores = lambda start: jnp.einsum(
    'btnh,bsnh->bts', rotary.rotate(q, table(start)), rotary.rotate(k, table(start))
  )
  np.testing.assert_allclose(scores(0), scores(50), atol=1e-4)
  assert np.abs(scores(0) - jnp.einsum('btnh,bsnh->bts', q, k)).max() > 0.1


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
