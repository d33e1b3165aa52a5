"""Tiny checkpoints of our own against what transformers computed for them, without torch."""

import json

import hf_forward
import numpy as np
import pytest

from rft_jax import hf

record_oracles = hf_forward.record_oracles()
FAMILIES = sorted(record_oracles.FAMILIES)


@pytest.fixture(scope='module', params=FAMILIES)
def loaded(request, tmp_path_factory):
  directory = tmp_path_factory.mktemp(request.param)
  record_oracles.write(request.param, directory)
  model, _ = hf.load(directory)
  with np.load(hf_forward.RECORDED / f'{request.param}.npz') as file:
    arrays = dict(file)
  rows = [ids[:length] for ids, length in zip(arrays['ids'], arrays['lengths'])]
  return model, rows, arrays


def test_logits_equal_transformers(loaded):
  model, rows, arrays = loaded
  scale = np.abs(arrays['logits']).max()
  for logits, expected in zip(hf_forward.logits_of(model, rows), arrays['logits']):
    np.testing.assert_allclose(logits, expected[: len(logits)], rtol=0, atol=1e-4 * scale)


def test_logprobs_equal_transformers(loaded):
  model, rows, arrays = loaded
  for logits, ids, expected in zip(hf_forward.logits_of(model, rows), rows, arrays['logprobs']):
    np.testing.assert_allclose(
      hf_forward.logprobs_of(logits, ids), expected[: len(ids) - 1], rtol=0, atol=2e-4
    )


def test_greedy_decoding_equals_transformers(loaded):
  model, rows, arrays = loaded
  np.testing.assert_array_equal(
    hf_forward.greedy(model, rows, arrays['greedy'].shape[1]), arrays['greedy']
  )


def test_recorded_arrays_are_of_the_checkpoints_that_the_tests_write():
  for family in FAMILIES:
    with np.load(hf_forward.RECORDED / f'{family}.npz') as arrays:
      np.testing.assert_array_equal(
        arrays['ids'], record_oracles.prompts(record_oracles.FAMILIES[family])
      )
      assert arrays['greedy_margin'].min() > 1e-2  # far above rounding: tokens must be equal
  versions = json.loads((hf_forward.RECORDED / 'versions.json').read_text())
  assert {'torch', 'transformers', 'numpy', 'date'} <= set(versions)
