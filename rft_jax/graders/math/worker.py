"""The worker of a math grader: verifies answers with math-verify; started as a file by pool.py.

It reads one JSON line for each call, [reference, answer], and writes one, [kind, details]. kind is
'equal', 'different', 'no_reference' (the reference is not a mathematical expression) or
'memory_limit'. It does not import rft_jax. Run it with -P, because its folder contains a math.py.
"""

import decimal
import functools
import json
import os
import re
import resource
import signal
import sys

BOX = re.compile(r'\\(?:boxed|fbox)\s*\{')
ENVIRONMENT = re.compile(r'\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\]', re.DOTALL)
BOX_SEPARATOR = re.compile(r'[\s$]*(?:,\s*)?(?:and|or|,)[\s$]*')  # makes two boxes one answer
TEXT_COMMAND = re.compile(r'\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+')
WORD = re.compile(r'[^\W\d_]{3,}|[^\W\d_]{2,}\s+[^\W\d_]{2,}')

# Common notations that math-verify misreads.
DIGIT_GROUPS = re.compile(
  r'(?<![\d.,])\d{1,3}(?:(?:\\[,;!:]|\{,\}|~|[ \u00a0\u2009\u202f])\d{3})+(?!\d)'
)
EXPONENT = re.compile(r'(?<![\w.])\d+(?:\.\d+)?[eE][+-]?\d{1,3}(?!\w)')
MIXED_NUMBER = re.compile(r'(?<![\d/.])(\d+) +(\d+)/(\d+)(?![\d/])')


def main(time_limit_seconds: float, memory_limit_mb: int) -> None:
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # output of libraries is not a reply
  memory = memory_limit_mb << 20
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  try:
    parse_final_answer('1', is_reference=True)  # imports all that later calls need
    reply = ['ready', '']
  except Exception as error:
    reply = ['worker_failed', f'{type(error).__name__}: {error}']
  print(json.dumps(reply), file=replies, flush=True)
  for line in sys.stdin:
    # pool.py kills this process at its time limit. If the pool is gone, SIGALRM does so a little
    # later, without a Python handler, which might never run.
    signal.setitimer(signal.ITIMER_REAL, 2 * time_limit_seconds + 5)
    try:
      reply = verify(*json.loads(line))
    except MemoryError:
      reply = ['memory_limit', f'needs more than {memory_limit_mb} MB']
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(reply), file=replies, flush=True)


def verify(reference: str, answer: str) -> list[str]:
  """Returns [kind, details] for one answer."""
  reference_values = parse_reference(reference)
  if reference_values is None:
    return ['no_reference', '']
  if answer.strip() == reference.strip():
    return ['equal', '']
  answer_values = parse_final_answer(answer, is_reference=False)
  is_correct = any(
    is_equal(expected, value) for expected in reference_values for value in answer_values
  )
  return ['equal' if is_correct else 'different', '']


def is_equal(expected, value) -> bool:
  """Returns whether value equals expected, the reference's: math_verify.verify is asymmetric."""
  import math_verify

  try:
    return math_verify.verify(expected, value, timeout_seconds=None, raise_on_error=True)
  except MemoryError:
    raise
  except Exception:  # values that cannot be compared are not equal
    return False


@functools.lru_cache(maxsize=1024)  # all answers of a group have the same reference
def parse_reference(text: str) -> list | None:
  """Returns parse_final_answer(text); None if it contains no mathematical expression."""
  values = parse_final_answer(text, is_reference=True)
  import sympy

  undefined = (sympy.nan, sympy.zoo)  # of 1/0: not even equal to themselves
  is_valid = any(not isinstance(value, str) and not value.has(*undefined) for value in values)
  return values if is_valid else None


def parse_final_answer(text: str, *, is_reference: bool) -> list:
  """Returns the final answer in text, as math_verify.parse does: [expression, its text] or []."""
  text = text.replace('\u2212', '-')
  if BOX.search(text):
    return _parse(_last_box(text))
  text = text.rpartition('####')[2].strip()  # GSM8K's marker of the final answer
  if ENVIRONMENT.search(text):
    return _parse(text)
  if _is_bare(text):
    return _parse(r'\boxed{' + _plain(text) + '}')
  # Prose: the last number, or the one after "answer".
  values = _parse(EXPONENT.sub(_written_out, text))
  if values or not is_reference:
    return values
  return _parse(r'\boxed{' + _plain(text) + '}')  # a reference of words, such as "no solution"


def _last_box(text: str) -> str:
  """Returns the last box, with those joined to it by a separator; '' if it is not closed."""
  boxes, position = [], 0
  while opening := BOX.search(text, position):
    end = _closing(text, opening.end())
    if end is None:
      return ''
    boxes.append((opening.start(), opening.end(), end))
    position = end + 1
  last = [boxes.pop()]
  while boxes and BOX_SEPARATOR.fullmatch(text[boxes[-1][2] + 1 : last[0][0]]):
    last.insert(0, boxes.pop())
  return ' and '.join(r'\boxed{' + _plain(text[start:end]) + '}' for _, start, end in last)


def _closing(text: str, position: int) -> int | None:
  """Returns the position of the brace that closes the one before position; None if missing."""
  depth = 1
  for brace in re.compile(r'\\.|[{}]', re.DOTALL).finditer(text, position):
    depth += {'{': 1, '}': -1}.get(brace[0], 0)
    if depth == 0:
      return brace.start()
  return None


def _is_bare(text: str) -> bool:
  """Returns whether text is only an expression, or one word: not prose."""
  return len(text.split()) <= 1 or not WORD.search(TEXT_COMMAND.sub(' ', text))


def _plain(text: str) -> str:
  """Returns text in a notation that math-verify reads correctly inside LaTeX."""
  text = text.strip().strip('*`').rstrip('.')
  if re.fullmatch(r'[^\W\d_]{3,}|[^\W\d_]{2,}(?:\s+[^\W\d_]+)+', text):
    return r'\text{' + text + '}'  # words: not the product of their letters, in any order
  text = DIGIT_GROUPS.sub(lambda match: re.sub(r'\D', '', match[0]), text)
  text = EXPONENT.sub(_written_out, text)
  return MIXED_NUMBER.sub(r'\1\\frac{\2}{\3}', text)


def _written_out(match: re.Match) -> str:
  return format(decimal.Decimal(match[0]), 'f')  # 1e5 as 100000, exactly


def _parse(text: str) -> list:
  import math_verify

  # first_match: if the last candidate cannot be parsed, no earlier one is used instead.
  return math_verify.parse(
    text,
    [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()],
    extraction_mode='first_match',
    parsing_timeout=None,
  )


if __name__ == '__main__':
  main(float(sys.argv[1]), int(sys.argv[2]))
