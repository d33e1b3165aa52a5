"""Stop ids: every EOS id that a file of the checkpoint names."""

import pytest
import tiny_tokenizers


def test_every_eos_id_of_every_file_is_a_stop_id(make_chat, tmp_path):  # M6
  tiny_tokenizers.save(tmp_path)  # ids 256, 257: ChatML's; 258: <eos>
  (tmp_path / 'config.json').write_text('{"model_type": "llama", "eos_token_id": 9}')
  chat = make_chat(eos_ids=[3, 5])
  assert chat.stop_ids == (3, 5, 9, 257, 258)
  assert chat.vocabulary_size == 259


def test_a_checkpoint_without_eos_is_an_error(make_chat):
  with pytest.raises(ValueError, match='no end-of-sequence token'):
    make_chat(template='{% for m in messages %}{{ m.content }}{% endfor %}', eos=None)
