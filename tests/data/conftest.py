"""Chats of byte-level tokenizers, and data sets loaded with them."""

import pytest
import tiny_tokenizers
from row_files import row, write_jsonl

from rft_jax.data import chat as chats
from rft_jax.data import rows


@pytest.fixture
def make_chat(tmp_path):
  """Returns a function that makes the Chat of a tokenizer written for the test."""

  def make_chat(*, reasoning=None, template_kwargs=None, choice='', date='2025-01-01', **tokenizer):
    tiny_tokenizers.save(tmp_path, **tokenizer)
    return chats.make(
      tmp_path,
      chats.ChatConfig(
        reasoning=reasoning, template=choice, date=date, template_kwargs=template_kwargs or {}
      ),
    )

  return make_chat


@pytest.fixture(scope='module')
def plain_chat(tmp_path_factory):
  """Returns a Chat that writes each content on a line, for any role; ids are bytes."""
  path = tiny_tokenizers.save(tmp_path_factory.mktemp('tokenizer'), template=None, special=())
  return chats.make(path, chats.ChatConfig())


@pytest.fixture
def load(tmp_path, plain_chat):
  """Returns rows.load of two lists of rows; by default a held-out row with the fields of train."""

  def load(train, validation=None, *, config=None, **arguments):
    if validation is None:
      first = train[0] if train and isinstance(train[0], dict) else {}
      fields = {key: value for key, value in first.items() if key not in ('messages', 'tools')}
      validation = [row('a held-out case', **fields)]
    data_config = rows.DataConfig(
      train=write_jsonl(tmp_path / 'train.jsonl', train),
      validation=write_jsonl(tmp_path / 'valid.jsonl', validation),
      **{'max_prompt_tokens': 1000, **(config or {})},
    )
    return rows.load(data_config, chat=plain_chat, **arguments)

  return load


@pytest.fixture
def load_error(load):
  """Returns a function that gives the error text of `load`."""

  def load_error(*args, **kwargs):
    with pytest.raises(ValueError) as error:
      load(*args, **kwargs)
    return str(error.value)

  return load_error
