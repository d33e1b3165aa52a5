r"""Arithmetic chains: sums of several terms with one product, solved one operation per line.

Example: 3 + 4 * 5 - 6. The warm-up solutions reduce the sum line by line, the product first, then
from the left: <think>4 * 5 = 20\n3 + 20 = 23\n23 - 6 = 17</think>17. STEP_GRADER is a process
grader for `credit`: a line is right if it follows from the lines before it, right or wrong.
"""

import dataclasses

import numpy as np

from rft_jax.tasks import files
from rft_jax.tasks.arithmetic import GRADER, wrong_answer

STEP_GRADER = {
  'type': 'python',
  'name': 'line',
  'source': '''\
def next_operation(terms):
  return terms.index('*') if '*' in terms else 1


def grade(sample, item):
  """1.0 if the line is the next operation on what remains of the sum after the lines before."""
  terms = item['messages'][-1]['content'].split()
  before = item['reasoning_step']['before']
  for line in before.split('\\n') if before else ():
    result = line.rpartition(' = ')[2]
    if len(terms) < 3 or not result.lstrip('-').isdigit():
      return 0.0
    at = next_operation(terms)
    terms[at - 1:at + 2] = [result]
  if len(terms) < 3:  # one number remains: the line must be the answer
    return float(sample['output_text'] == terms[0])
  at = next_operation(terms)
  a, b = int(terms[at - 1]), int(terms[at + 1])
  value = {'+': a + b, '-': a - b, '*': a * b}[terms[at]]
  return float(sample['output_text'] == f'{a} {terms[at]} {b} = {value}')
''',
}


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """The length of the sums, and the number of rows."""

  seed: int = 0
  train_rows: int = 4000
  validation_rows: int = 300
  operations: int = 3  # lines of a solution, one of them the product
  largest_term: int = 9
  corrupt: float = 0.0  # fraction of the training answers replaced by a wrong number

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    problems = [
      f'{name}={getattr(self, name)}, need >= 1'
      for name in ('train_rows', 'validation_rows', 'operations', 'largest_term')
      if getattr(self, name) < 1
    ]
    if not 0 <= self.corrupt <= 1:
      problems.append(f'corrupt={self.corrupt}, need 0 to 1')
    if not problems and 2 * (self.train_rows + self.validation_rows) > self.problems():
      problems.append(
        f'train_rows={self.train_rows} validation_rows={self.validation_rows}, '
        f'need a sum of at most {self.problems() // 2}: half of all problems'
      )
    return problems

  def problems(self) -> int:
    """Returns the number of different problems."""
    n = self.operations
    return self.largest_term ** (n + 1) * n * 2 ** (n - 1)


def draw_problem(rng, config: Config) -> list[str]:
  """Returns a random sum as tokens: terms with the operators between them."""
  terms = rng.integers(1, config.largest_term + 1, config.operations + 1)
  operators = rng.choice(['+', '-'], config.operations)
  operators[rng.integers(config.operations)] = '*'
  tokens = [str(terms[0])]
  for operator, term in zip(operators, terms[1:]):
    tokens += [str(operator), str(term)]
  return tokens


def solution_lines(terms: list[str]) -> list[str]:
  """Returns one line for each operation, in order of evaluation."""
  terms, lines = list(terms), []
  while len(terms) > 1:
    at = terms.index('*') if '*' in terms else 1
    a, b = int(terms[at - 1]), int(terms[at + 1])
    value = {'+': a + b, '-': a - b, '*': a * b}[terms[at]]
    lines.append(f'{a} {terms[at]} {b} = {value}')
    terms[at - 1 : at + 2] = [str(value)]
  return lines


def row(terms: list[str]) -> dict:
  """Returns the sum as a row: messages, answer, solution."""
  lines = solution_lines(terms)
  answer, thought = lines[-1].rpartition(' = ')[2], '\n'.join(lines)
  return {
    'messages': [{'role': 'user', 'content': ' '.join(terms)}],
    'answer': answer,
    'solution': f'<think>{thought}</think>{answer}',
  }


def make(config: Config) -> files.Files:
  """Returns the task. Each problem occurs once, in train or in validation.

  Raises:
    ValueError: the config has problems; the error lists all of them.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['chains:', *problems]))
  rng, sums = np.random.default_rng(config.seed), {}
  while len(sums) < config.train_rows + config.validation_rows:
    terms = draw_problem(rng, config)
    sums[' '.join(terms)] = terms
  rows = [row(terms) for terms in sums.values()]
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
    {'task': 'chains', 'config': dataclasses.asdict(config), 'reference': {}},
  )
