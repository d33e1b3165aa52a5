"""Preference pairs for rare-disease cases: two answers to a case, the higher graded one is chosen.

Both are answers of the simulated reader that the warm-up imitates, without the rationale. So they
have the same format and differ only in how well the genes fit the case.
"""

import json

import numpy as np

from rft_jax.tasks import files
from rft_jax.tasks.rare_disease.cases import draw_cases
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.prompts import row, solution
from rft_jax.tasks.rare_disease.world import make_world

MAX_DRAWS = 16  # answers drawn per case; a case where all get the same grade has no pair


def make_pairs(
  config: Config, task_files: files.Files, count: int
) -> tuple[list[dict], list[dict]]:
  """Returns pairs for the last `count` training cases and for the validation cases, as rows.

  A row has `messages`, `gene`, `case_id`, `chosen` and `rejected`. Cases for which all drawn
  answers get the same grade are left out.
  """
  del task_files  # each of its solutions is a single answer; pairs need two
  world, cases = make_world(config), draw_cases(config)
  pairs_by_split = []
  for stream, (split, split_cases) in enumerate(
    (('train', cases['train'][-count:]), ('validation', cases['validation']))
  ):
    rng = np.random.default_rng((config.seed, 3, stream))
    first = len(cases[split]) - len(split_cases)
    pairs = [
      (case, f'{split}-{first + number:05d}', _pair(world, case, config, rng))
      for number, case in enumerate(split_cases, 1)
    ]
    pairs_by_split.append(
      [
        row(world, case, case_id, chosen=pair[0], rejected=pair[1])
        for case, case_id, pair in pairs
        if pair
      ]
    )
  return pairs_by_split[0], pairs_by_split[1]


def _pair(world, case, config, rng):
  """Returns [chosen, rejected], the first two answers that differ in grade; None without them."""
  gene, answers = world.genes[case.disease], {}
  for _ in range(MAX_DRAWS):
    text = solution(world, case, config, rng).rpartition('</think>')[2]
    answers.setdefault(_grade(text, gene), text)
    if len(answers) == 2:
      return [answers[grade] for grade in sorted(answers, reverse=True)]
  return None


def _grade(text, gene) -> float:
  genes = json.loads(text)['genes']
  return 0.7 ** genes.index(gene) if gene in genes else 0.0
