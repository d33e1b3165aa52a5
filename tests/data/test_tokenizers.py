"""Differences between two tokenizers."""

import tiny_tokenizers

from rft_jax.data import tokenizers


def test_special_ids_are_compared(tmp_path):
  first = tokenizers.load(tiny_tokenizers.save(tmp_path / 'a'))
  second = tokenizers.load(tiny_tokenizers.save(tmp_path / 'b', eos='<|im_end|>'))
  assert tokenizers.differences(first, first) == []
  differences = tokenizers.differences(first, second)
  assert differences[0].startswith('eos_token_id is ') and "'<eos>' is " in differences[1]
  assert differences[1].endswith('none in the second')
