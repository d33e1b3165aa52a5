"""Larger recorded outputs of transformers, and a trained model, if ../shared is there."""

import hf_forward
import numpy as np
import pytest
from paths import SHARED

from rft_jax import hf

ORACLES = SHARED / 'oracles'
STORIES = SHARED / 'data' / 'models' / 'stories260K'


def skip_without(path):
  if not path.exists():
    pytest.skip(f'{path.name}: no ../shared/{path.relative_to(SHARED)} here')


@pytest.fixture(scope='module', params=['llama', 'qwen2', 'qwen3'])
def oracle(request):
  directory = ORACLES / request.param
  skip_without(directory / 'oracle.npz')
  model, config = hf.load(directory)
  with np.load(directory / 'oracle.npz') as file:
    return model, config, dict(file)


def real_rows(arrays, side=''):
  """Yields (ids, logits, logprobs) of each row without its padding."""
  names = [side + name for name in ('input_ids', 'attention_mask', 'logits', 'token_logps')]
  for ids, mask, logits, logprobs in zip(*(arrays[name] for name in names)):
    real = mask == 1
    yield ids[real], logits[real], logprobs[real[1:] & real[:-1]]


@pytest.mark.full
@pytest.mark.parametrize('side', ['', 'right_'])
def test_logits_and_logprobs_equal_transformers(oracle, side):
  model, _, arrays = oracle
  rows = list(real_rows(arrays, side))
  scale = max(np.abs(logits).max() for _, logits, _ in rows)
  computed = hf_forward.logits_of(model, [ids for ids, _, _ in rows])
  for logits, (ids, expected, logprobs) in zip(computed, rows):
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(hf_forward.logprobs_of(logits, ids), logprobs, rtol=0, atol=2e-4)


def test_greedy_decoding_equals_transformers(oracle):
  model, config, arrays = oracle
  rows = [ids for ids, _, _ in real_rows(arrays)]
  expected = arrays['greedy'][:, arrays['input_ids'].shape[1] :]
  computed = hf_forward.greedy(model, rows, expected.shape[1], forbidden=config.eos_ids)
  np.testing.assert_array_equal(computed, expected)


def test_tokenizer_and_eos_are_read_with_the_weights(oracle):
  _, config, _ = oracle
  assert (config.valid_vocab, config.eos_ids, config.pad_id, config.bos_id) == (512, (2,), 0, 1)


@pytest.fixture(scope='module')
def stories():
  skip_without(STORIES / 'parity.npz')
  model, config = hf.load(STORIES)
  with np.load(STORIES / 'parity.npz') as file:
    return model, config, dict(file)


def test_trained_model_equals_the_float64_reference(stories):
  model, _, arrays = stories
  computed = hf_forward.logits_of(model, list(arrays['ids']))
  for logits, ids, expected, logprobs in zip(
    computed, arrays['ids'], arrays['logits'], arrays['token_logps']
  ):
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(hf_forward.logprobs_of(logits, ids), logprobs, rtol=0, atol=2e-4)


@pytest.mark.full
def test_trained_model_continues_with_the_same_story(stories):
  model, config, arrays = stories
  expected = arrays['greedy']
  computed = hf_forward.greedy(model, [expected[:1]], len(expected) - 1)
  np.testing.assert_array_equal(computed[0], expected[1:])
  assert config.eos_ids == (1, 2)
