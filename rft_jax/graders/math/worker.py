"""The process in which mathematical answers are verified: started as a file by pool.py.

It reads one JSON line for each call, [reference, answer], and writes one, [kind, details]. kind is
'equal', 'different', 'no_reference' (the reference spells no mathematics) or 'memory_limit'. It
knows nothing of rft_jax. Run it with -P: its folder holds a math.py.
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
JOINED = re.compile(r'[\s$]*(?:,\s*)?(?:and|or|,)[\s$]*')  # what makes two boxes one answer
TEXT = re.compile(r'\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+')
WORD = re.compile(r'[^\W\d_]{3,}|[^\W\d_]{2,}\s+[^\W\d_]{2,}')

# What people write and math-verify reads as something else.
GROUPS = re.compile(r'(?<![\d.,])\d{1,3}(?:(?:\\[,;!:]|\{,\}|~|[ \u00a0\u2009\u202f])\d{3})+(?!\d)')
EXPONENT = re.compile(r'(?<![\w.])\d+(?:\.\d+)?[eE][+-]?\d{1,3}(?!\w)')
MIXED = re.compile(r'(?<![\d/.])(\d+) +(\d+)/(\d+)(?![\d/])')


def main(limit_seconds: float, memory_limit_mb: int) -> None:
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no reply
  memory = memory_limit_mb << 20
  resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  try:
    read('1', is_reference=True)  # loads everything
    reply = ['ready', '']
  except Exception as error:
    reply = ['worker_failed', f'{type(error).__name__}: {error}']
  print(json.dumps(reply), file=replies, flush=True)
  for line in sys.stdin:
    # pool.py kills this process when its time is up. Should that one be gone, the system
    # does so a little later; a handler of Python's might never come to run.
    signal.setitimer(signal.ITIMER_REAL, 2 * limit_seconds + 5)
    try:
      reply = verify(*json.loads(line))
    except MemoryError:
      reply = ['memory_limit', f'needs more than {memory_limit_mb} MB']
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps(reply), file=replies, flush=True)


def verify(reference: str, answer: str) -> list[str]:
  """Returns [kind, details] for one answer."""
  gold = reference_of(reference)
  if gold is None:
    return ['no_reference', '']
  if answer.strip() == reference.strip():
    return ['equal', '']
  found = read(answer, is_reference=False)
  return ['equal' if any(equal(one, other) for one in gold for other in found) else 'different', '']


def equal(one, other) -> bool:
  """Returns whether other is equal to one, which is the reference's: verify is asymmetric."""
  import math_verify

  try:
    return math_verify.verify(one, other, timeout_seconds=None, raise_on_error=True)
  except MemoryError:
    raise
  except Exception:  # what cannot be compared is not equal
    return False


@functools.lru_cache(maxsize=1024)  # a reference serves all answers of its group
def reference_of(text: str) -> list | None:
  """Returns what read() does; None where that holds no mathematics."""
  found = read(text, is_reference=True)
  import sympy

  nothing = (sympy.nan, sympy.zoo)  # of 1/0: equal to nothing, itself included
  good = any(not isinstance(one, str) and not one.has(*nothing) for one in found)
  return found if good else None


def read(text: str, *, is_reference: bool) -> list:
  """Returns what text says in the end, as math_verify.parse does: [expression, its text] or []."""
  text = text.replace('\u2212', '-')
  if BOX.search(text):
    return _parse(_last_box(text))
  text = text.rpartition('####')[2].strip()  # GSM8K's mark before a final answer
  if ENVIRONMENT.search(text):
    return _parse(text)
  if _is_bare(text):
    return _parse(r'\boxed{' + _plain(text) + '}')
  # Prose: the last number, or the one after "answer".
  found = _parse(EXPONENT.sub(_written_out, text))
  if found or not is_reference:
    return found
  return _parse(r'\boxed{' + _plain(text) + '}')  # a reference of words, such as "no solution"


def _last_box(text: str) -> str:
  """Returns the last box, with those that "and", "or" or a comma join to it; '' if it is open."""
  boxes, position = [], 0
  while opening := BOX.search(text, position):
    end = _closing(text, opening.end())
    if end is None:
      return ''
    boxes.append((opening.start(), opening.end(), end))
    position = end + 1
  last = [boxes.pop()]
  while boxes and JOINED.fullmatch(text[boxes[-1][2] + 1 : last[0][0]]):
    last.insert(0, boxes.pop())
  return ' and '.join(r'\boxed{' + _plain(text[start:end]) + '}' for _, start, end in last)


def _closing(text: str, position: int) -> int | None:
  """Returns where the brace closes that was opened before position; None if nowhere."""
  depth = 1
  for brace in re.compile(r'\\.|[{}]', re.DOTALL).finditer(text, position):
    depth += {'{': 1, '}': -1}.get(brace[0], 0)
    if depth == 0:
      return brace.start()
  return None


def _is_bare(text: str) -> bool:
  """Returns whether text is mathematics by itself, or one word: not prose."""
  return len(text.split()) <= 1 or not WORD.search(TEXT.sub(' ', text))


def _plain(text: str) -> str:
  """Returns text in a spelling that math-verify reads rightly inside LaTeX."""
  text = text.strip().strip('*`').rstrip('.')
  if re.fullmatch(r'[^\W\d_]{3,}|[^\W\d_]{2,}(?:\s+[^\W\d_]+)+', text):
    return r'\text{' + text + '}'  # words: not the product of their letters, in any order
  text = GROUPS.sub(lambda match: re.sub(r'\D', '', match[0]), text)
  text = EXPONENT.sub(_written_out, text)
  return MIXED.sub(r'\1\\frac{\2}{\3}', text)


def _written_out(match: re.Match) -> str:
  return format(decimal.Decimal(match[0]), 'f')  # 1e5 as 100000, exactly


def _parse(text: str) -> list:
  import math_verify

  # first_match: where the last candidate cannot be read, nothing before it is taken instead.
  return math_verify.parse(
    text,
    [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()],
    extraction_mode='first_match',
    parsing_timeout=None,
  )


if __name__ == '__main__':
  main(float(sys.argv[1]), int(sys.argv[2]))
