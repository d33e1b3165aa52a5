"""DecoderConfig of a directory: end-of-sequence ids, number of ids, unknown model types."""

import pytest
from hf_forward import write_tokenizer

from rft_jax import hf


def test_an_unknown_model_type_is_an_error_that_lists_the_known_ones(base):
  with pytest.raises(ValueError, match=r"(?s)model_type='mamba'.*'llama', 'qwen2', 'qwen3'"):
    hf.load(base(model_type='mamba'))


def test_eos_ids_are_those_of_both_config_files(base):
  directory = base(eos_token_id=2)
  assert hf.load(directory)[1].eos_ids == (2,)
  (directory / 'generation_config.json').write_text('{"eos_token_id": [7, 5], "pad_token_id": 5}')
  assert hf.load(directory)[1].eos_ids == (7, 5, 2)
  (directory / 'generation_config.json').write_text('{"eos_token_id": 2}')
  assert hf.load(directory)[1].eos_ids == (2,)


def test_valid_vocab_is_the_number_of_ids_of_the_tokenizer(base):
  directory = base()
  assert hf.load(directory)[1].valid_vocab == 80
  write_tokenizer(directory, 70)
  config = hf.load(directory)[1]
  assert (config.vocab_size, config.valid_vocab) == (80, 70)
  write_tokenizer(directory, 90)
  assert hf.load(directory)[1].valid_vocab == 80
