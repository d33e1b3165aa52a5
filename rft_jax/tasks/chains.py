r"""Sums of several terms with one product, such as 3 + 4 * 5 - 6: one line for each operation.

The solutions to warm up on reduce the sum line by line, the product first, then from the left:
<think>4 * 5 = 20\n3 + 20 = 23\n23 - 6 = 17</think>17. STEP_GRADER tells of each line whether it
is the right one to follow those before it, whatever they have made of the sum: for `credit`.
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
  """1.0 if the line is the next reduction of what the lines before have left of the sum."""
  terms = item['messages'][-1]['content'].split()
  for line in item['reasoning_step']['before'].split('\\n') if item['reasoning_step']['before'] else ():
    said = line.rpartition(' = ')[2]
    if len(terms) < 3 or not said.lstrip('-').isdigit():
      return 0.0
    at = next_operation(terms)
    terms[at - 1:at + 2] = [said]
  if len(terms) < 3:  # nothing is left to do but to answer
    return float(sample['output_text'] == terms[0])
  at = next_operation(terms)
  a, b = int(terms[at - 1]), int(terms[at + 1])
  value = {'+': a + b, '-': a - b, '*': a * b}[terms[at]]
  return float(sample['output_text'] == f'{a} {terms[at]} {b} = {value}')
''',
}


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """How long the sums are, and how many rows are drawn from them."""

  seed: int = 0
  train_rows: int = 4000
  validation_rows: int = 300
  operations: int = 3  # lines of a solution; one of them is the product
  largest_term: int = 9
  corrupt: float = 0.0  # share of the training answers that are replaced by a wrong number

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
    """Returns how many different problems there are."""
    n = self.operations
    return self.largest_term ** (n + 1) * n * 2 ** (n - 1)


def problem(rng, config: Config) -> list[str]:
  """Draws a sum, as terms with the operators between them."""
  terms = rng.integers(1, config.largest_term + 1, config.operations + 1)
  operators = rng.choice(['+', '-'], config.operations)
  operators[rng.integers(config.operations)] = '*'
  drawn = [str(terms[0])]
  for operator, term in zip(operators, terms[1:]):
    drawn += [str(operator), str(term)]
  return drawn


def lines_of(terms: list[str]) -> list[str]:
  """Returns a line for each operation, in the order in which they are done."""
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
  lines = lines_of(terms)
  answer, thought = lines[-1].rpartition(' = ')[2], '\n'.join(lines)
  return {
    'messages': [{'role': 'user', 'content': ' '.join(terms)}],
    'answer': answer,
    'solution': f'<think>{thought}</think>{answer}',
  }


def make(config: Config) -> files.Files:
  """Returns the task. Each problem occurs once, in train or in validation.

  Raises:
    ValueError: the config has problems; all of them are named.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['chains:', *problems]))
  rng, chosen = np.random.default_rng(config.seed), {}
  while len(chosen) < config.train_rows + config.validation_rows:
    terms = problem(rng, config)
    chosen[' '.join(terms)] = terms
  rows = [row(terms) for terms in chosen.values()]
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
