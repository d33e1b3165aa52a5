"""A completion split into steps: which token ends each, told by the text of the very ids sampled.

Nothing is encoded again. A border in the text belongs to the token that completes the character
before it, so that a delimiter may lie inside one token or across several.
"""

import bisect
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from rft_jax.objectives.reasoning_steps import turn_ends

BORDERS = {
  'paragraph': r'\n\s*\n',  # up to the last end of a line, so that an indentation stays behind it
  'line': r'\n\s*\n|\n',
  'turn': None,
  'delimiter': None,
}
LONGEST_CHARACTER = 8  # tokens that may be needed for the text of one; more is another trouble


class Steps(NamedTuple):
  """The steps of one completion."""

  ends: list[int]  # the last token of each, rising; the last is the completion's last
  texts: list[str]  # J pieces that make the decoded text, with their delimiters
  said: list[str]  # the same without delimiter, markers and white space at both ends
  so_far: list[str]  # all that was said up to the end of each


def make(
  decode: Callable, *, steps: str, delimiter: str = '', reasoning=None, max_steps: int = 0
) -> Callable:
  """Returns split(tokens, weights=None) -> Steps.

  A step holds something besides delimiters, markers and white space; what is blank belongs to
  the step before it, or at the beginning to the first. The end of the reasoning ends a step.

  Args:
    decode: ids -> text.
    steps: 'paragraph' (ends at an empty line), 'line', 'delimiter', or 'turn': where weights turn
      from 1 to 0, which without weights is one step.
    reasoning: the two markers, or None.
    max_steps: what follows the last but one belongs to the last; 0: as many as there are.

  Raises:
    ValueError: unknown steps, or steps='delimiter' without one.
  """
  if steps not in BORDERS or (steps == 'delimiter') != bool(delimiter):
    raise ValueError(
      f'steps={steps!r} delimiter={delimiter!r}, need one of {tuple(BORDERS)}, and '
      "a delimiter for 'delimiter' alone"
    )
  marks = [mark for mark in (*(reasoning or ()), delimiter, delimiter.strip()) if mark]
  pattern = BORDERS[steps] or re.escape(delimiter)
  pieces = {}  # of single ids

  def split(tokens: list[int], weights=None) -> Steps:
    if not tokens:
      return Steps([], [], [], [])
    text = decode(tokens)
    done = _completed(tokens, decode, text, pieces)
    if steps == 'turn':
      ends = turn_ends([[1] * len(tokens) if weights is None else weights])[0]
      places = [(end, done(end)) for end in ends if end < len(tokens) - 1]
    else:
      borders = _borders(text, pattern, reasoning, marks)
      places = [
        (bisect.bisect_left(range(len(tokens)), border, key=done), border) for border in borders
      ]
    # Two borders completed by one token are one, and the last token ends the last step.
    ends = {end: border for end, border in places if end < len(tokens) - 1}
    last = sorted(ends)[: max_steps - 1] if max_steps else sorted(ends)
    borders = [*(ends[end] for end in last), len(text)]
    return Steps(
      [*last, len(tokens) - 1],
      [text[a:b] for a, b in zip([0, *borders], borders)],
      [_said(text[a:b], marks) for a, b in zip([0, *borders], borders)],
      [_said(text[:b], marks) for b in borders],
    )

  return split


def _borders(text, pattern, reasoning, marks) -> list[int]:
  """Returns where steps end in the text, rising, without its own end."""
  found = {match.end() for match in re.finditer(pattern, text)} if pattern else set()
  if reasoning and reasoning[1] in text:
    found.add(text.index(reasoning[1]) + len(reasoning[1]))
  borders = []
  for border in sorted(found):
    if _said(text[borders[-1] if borders else 0 : border], marks):
      borders.append(border)
    elif borders:
      borders[-1] = border
  if borders and not _said(text[borders[-1] :], marks):
    borders.pop()
  return borders


def _said(piece, marks):
  """Returns piece without marks and white space at both ends."""
  while True:
    shorter = piece.strip()
    for mark in marks:
      shorter = shorter.removeprefix(mark).removesuffix(mark)
    if shorter == piece:
      return piece
    piece = shorter


def _completed(tokens, decode, text, pieces) -> Callable[[int], int]:
  """Returns token -> how many characters of the text are complete with it."""
  known = _piecewise(tokens, decode, text, pieces)
  if known is not None:
    return known.__getitem__
  return lambda token: len(os.path.commonprefix([decode(tokens[: token + 1]), text]))


def _piecewise(tokens, decode, text, pieces) -> list[int] | None:
  """Returns the characters complete with each token, or None where pieces do not make the text.

  Token by token, or by the few that hold one character together. A tokenizer whose tokens read
  otherwise alone than in company (the space that sentencepiece drops) is asked for prefixes.
  """
  done, begin, place = [], 0, 0
  for token in range(len(tokens)):
    if token == begin:
      if tokens[token] not in pieces:
        pieces[tokens[token]] = decode(tokens[token : token + 1])
      piece = pieces[tokens[token]]
    else:
      piece = decode(tokens[begin : token + 1])
    if text.startswith(piece, place):
      begin, place = token + 1, place + len(piece)
    elif '\ufffd' not in piece or token - begin >= LONGEST_CHARACTER:
      return None
    done.append(place)
  return done if place == len(text) and begin == len(tokens) else None
