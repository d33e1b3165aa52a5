"""Preference pairs for the arithmetic tasks: a right solution and one with an error in one step.

The error changes the result of one step by 1, by 10, or by one of the step's operands, like a
forgotten carry or a miscounted product. Later steps are computed correctly from the wrong number,
so the two solutions have the same format and nearly the same length.
"""

import operator
import re

import numpy as np

from rft_jax.tasks import files

STEP = re.compile(r'(-?\d+) ([-+*]) (-?\d+) = (-?\d+)')
_OPERATORS = {'+': operator.add, '-': operator.sub, '*': operator.mul}


def make_pairs(config, task_files: files.Files, count: int) -> tuple[list[dict], list[dict]]:
  """Returns pairs for the last `count` training rows, and for all validation rows.

  Args:
    config: Config of arithmetic or chains; its seed is used.
    task_files: what `make` of that task returned.
  """
  return (
    pairs(task_files.train[-count:], seed=config.seed),
    pairs(task_files.validation, seed=config.seed),
  )


def pairs(rows: list[dict], *, seed: int) -> list[dict]:
  """Returns the rows with `chosen`, the solution, and `rejected`, one with an error.

  Args:
    rows: of arithmetic or chains, with `solution`; their other keys are kept.
    seed: of the errors; the error of a row depends on the seed and the row's position alone.
  """
  return [
    {
      **{key: value for key, value in row.items() if key != 'solution'},
      'chosen': row['solution'],
      'rejected': introduce_error(row['solution'], np.random.default_rng((seed, position))),
    }
    for position, row in enumerate(rows)
  ]


def introduce_error(solution: str, rng: np.random.Generator) -> str:
  """Returns the solution with an error in one of its steps, and so a wrong answer.

  Args:
    solution: '<think>28 * 3 = 84; 17 + 84 = 101</think>101'.
    rng: draws the step and the error.

  Raises:
    ValueError: the solution has no step.
  """
  thought, marker, answer = solution.rpartition('</think>')
  steps = list(STEP.finditer(thought))
  if not marker or not steps or steps[-1][4] != answer:
    raise ValueError(f'{solution!r}: need <think>steps such as 2 * 3 = 6</think> and the answer')
  while True:  # again if later steps cancel the error
    text, value = _with_error_in_a_step(thought, steps, rng)
    if str(value) != answer:
      return f'{text}{marker}{value}'


def _with_error_in_a_step(thought, steps, rng):
  """Returns (the thought with an error in a random step and in all that depend on it, result)."""
  wrong_step = int(rng.integers(len(steps)))
  text, end, replacements = '', 0, {}
  for index, step in enumerate(steps):
    left, sign, right, result = step.groups()
    # At most one operand is the result of an earlier step, usually the second one.
    if right in replacements:
      right = replacements[right]
    elif left in replacements:
      left = replacements[left]
    value = _OPERATORS[sign](int(left), int(right))
    if index == wrong_step:
      value += _error(int(left), int(right), rng)
    if str(value) != result:
      replacements[result] = str(value)
    text += thought[end : step.start()] + f'{left} {sign} {right} = {value}'
    end = step.end()
  return text + thought[end:], value


def _error(left, right, rng) -> int:
  """Returns the error of a result, not 0: 1, 10 or an operand, of random sign."""
  sizes = sorted({1, 10, abs(left), abs(right)} - {0})
  return int(rng.choice(sizes)) * int(rng.choice((-1, 1)))
