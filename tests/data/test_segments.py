"""Steps of a completion: every token in one of them, borders where the text says."""

import functools

import pytest
import tiny_tokenizers
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.data import chat as chats
from rft_jax.data import segments
from rft_jax.data.chat import ChatConfig
from rft_jax.tasks import base_checkpoint

MARKERS = ('<think>', '</think>')
TEXTS = st.text(st.sampled_from('ab1;\n |é€😀\ufffd'), max_size=30)
KINDS = st.sampled_from(
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
def bytewise():
  import pathlib
  import tempfile

  with tempfile.TemporaryDirectory() as directory:
    return chats.make(tiny_tokenizers.save(pathlib.Path(directory) / 'bytes'), ChatConfig())


@functools.cache
def merging():
  """A tokenizer whose tokens hold several characters, a delimiter or half of one among them."""
  fast = base_checkpoint.make_tokenizer(['ab\n\na; b1 | a', 'a;b', '€ ||'] * 3, vocabulary=300)
  decode = lambda ids: fast.decode(ids, skip_special_tokens=True)
  return lambda text: fast(text, add_special_tokens=False)['input_ids'], decode


@functools.cache
def spaced():
  """As sentencepiece: a token reads otherwise alone than in company; bytes as a last resort."""
  names = ['<unk>', *(f'<0x{i:02X}>' for i in range(256)), '▁', 'a', 'b', ';', '▁a', '▁b', '\n']
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={name: i for i, name in enumerate(names)},
      merges=[('▁', 'a'), ('▁', 'b')],
      unk_token='<unk>',
      byte_fallback=True,
    )
  )
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
  made.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace('▁', ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  return lambda text: made.encode(text).ids, made.decode


CODECS = {
  'bytes': lambda: ((lambda text: bytewise().encode([text])[0]), bytewise().decode),
  'merges': merging,
  'spaces': spaced,
}


@pytest.mark.parametrize('codec', CODECS)
@settings(max_examples=120, deadline=None)
@given(text=TEXTS, kind=KINDS, most=st.integers(0, 4), cut=st.integers(0, 3))
def test_every_token_is_in_one_step_and_the_pieces_are_the_text(codec, text, kind, most, cut):
  encode, decode = CODECS[codec]()
  ids = encode(text)
  ids = ids[: len(ids) - cut] if len(ids) > cut else ids  # half a character in the end
  steps = segments.make(
    decode, steps=kind[0], delimiter=kind[1], reasoning=('|', ';'), max_steps=most
  )(ids)
  if not ids:
    assert steps.ends == []
    return
  assert ''.join(steps.texts) == decode(ids)
  assert steps.ends == sorted(set(steps.ends)) and steps.ends[-1] == len(ids) - 1
  assert len(steps.ends) == len(steps.texts) == len(steps.said) == len(steps.so_far)
  assert not most or len(steps.ends) <= most
  whole = decode(ids)
  for end, length in zip(steps.ends, range(1, len(steps.texts))):
    border = len(''.join(steps.texts[:length]))
    # The text up to the border stands there with the step's last token, and not before it.
    assert decode(ids[: end + 1])[:border] == whole[:border]
    before = decode(ids[:end])
    assert before[:border] != whole[:border] or codec == 'spaces'


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 255), max_size=24))
def test_pieces_and_prefixes_tell_the_same_places(ids):
  """For bytes of any kind, broken characters too: the fast way equals the definition."""
  decode = bytewise().decode
  text = decode(ids)
  known = segments._piecewise(ids, decode, text, {})
  if known is None:  # the definition itself is used
    return
  for token, place in enumerate(known):
    prefix = decode(ids[: token + 1])
    assert text.startswith(prefix[:place])
    assert place == len(text) or prefix[: place + 1] != text[: place + 1] or place == len(prefix)


def test_a_character_of_several_bytes_is_read_piecewise():
  ids = bytewise().encode(['é€😀\n\nb'])[0]
  known = segments._piecewise(ids, bytewise().decode, 'é€😀\n\nb', {})
  assert known == [0, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
  'kind, text, said',
  [
    (('paragraph', ''), 'one\ntwo\n\nthree\n \n\n  four', ['one\ntwo', 'three', 'four']),
    (('line', ''), 'one\n\n two\nthree\n', ['one', 'two', 'three']),
    (('delimiter', '; '), 'a; b;; c;', ['a', 'b', 'c']),
    (('delimiter', 'Step'), 'Step a Step b', ['a', 'b']),
    (('turn', ''), 'one\n\ntwo', ['one\n\ntwo']),
  ],
)
def test_each_kind_splits_where_it_says(kind, text, said):
  ids = bytewise().encode([text])[0] + [bytewise().eos_id]
  steps = segments.make(bytewise().decode, steps=kind[0], delimiter=kind[1])(ids)
  assert steps.said == said
  assert steps.ends[-1] == len(ids) - 1  # the end of the turn belongs to the last step


def test_the_end_of_the_reasoning_ends_a_step():
  split = segments.make(bytewise().decode, steps='line', reasoning=MARKERS)
  ids = bytewise().encode(['<think>x\ny</think>\n\n7'])[0]
  steps = split(ids)
  assert steps.said == ['x', 'y', '7']
  assert steps.so_far == ['x', 'x\ny', 'x\ny</think>\n\n7']
  assert bytewise().decode(ids[steps.ends[0] + 1 : steps.ends[1] + 1]) == 'y</think>\n\n'
  assert split(bytewise().encode(['<think></think>7'])[0]).said == ['7']


def test_a_delimiter_inside_a_token_and_across_two():
  words = {0: 'a;b', 1: ' c |', 2: '| d', 3: ';;', 4: 'e'}
  decode = lambda ids: ''.join(words[i] for i in ids)
  across = segments.make(decode, steps='delimiter', delimiter='||')([0, 1, 2, 4])
  assert across.ends == [2, 3] and across.texts == ['a;b c ||', ' de']
  inside = segments.make(decode, steps='delimiter', delimiter=';')([0, 4, 3, 4])
  assert inside.ends == [0, 2, 3] and inside.said == ['a', 'be', 'e']
  one_token = segments.make(lambda ids: 'a;b;c;d' * len(ids), steps='delimiter', delimiter=';')
  assert one_token([5]).ends == [0] and one_token([5]).texts == ['a;b;c;d']


def test_what_is_beyond_max_steps_belongs_to_the_last():
  ids = bytewise().encode(['a\nb\nc\nd'])[0]
  steps = segments.make(bytewise().decode, steps='line', max_steps=2)(ids)
  assert steps.ends == [1, 6] and steps.said == ['a', 'b\nc\nd']


def test_turns_end_where_the_weights_say():
  ids = bytewise().encode(['ask<tool>go'])[0]
  weights = [1] * 3 + [0] * 6 + [1] * 2
  steps = segments.make(bytewise().decode, steps='turn')(ids, weights)
  assert steps.ends == [2, 10] and steps.texts == ['ask', '<tool>go']


def test_a_delimiter_is_for_its_own_kind_alone():
  for steps, delimiter in (('delimiter', ''), ('line', ';'), ('word', '')):
    with pytest.raises(ValueError, match=f"steps='{steps}'"):
      segments.make(bytewise().decode, steps=steps, delimiter=delimiter)
