"""Draws the cases of the rare-disease task, without duplicates, and wrong genes for label noise."""

import numpy as np

from rft_jax.tasks.rare_disease import simulator
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.simulator import Case, World
from rft_jax.tasks.rare_disease.world import make_world


def draw_cases(config: Config) -> dict[str, list[Case]]:
  """Returns the cases of 'validation' and 'train'; no two of them have the same prompt.

  Raises:
    ValueError: the world has too few cases.
  """
  world, rng = make_world(config), np.random.default_rng((config.seed, 1))
  keys, cases = set(), {}
  for split, count in (('validation', config.validation_rows), ('train', config.train_rows)):
    cases[split] = []
    for _ in range(20 * count):
      if len(cases[split]) == count:
        break
      case = simulator.draw_case(world, rng)
      # Without the disease, so that dropping duplicates leaves the posterior as it is.
      key = (frozenset(case.present), frozenset(case.absent), case.onset, case.male)
      if key in keys:
        continue
      keys.add(key)
      cases[split].append(case)
    if len(cases[split]) < count:
      raise ValueError(
        f'{split}_rows={count}, but this world has only {len(cases[split])} different '
        'cases in 20 draws per row: ask for fewer rows or more findings'
      )
  return cases


def wrong_gene(world: World, case: Case, rng: np.random.Generator) -> str:
  """Returns a plausible gene that is not the case's.

  Genes are drawn in proportion to the number of the case's present findings that the textbook
  lists under them; uniformly if it lists none under any other gene.
  """
  votes = simulator.votes(world, case.present).astype(float)
  votes[case.disease] = 0
  if not votes.any():
    votes[:] = 1
    votes[case.disease] = 0
  return world.genes[int(rng.choice(len(votes), p=votes / votes.sum()))]
