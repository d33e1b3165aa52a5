"""The engine: the samples of the simple engine, whatever the slots, the batch and the mesh."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simple_engine
from jax.experimental.compilation_cache import compilation_cache

import rft_jax
from rft_jax import models, sharding
from rft_jax.models import decoding, decoding_layers, kv_cache
from rft_jax.sampling import decode_session, engine, samplers, scheduler, slots
from rft_jax.sampling.samplers import SamplingConfig

PROMPTS = [[5, 6, 7, 8, 9], [3], [4, 4, 4]]


@pytest.fixture(scope='module')
def model():
  config = models.DecoderConfig(
    vocab_size=48,
    dim=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_dim=48,
    tied_head=True,
    max_positions=128,
    eos_ids=(1, 2),
    valid_vocab=44,
  )
  return jax.tree.map(
    lambda x: 4.0 * x, models.make(config, seed=3)
  )  # sharper than a fresh model: probabilities differ


def _flat(samples):
  return [sample for group in samples for sample in group]


@pytest.mark.full
@pytest.mark.parametrize(
  'settings',
  [dict(), dict(temperature=0.7, top_k=20, top_p=0.9), dict(temperature=0.0)],
  ids=['plain', 'filtered', 'greedy'],
)
@pytest.mark.parametrize('count, min_columns', [(2, 64), (16, 64), (16, 4), (4, 8)])
def test_samples_are_those_of_the_simple_engine(model, settings, count, min_columns, monkeypatch):
  monkeypatch.setattr(
    decode_session, 'MIN_COLUMNS', min_columns
  )  # of 16; the slots grow from there
  limits = np.random.default_rng(0).integers(1, 13, (3, 5)).tolist()
  arguments = dict(
    samples_per_prompt=5,
    max_new_tokens=12,
    stop_ids=(1, 2),
    seed=3,
    step=4,
    occurrences=[7, 9, 8],
    limits=limits,
    **settings,
  )
  for ours, simple in zip(
    _flat(engine.generate(model, PROMPTS, slots_per_shard=count, **arguments)),
    _flat(simple_engine.generate(model, PROMPTS, **arguments)),
  ):
    assert (ours.tokens, ours.stop_reason) == (simple.tokens, simple.stop_reason)
    np.testing.assert_allclose(ours.logprobs, simple.logprobs, atol=1e-4)
    if simple.filtered_logprobs is not None:
      np.testing.assert_allclose(ours.filtered_logprobs, simple.filtered_logprobs, atol=1e-4)


@pytest.mark.full
def test_long_prompts_are_prefilled_in_chunks(model, monkeypatch):
  prompts = [list(range(3, 40)), [5, 6], list(range(3, 12))]
  whole = rft_jax.generate(model, prompts, samples_per_prompt=2, max_new_tokens=8)
  monkeypatch.setattr(decode_session, 'PREFILL_WIDTH', 16)
  monkeypatch.setattr(decode_session, 'PREFILL_TOKENS', 32)
  for a, b in zip(
    _flat(whole), _flat(rft_jax.generate(model, prompts, samples_per_prompt=2, max_new_tokens=8))
  ):
    assert a.tokens == b.tokens
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_finished_samples_are_reported_while_others_decode(model):
  limits, ended, statistics = [[1, 9, 2], [9, 1, 1], [3, 1, 12]], [], []
  samples = engine.generate(
    model,
    PROMPTS,
    samples_per_prompt=3,
    max_new_tokens=12,
    stop_ids=(),
    limits=limits,
    slots_per_shard=4,
    on_finished=lambda p, g, sample: ended.append((p, g, len(sample.tokens))),
    on_statistics=statistics.append,
  )
  assert sorted(ended) == [(p, g, limits[p][g]) for p in range(3) for g in range(3)]
  assert ended.index((0, 0, 1)) < ended.index((0, 1, 9))
  assert statistics[0].tokens == sum(map(sum, limits)) <= statistics[0].decoded
  assert [[len(s.tokens) for s in group] for group in samples] == limits


@pytest.mark.full
def test_a_token_costs_no_copy_of_the_cache(model):
  """What the loop needs beside its inputs and outputs does not grow with the cache."""

  def temporary_bytes(T):
    N, config = 8, model.config
    layers = decoding_layers.layers_of(model)
    slot_assignment = decoding.SlotAssignment(
      np.zeros((1, 1, N), np.int32), np.zeros((1, N), np.int32)
    )
    lowered = slots.run.lower(
      slots.init_slots(config, N, T, False),
      model,
      layers,
      kv_cache.init_kv_cache(config, 1, 8),
      np.zeros(1, np.int32),
      slot_assignment,
      samplers.sampler_params(SamplingConfig()),
      np.array([1], np.int32),
      np.int32(4),
      np.int32(9),
      np.int32(0),
      filtered=False,
    )
    cache = 2 * 4 * config.layers * N * config.kv_heads * config.head_dim * T
    return lowered.compile().memory_analysis().temp_size_in_bytes, cache

  (small, _), (large, cache) = temporary_bytes(64), temporary_bytes(1024)
  assert large - small < cache / 4


def test_sampler_logprobs_match_scorer_logprobs(model):
  for temperature in (1.0, 0.6):
    samples = rft_jax.generate(
      model, PROMPTS, samples_per_prompt=4, max_new_tokens=20, temperature=temperature, seed=1
    )
    rows = [prompt + sample.tokens for prompt, group in zip(PROMPTS, samples) for sample in group]
    T = max(map(len, rows))
    tokens = np.array([row + [0] * (T - len(row)) for row in rows])
    scores = rft_jax.score(model, tokens, [len(row) for row in rows], temperature)
    for row, sample, score in zip(rows, _flat(samples), np.asarray(scores)):
      start = len(row) - len(sample.tokens) - 1
      np.testing.assert_allclose(score[start : len(row) - 1], sample.logprobs, atol=1e-4)
      assert (score[len(row) - 1 :] == 0).all()


def _rounded(model):
  """The model with each output of its layers' kernels in 127 steps to its largest weight."""

  def round_kernel(path, x):
    if not sharding.name_of(path).startswith('blocks') or not sharding.name_of(path).endswith(
      'kernel'
    ):
      return x
    scale = np.abs(x).max(1, keepdims=True) / 127
    return jnp.asarray(np.round(x / scale) * scale)

  return jax.tree_util.tree_map_with_path(round_kernel, model)


