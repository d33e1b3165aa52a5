"""Segments of a completion: every token is in one step, and the text decides where steps end."""

import functools
import pathlib
import tempfile

import pytest
import tiny_tokenizers
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.data import chat as chats
from rft_jax.data import segments
from rft_jax.tasks import base_checkpoint

MARKERS = ('<think>', '</think>')
TEXTS = st.text(st.sampled_from('ab1;\n |é€😀\ufffd'), max_size=30)
BOUNDARIES = st.sampled_from(
  [
    ('paragraph', ''),
    ('line', ''),
    ('turn', ''),
    ('delimiter', ';'),
    ('delimiter', '; '),
    ('delimiter', '||'),
    ('delimiter', '\n\n'),
  ]
)


@functools.cache
def byte_chat():
  with tempfile.TemporaryDirectory() as directory:
    return chats.make(tiny_tokenizers.save(pathlib.Path(directory) / 'bytes'), chats.ChatConfig())


@functools.cache
def merging_codec():
  """Returns (encode, decode) with tokens of several characters, some with (half) a delimiter."""
  fast = base_checkpoint.make_tokenizer(['ab\n\na; b1 | a', 'a;b', '€ ||'] * 3, vocabulary=300)
  decode = lambda ids: fast.decode(ids, skip_special_tokens=True)
  return lambda text: fast(text, add_special_tokens=False)['input_ids'], decode


@functools.cache
def sentencepiece_codec():
  """Returns (encode, decode) like sentencepiece's: drops a leading space, bytes as fallback."""
  names = ['<unk>', *(f'<0x{i:02X}>' for i in range(256)), '▁', 'a', 'b', ';', '▁a', '▁b', '\n']
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={name: i for i, name in enumerate(names)},
      merges=[('▁', 'a'), ('▁', 'b')],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
  tokenizer.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  return lambda text: tokenizer.encode(text).ids, tokenizer.decode


CODECS = {
  'bytes': lambda: ((lambda text: byte_chat().encode([text])[0]), byte_chat().decode),
  'merges': merging_codec,
  'spaces': sentencepiece_codec,
}


@pytest.mark.parametrize('codec', CODECS)
@settings(max_examples=120, deadline=None)
@given(text=TEXTS, boundary=BOUNDARIES, limit=st.integers(0, 4), cut=st.integers(0, 3))
def test_every_token_is_in_one_step_and_the_texts_make_the_whole(codec, text, boundary, limit, cut):
  encode, decode = CODECS[codec]()
  ids = encode(text)
  ids = ids[: len(ids) - cut] if len(ids) > cut else ids  # may end with part of a character
  name, delimiter = boundary
  split = segments.make(
    decode, boundary=name, delimiter=delimiter, reasoning=('|', ';'), max_reasoning_steps=limit
  )
  steps = split(ids)
  if not ids:
    assert steps.ends == []
    return
  whole = decode(ids)
  assert ''.join(steps.texts) == whole
  assert steps.ends == sorted(set(steps.ends)) and steps.ends[-1] == len(ids) - 1
  assert len(steps.ends) == len(steps.texts) == len(steps.contents) == len(steps.prefixes)
  assert not limit or len(steps.ends) <= limit
  for end, count in zip(steps.ends, range(1, len(steps.texts))):
    offset = len(''.join(steps.texts[:count]))
    # The text up to the boundary is complete with the step's last token, and not before it.
    assert decode(ids[: end + 1])[:offset] == whole[:offset]
    before = decode(ids[:end])
    assert before[:offset] != whole[:offset] or codec == 'spaces'


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=24))
def test_linear_time_offsets_equal_those_of_decoded_prefixes(ids):
  """For bytes of any kind, incomplete characters too: the fast path equals the definition."""
  decode = byte_chat().decode
  text = decode(ids)
  offsets = segments.token_offsets(ids, decode, text, {})
  if offsets is None:  # the definition itself is used
    return
  for token, offset in enumerate(offsets):
    prefix = decode(ids[: token + 1])
    assert text.startswith(prefix[:offset])
    assert (
      offset == len(text) or prefix[: offset + 1] != text[: offset + 1] or offset == len(prefix)
    )


