"""Segments of a completion: splits it into reasoning steps, and finds the last token of each.

Boundaries are found in the decoded text of the sampled ids; nothing is encoded again. A boundary
in the text belongs to the token that completes the character before it, so a delimiter may lie
inside one token or span several.
"""

import bisect
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from rft_jax.objectives.reasoning_steps import turn_ends

BOUNDARIES = {  # name -> the regular expression after which a step ends
  'paragraph': r'\n\s*\n',  # up to the last newline: indentation belongs to the next step
  'line': r'\n\s*\n|\n',
  'turn': None,
  'delimiter': None,
}
MAX_TOKENS_PER_CHARACTER = 8  # beyond this, decoding piece by piece is given up


class ReasoningSteps(NamedTuple):
  """The reasoning steps of one completion, J of them."""

  ends: list[int]  # the index of the last token of each, ascending; the last ends the completion
  texts: list[str]  # the decoded text of each, with delimiters; concatenated, the whole text
  contents: list[str]  # the same, stripped of delimiter, markers and white space at both ends
  prefixes: list[str]  # the text up to the end of each, stripped in the same way


def make(
  decode: Callable,
  *,
  boundary: str,
  delimiter: str = '',
  reasoning=None,
  max_reasoning_steps: int = 0,
) -> Callable:
  """Returns split(tokens, loss_mask=None) -> ReasoningSteps.

  A step contains something other than delimiters, markers and white space; blank text belongs to
  the step before it, or at the beginning to the first. The end of the reasoning ends a step.

  Args:
    decode: ids -> text.
    boundary: what ends a step: 'paragraph' (an empty line), 'line', 'delimiter', or 'turn' (the
      loss mask changes from 1 to 0; without a mask the completion is one step).
    reasoning: the two markers, or None.
    max_reasoning_steps: the last step holds everything from there on; 0: no limit.

  Raises:
    ValueError: unknown boundary, or boundary='delimiter' without a delimiter.
  """
  if boundary not in BOUNDARIES or (boundary == 'delimiter') != bool(delimiter):
    raise ValueError(
      f'boundary={boundary!r} delimiter={delimiter!r}, need one of {tuple(BOUNDARIES)}, and '
      "a delimiter for 'delimiter' alone"
    )
  marks = [mark for mark in (*(reasoning or ()), delimiter, delimiter.strip()) if mark]
  pattern = BOUNDARIES[boundary] or re.escape(delimiter)
  decoded_ids: dict[int, str] = {}  # id -> its text, decoded alone

  def split(tokens: list[int], loss_mask=None) -> ReasoningSteps:
    if not tokens:
      return ReasoningSteps([], [], [], [])
    text = decode(tokens)
    offset_of = _offset_function(tokens, decode, text, decoded_ids)
    if boundary == 'turn':
      ends = turn_ends([[1] * len(tokens) if loss_mask is None else loss_mask])[0]
      boundaries = [(end, offset_of(end)) for end in ends if end < len(tokens) - 1]
    else:
      boundaries = [
        (bisect.bisect_left(range(len(tokens)), offset, key=offset_of), offset)
        for offset in _text_boundaries(text, pattern, reasoning, marks)
      ]
    # Two boundaries completed by one token are one, and the last token ends the last step.
    offset_at = {end: offset for end, offset in boundaries if end < len(tokens) - 1}
    ends = sorted(offset_at)
    ends = ends[: max_reasoning_steps - 1] if max_reasoning_steps else ends
    stops = [*(offset_at[end] for end in ends), len(text)]
    texts = [text[start:stop] for start, stop in zip([0, *stops], stops)]
    return ReasoningSteps(
      [*ends, len(tokens) - 1],
      texts,
      [_strip(part, marks) for part in texts],
      [_strip(text[:stop], marks) for stop in stops],
    )

  return split


def _text_boundaries(text, pattern, reasoning, marks) -> list[int]:
  """Returns the character offsets at which steps end, ascending, without the end of the text."""
  candidates = {match.end() for match in re.finditer(pattern, text)} if pattern else set()
  if reasoning and reasoning[1] in text:
    candidates.add(text.index(reasoning[1]) + len(reasoning[1]))
  offsets: list[int] = []
  for offset in sorted(candidates):
    if _strip(text[offsets[-1] if offsets else 0 : offset], marks):
      offsets.append(offset)
    elif offsets:
      offsets[-1] = offset
  if offsets and not _strip(text[offsets[-1] :], marks):
    offsets.pop()
  return offsets


def _strip(text, marks):
  """Returns text without marks and white space at both ends."""
  while True:
    shorter = text.strip()
    for mark in marks:
      shorter = shorter.removeprefix(mark).removesuffix(mark)
    if shorter == text:
      return text
    text = shorter


def _offset_function(tokens, decode, text, decoded_ids) -> Callable[[int], int]:
  """Returns token index -> number of characters of the text that are complete with this token."""
  offsets = token_offsets(tokens, decode, text, decoded_ids)
  if offsets is not None:
    return offsets.__getitem__
  return lambda token: len(os.path.commonprefix([decode(tokens[: token + 1]), text]))


def token_offsets(tokens: list[int], decode, text: str, decoded_ids: dict) -> list[int] | None:
  """Returns for each token how many characters of text are complete with it, in linear time.

  Tokens are decoded one by one, or together where several make one character. None: the decoded
  pieces do not concatenate to the text, as with sentencepiece, which drops a leading space; then
  every prefix has to be decoded.

  Args:
    text: decode(tokens).
    decoded_ids: id -> its text, decoded alone; filled in.
  """
  offsets, first, offset = [], 0, 0
  for token in range(len(tokens)):
    if token == first:
      if tokens[token] not in decoded_ids:
        decoded_ids[tokens[token]] = decode(tokens[token : token + 1])
      piece = decoded_ids[tokens[token]]
    else:
      piece = decode(tokens[first : token + 1])
    if text.startswith(piece, offset):
      first, offset = token + 1, offset + len(piece)
    elif '\ufffd' not in piece or token - first >= MAX_TOKENS_PER_CHARACTER:
      return None
    offsets.append(offset)
  return offsets if offset == len(text) and first == len(tokens) else None