@pytest.mark.full
def test_int8_samples_are_those_of_the_rounded_policy(model):
  arguments = dict(samples_per_prompt=4, max_new_tokens=20, seed=1)
  quantized = engine.generate(model, PROMPTS, quantization='int8', **arguments)
  rounded = engine.generate(_rounded(model), PROMPTS, **arguments)
  exact = engine.generate(model, PROMPTS, **arguments)
  differences = []
  for ours, theirs, unrounded in zip(_flat(quantized), _flat(rounded), _flat(exact)):
    assert ours.tokens == theirs.tokens
    np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
    if ours.tokens[0] == unrounded.tokens[0]:
      differences.append(abs(ours.logprobs[0] - unrounded.logprobs[0]))
  assert len(differences) > 6
  assert 1e-4 < np.max(differences) < 0.3  # near to the model's own policy, and not the same


def test_greedy_generation_is_the_argmax_of_the_full_forward(model):
  ((sample,),) = rft_jax.generate(
    model, [PROMPTS[0]], max_new_tokens=12, temperature=0.0, stop_ids=()
  )
  ids = list(PROMPTS[0])
  for token in sample.tokens:
    logits = model(jnp.array([ids]), lengths=jnp.array([len(ids)]))[0, -1]
    assert int(jnp.argmax(logits[: model.config.valid_vocab])) == token
    ids.append(token)


