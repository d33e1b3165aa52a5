"""Arithmetic task: sums with one product, such as 17 + 28 * 3. Nothing is downloaded.

The warm-up solutions show the intermediate step, then the number alone:
<think>28 * 3 = 84; 17 + 84 = 101</think>101. Each digit is one token.
"""

import dataclasses

import numpy as np

from rft_jax.tasks import files

GRADER = {
  'type': 'string_check',
  'name': 'exact',
  'input': '{{ sample.output_text }}',
  'reference': '{{ item.answer }}',
  'operation': 'eq',
}
WRONG_ANSWER_OFFSETS = (-10, -2, -1, 1, 2, 10)  # wrong answer - right answer, for label noise


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """The set of problems, and the number of rows drawn from it."""

  seed: int = 0
  train_rows: int = 2000
  validation_rows: int = 300
  largest_term: int = 49  # that the product is added to or subtracted from
  largest_factor: int = 19
  largest_digit: int = 9  # largest second factor
  corrupt: float = 0.0  # fraction of the training answers replaced by a wrong number

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    fields = ('train_rows', 'validation_rows', 'largest_term', 'largest_factor', 'largest_digit')
    problems = [
      f'{name}={getattr(self, name)}, need >= 1' for name in fields if getattr(self, name) < 1
    ]
    if not 0 <= self.corrupt <= 1:
      problems.append(f'corrupt={self.corrupt}, need 0 to 1')
    if not problems and self.train_rows + self.validation_rows > self.problems():
      problems.append(
        f'train_rows={self.train_rows} validation_rows={self.validation_rows}, '
        f'need a sum of at most {self.problems()}, the number of problems'
      )
    return problems

  def problems(self) -> int:
    """Returns the number of different problems."""
    return 2 * self.largest_term * self.largest_factor * self.largest_digit


def problem(index: int, config: Config) -> tuple[int, str, int, int]:
  """Returns (term, sign, factor, digit) of the problem with that index, 0 to problems() - 1."""
  index, sign = divmod(index, 2)
  index, digit = divmod(index, config.largest_digit)
  term, factor = divmod(index, config.largest_factor)
  return term + 1, '+-'[sign], factor + 1, digit + 1


def row(term: int, sign: str, factor: int, digit: int) -> dict:
  """Returns the problem as a row: messages, answer, solution."""
  product = factor * digit
  total = term + product if sign == '+' else term - product
  return {
    'messages': [{'role': 'user', 'content': f'{term} {sign} {factor} * {digit}'}],
    'answer': str(total),
    'solution': f'<think>{factor} * {digit} = {product}; '
    f'{term} {sign} {product} = {total}</think>{total}',
  }


def wrong_answer(answer: str, rng: np.random.Generator) -> str:
  """Returns a number near the answer: off by 1, 2 or 10."""
  return str(int(answer) + int(rng.choice(WRONG_ANSWER_OFFSETS)))


def make(config: Config) -> files.Files:
  """Returns the task. Each problem occurs once, in train or in validation.

  Raises:
    ValueError: the config has problems; the error lists all of them.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['arithmetic:', *problems]))
  rng = np.random.default_rng(config.seed)
  indices = rng.permutation(config.problems())[: config.train_rows + config.validation_rows]
  rows = [row(*problem(int(index), config)) for index in indices]
  train = rows[config.validation_rows :]
  train = files.corrupt(
    train,
    'answer',
    config.corrupt,
    config.seed,
    lambda number, rng: wrong_answer(train[number]['answer'], rng),
  )
  return files.Files(
    train,
    rows[: config.validation_rows],
    GRADER,
    {'task': 'arithmetic', 'config': dataclasses.asdict(config), 'reference': {}},
  )