def test_a_character_of_several_bytes_is_complete_with_the_last():
  ids = byte_chat().encode(['é€😀\n\nb'])[0]
  offsets = segments.token_offsets(ids, byte_chat().decode, 'é€😀\n\nb', {})
  assert offsets == [0, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
  'boundary, text, contents',
  [
    (('paragraph', ''), 'one\ntwo\n\nthree\n \n\n  four', ['one\ntwo', 'three', 'four']),
    (('line', ''), 'one\n\n two\nthree\n', ['one', 'two', 'three']),
    (('delimiter', '; '), 'a; b;; c;', ['a', 'b', 'c']),
    (('delimiter', 'Step'), 'Step a Step b', ['a', 'b']),
    (('turn', ''), 'one\n\ntwo', ['one\n\ntwo']),
  ],
)
def test_each_boundary_splits_where_it_says(boundary, text, contents):
  ids = byte_chat().encode([text])[0] + [byte_chat().eos_id]
  name, delimiter = boundary
  steps = segments.make(byte_chat().decode, boundary=name, delimiter=delimiter)(ids)
  assert steps.contents == contents
  assert steps.ends[-1] == len(ids) - 1  # the end of the turn belongs to the last step


def test_the_end_of_the_reasoning_ends_a_step():
  split = segments.make(byte_chat().decode, boundary='line', reasoning=MARKERS)
  ids = byte_chat().encode(['<think>x\ny</think>\n\n7'])[0]
  steps = split(ids)
  assert steps.contents == ['x', 'y', '7']
  assert steps.prefixes == ['x', 'x\ny', 'x\ny</think>\n\n7']
  assert byte_chat().decode(ids[steps.ends[0] + 1 : steps.ends[1] + 1]) == 'y</think>\n\n'
  assert split(byte_chat().encode(['<think></think>7'])[0]).contents == ['7']


def test_a_delimiter_inside_a_token_and_across_two():
  words = {0: 'a;b', 1: ' c |', 2: '| d', 3: ';;', 4: 'e'}
  decode = lambda ids: ''.join(words[i] for i in ids)
  across = segments.make(decode, boundary='delimiter', delimiter='||')([0, 1, 2, 4])
  assert across.ends == [2, 3] and across.texts == ['a;b c ||', ' de']
  inside = segments.make(decode, boundary='delimiter', delimiter=';')([0, 4, 3, 4])
  assert inside.ends == [0, 2, 3] and inside.contents == ['a', 'be', 'e']
  one_token = segments.make(lambda ids: 'a;b;c;d' * len(ids), boundary='delimiter', delimiter=';')
  assert one_token([5]).ends == [0] and one_token([5]).texts == ['a;b;c;d']


def test_the_last_step_holds_what_is_beyond_max_reasoning_steps():
  ids = byte_chat().encode(['a\nb\nc\nd'])[0]
  steps = segments.make(byte_chat().decode, boundary='line', max_reasoning_steps=2)(ids)
  assert steps.ends == [1, 6] and steps.contents == ['a', 'b\nc\nd']


def test_turns_end_where_the_loss_mask_does():
  ids = byte_chat().encode(['ask<tool>go'])[0]
  loss_mask = [1] * 3 + [0] * 6 + [1] * 2
  steps = segments.make(byte_chat().decode, boundary='turn')(ids, loss_mask)
  assert steps.ends == [2, 10] and steps.texts == ['ask', '<tool>go']


def test_a_delimiter_is_for_its_own_boundary_alone():
  for boundary, delimiter in (('delimiter', ''), ('line', ';'), ('word', '')):
    with pytest.raises(ValueError, match=f"boundary='{boundary}'"):
      segments.make(byte_chat().decode, boundary=boundary, delimiter=delimiter)