def test_samples_do_not_depend_on_the_batch(model):
  together = rft_jax.generate(
    model,
    PROMPTS,
    samples_per_prompt=3,
    max_new_tokens=10,
    seed=7,
    step=2,
    occurrences=[40, 41, 42],
  )
  (alone,) = rft_jax.generate(
    model, PROMPTS[1:2], samples_per_prompt=3, max_new_tokens=10, seed=7, step=2, occurrences=[41]
  )
  assert [s.tokens for s in alone] == [s.tokens for s in together[1]]


@pytest.mark.full
@pytest.mark.parametrize('count', [1, 3, 8])
def test_samples_do_not_depend_on_the_number_of_slots(model, count):
  few = engine.generate(
    model, PROMPTS, samples_per_prompt=4, max_new_tokens=10, slots_per_shard=count
  )
  many = engine.generate(
    model, PROMPTS, samples_per_prompt=4, max_new_tokens=10, slots_per_shard=64
  )
  assert [s.tokens for s in _flat(few)] == [s.tokens for s in _flat(many)]
  for a, b in zip(_flat(few), _flat(many)):
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_every_part_of_the_key_matters(model):
  def sample(**changes):
    arguments = (
      dict(samples_per_prompt=2, max_new_tokens=10, seed=1, step=1, occurrences=[1], stop_ids=())
      | changes
    )
    return [s.tokens for s in rft_jax.generate(model, PROMPTS[:1], **arguments)[0]]

  base = sample()
  assert base == sample()
  assert base[0] != base[1]
  assert base != sample(seed=2) and base != sample(step=2) and base != sample(occurrences=[2])


def test_a_longer_limit_extends_the_same_samples(model):
  short = rft_jax.generate(model, PROMPTS, max_new_tokens=4, stop_ids=())
  long = rft_jax.generate(model, PROMPTS, max_new_tokens=20, stop_ids=())
  for a, b in zip(_flat(short), _flat(long)):
    assert b.tokens[:4] == a.tokens and a.stop_reason == 'length'


def test_the_stop_token_is_included_and_ends_the_sample(model):
  samples = _flat(rft_jax.generate(model, PROMPTS, samples_per_prompt=40, max_new_tokens=30))
  stopped = [s for s in samples if s.stop_reason == 'stop']
  assert stopped and len(stopped) < len(samples)
  for sample in samples:
    stops = [token in model.config.eos_ids for token in sample.tokens]
    assert not any(stops[:-1]) and stops[-1] == (sample.stop_reason == 'stop')
    assert len(sample.logprobs) == len(sample.tokens)
  assert {s.tokens[-1] for s in stopped} == {1, 2}  # every EOS id counts


def test_padded_vocabulary_is_never_sampled(model):
  samples = _flat(
    rft_jax.generate(
      model, PROMPTS, samples_per_prompt=60, max_new_tokens=30, temperature=5.0, stop_ids=()
    )
  )
  assert max(token for s in samples for token in s.tokens) == model.config.valid_vocab - 1


def test_new_settings_and_stop_ids_do_not_compile_again(model):
  rft_jax.generate(model, PROMPTS, max_new_tokens=9, temperature=1.0, stop_ids=[3])
  before = decode_session.compilations()
  samples = rft_jax.generate(model, PROMPTS, max_new_tokens=10, temperature=0.5, stop_ids=[4])
  assert decode_session.compilations() == before
  assert all(s.tokens[-1] == 4 or len(s.tokens) == 10 for s in _flat(samples))


