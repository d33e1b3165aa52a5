"""Reasoning and answer: splits a completion at the end marker, such as </think>."""

import bisect
from collections.abc import Callable
from typing import NamedTuple


class ParsedCompletion(NamedTuple):
  """A completion, split into reasoning and answer."""

  reasoning: str | None  # None without configured markers
  output_text: str | None  # the answer, which is graded; None: the reasoning never ended
  reasoning_tokens: int  # up to and including the end marker; all tokens if there is none


def parse_completion(
  text: str, ids: list[int], markers, *, stop_ids: tuple[int, ...], decode: Callable
) -> ParsedCompletion:
  """Splits a completion at the first end marker of the reasoning.

  output_text is what follows that marker, without leading white space; trailing white space stays.
  The start marker may be missing, because many templates open the reasoning in the generation
  prompt.

  Args:
    text: `decode(ids)`.
    ids: the sampled ids, including the stop id if there is one.
    markers: (start, end), or None: output_text is the whole text, unchanged.
    stop_ids: not counted as reasoning tokens where the reasoning never ended.
    decode: ids -> text.
  """
  if markers is None:
    return ParsedCompletion(None, text, 0)
  start, end = markers
  before, marker, after = text.partition(end)
  reasoning = before.strip().removeprefix(start).strip()
  if not marker:
    return ParsedCompletion(reasoning, None, sum(token not in stop_ids for token in ids))
  # The shortest prefix of the tokens whose text contains the marker, which may span several tokens.
  last = bisect.bisect_left(range(len(ids)), True, key=lambda i: end in decode(ids[: i + 1]))
  return ParsedCompletion(reasoning, after.lstrip(), last + 1)
