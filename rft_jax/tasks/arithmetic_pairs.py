"""Pairs of worked answers to sums: a right one, and one with a slip that is carried on.

A slip changes the result of one step: by one, by ten, or by one of the step's own numbers, as a
forgotten carry or a miscounted product does. Later steps are right about the wrong number, so that
the two answers have the same form and nearly the same length.
"""

import operator
import re

import numpy as np

STEP = re.compile(r'(-?\d+) ([-+*]) (-?\d+) = (-?\d+)')
_APPLY = {'+': operator.add, '-': operator.sub, '*': operator.mul}


def make(config, made, count: int) -> tuple[list[dict], list[dict]]:
  """Returns pairs of the last `count` rows to learn from, and of those held out.

  Args:
    config: of the task; its seed.
    made: files.Files of arithmetic or chains.
  """
  return (pairs(made.train[-count:], seed=config.seed), pairs(made.validation, seed=config.seed))


def pairs(rows: list[dict], *, seed: int) -> list[dict]:
  """Returns for each row one with `chosen`, its solution, and `rejected`, one that slipped.

  Args:
    rows: of rft_jax.tasks.arithmetic, with `solution`; their other keys stay.
    seed: of the slips; a row's slip depends on the seed and its place alone.
  """
  return [
    {
      **{key: value for key, value in row.items() if key != 'solution'},
      'chosen': row['solution'],
      'rejected': slipped(row['solution'], np.random.default_rng((seed, place))),
    }
    for place, row in enumerate(rows)
  ]


def slipped(solution: str, rng: np.random.Generator) -> str:
  """Returns the solution with a slip in one of its steps, and a wrong answer at its end.

  Args:
    solution: '<think>28 * 3 = 84; 17 + 84 = 101</think>101'.
    rng: chooses step and slip.

  Raises:
    ValueError: there is no step in it.
  """
  thought, mark, answer = solution.rpartition('</think>')
  steps = list(STEP.finditer(thought))
  if not mark or not steps or steps[-1][4] != answer:
    raise ValueError(f'{solution!r}: need <think>steps such as 2 * 3 = 6</think> and the answer')
  while True:  # a slip that later steps make up for is drawn again
    text, value = _with_a_slip(thought, steps, rng)
    if str(value) != answer:
      return f'{text}{mark}{value}'


def _with_a_slip(thought, steps, rng):
  """Returns (the thought with one step off and the later ones right about that, its result)."""
  at = int(rng.integers(len(steps)))
  text, end, wrong = '', 0, {}
  for number, step in enumerate(steps):
    left, sign, right, result = step.groups()
    # The number that a step takes over from one before is most often its second.
    if right in wrong:
      right = wrong[right]
    elif left in wrong:
      left = wrong[left]
    value = _APPLY[sign](int(left), int(right))
    if number == at:
      value += _slip(int(left), int(right), rng)
    if str(value) != result:
      wrong[result] = str(value)
    text += thought[end : step.start()] + f'{left} {sign} {right} = {value}'
    end = step.end()
  return text + thought[end:], value


def _slip(left, right, rng) -> int:
  """Returns by how much a result is off; never 0."""
  sizes = sorted({1, 10, abs(left), abs(right)} - {0})
  return int(rng.choice(sizes)) * int(rng.choice((-1, 1)))