@pytest.mark.full
def test_a_smaller_limit_allows_a_longer_prompt(model):
  """As for a completion that is continued: its tokens are prompt, its limit is what remains."""
  arguments = dict(samples_per_prompt=1, max_new_tokens=16, stop_ids=(), temperature=0.0)
  long, short = [5] * 124, [5, 7]
  samples = engine.generate(model, [long, short], limits=[[4], [16]], **arguments)
  assert [len(group[0].tokens) for group in samples] == [4, 16]
  alone = engine.generate(model, [long], **dict(arguments, max_new_tokens=4))
  assert alone[0][0].tokens == samples[0][0].tokens
  with pytest.raises(ValueError, match='prompt 0 has 124 tokens, with 5 new ones'):
    engine.generate(model, [long, short], limits=[[5], [16]], **arguments)


@pytest.mark.full
def test_lengths_that_vary_compile_a_bounded_number_of_programs(model):
  rng, before = np.random.default_rng(5), decode_session.compilations()
  max_slots = 16
  for seed in range(12):
    prompts = [rng.integers(3, 40, rng.integers(1, 9)).tolist() for _ in range(rng.integers(5, 9))]
    limits = rng.integers(1, 14, (len(prompts), 3)).tolist()
    engine.generate(
      model,
      prompts,
      samples_per_prompt=3,
      max_new_tokens=13,
      limits=limits,
      seed=seed,
      slots_per_shard=max_slots,
    )
  sizes = len(scheduler.slot_counts(max_slots))
  # run and shrink for each size and number of prompt slots; admit and prefill for powers of two
  assert decode_session.compilations() - before <= 4 * sizes + (sizes - 1) + 5 + 4 * 4


@pytest.mark.full
@pytest.mark.parametrize('axes', [(1, 1, 1), (2, 2, 2)])
def test_the_programs_compiled_ahead_are_those_that_sampling_runs_first(model, axes, tmp_path):
  mesh = sharding.make_mesh(*axes, devices=jax.devices()[: math.prod(axes)])
  limits = {
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
    'jax_compilation_cache_dir': str(tmp_path),
  }
  before = {name: getattr(jax.config, name) for name in limits}
  config = SamplingConfig(max_new_tokens=21)  # a length that no other test has compiled
  never = (46, 47)  # beyond valid_vocab: all samples end together, and the slots do not shrink
  try:
    for name, value in limits.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
    engine.compile_ahead(
      sharding.abstract(model, mesh),
      PROMPTS,
      config,
      samples_per_prompt=3,
      stop_ids=never,
      mesh=mesh,
    )
    ahead = {path.name for path in tmp_path.iterdir()}
    placed = jax.device_put(model, sharding.shardings_for(model, mesh))
    engine.sample(placed, PROMPTS, config, samples_per_prompt=3, stop_ids=never, mesh=mesh)
    after = {path.name for path in tmp_path.iterdir()}
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
  programs = lambda names, kind: {
    name for name in names if name.startswith(f'jit_{kind}-') and not name.endswith('-atime')
  }
  for kind in ('_layers_of', '_init_arrays', '_prefill', 'admit', 'run'):
    assert programs(ahead, kind) == programs(after, kind) != set()


def test_eight_devices_sample_what_one_does(model):
  mesh = sharding.make_mesh(2, 2, 2)
  spread = jax.device_put(model, sharding.shardings_for(model, mesh))
  single = rft_jax.generate(model, PROMPTS, samples_per_prompt=4, max_new_tokens=12)
  eight = engine.generate(spread, PROMPTS, samples_per_prompt=4, max_new_tokens=12, mesh=mesh)
  assert [s.tokens for s in _flat(single)] == [s.tokens for s in _flat(eight)]
  for a, b in zip(_flat(single), _flat(eight)):
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


def test_all_problems_of_the_arguments_are_named_at_once(model):
  with pytest.raises(ValueError) as caught:
    rft_jax.generate(model, [[], [99], [1] * 127], temperature=-1.0)
  message = str(caught.value)
  assert 'temperature=-1.0' in message and 'prompt 0 is empty' in message
  assert 'prompt 1 has id 99' in message and 'prompt 2 has 127 tokens' in message


def test_no_prompts_give_no_samples(model):
  assert rft_jax.generate(model, []) == []
