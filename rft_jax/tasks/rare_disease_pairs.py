"""Pairs of answers to rare-disease cases: two readings of a case, of which the better is chosen.

Both are answers of the reader that the warm-up imitates, without his rationale: what he makes of
some of the findings. So the two have one form, and what tells them apart is the case alone.
"""

import json

import numpy as np

from rft_jax.tasks import rare_disease

READINGS = 16  # drawn of a case before it is given up: all of them may be worth the same


def make(config: rare_disease.Config, made, count: int) -> tuple[list[dict], list[dict]]:
  """Returns pairs of the last `count` training cases and of those held out, as rows.

  A row has `messages`, `gene`, `case_id`, `chosen` and `rejected`. Cases of which every reading is
  worth the same are left out.
  """
  del made  # its solutions are one reading of each case
  world, cases = rare_disease.make_world(config), rare_disease.draw_cases(config)
  pairs_of = []
  for number, (split, some) in enumerate(
    (('train', cases['train'][-count:]), ('validation', cases['validation']))
  ):
    rng = np.random.default_rng((config.seed, 3, number))
    first = len(cases[split]) - len(some)
    pairs = [
      (case, f'{split}-{first + place:05d}', _pair(world, case, config, rng))
      for place, case in enumerate(some, 1)
    ]
    pairs_of.append(
      [
        rare_disease.row(world, case, name, chosen=pair[0], rejected=pair[1])
        for case, name, pair in pairs
        if pair
      ]
    )
  return pairs_of[0], pairs_of[1]


def _pair(world, case, config, rng):
  """Returns (better, worse), the first two readings of a case that differ in grade; None: none."""
  gene, seen = world.genes[case.disease], {}
  for _ in range(READINGS):
    text = rare_disease.solution(world, case, config, rng).rpartition('</think>')[2]
    seen.setdefault(_grade(text, gene), text)
    if len(seen) == 2:
      return [seen[grade] for grade in sorted(seen, reverse=True)]
  return None


def _grade(text, gene) -> float:
  genes = json.loads(text)['genes']
  return 0.7 ** genes.index(gene) if gene in genes else 0.0
