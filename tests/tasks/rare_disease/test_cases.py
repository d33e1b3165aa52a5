"""Drawing different cases, and wrong genes for label noise."""

import numpy as np
import pytest

from rft_jax.tasks import rare_disease
from rft_jax.tasks.rare_disease import cases, simulator


def test_a_world_with_too_few_cases_is_an_error():
  config = rare_disease.Config(
    genes=2,
    findings=4,
    noise_findings=0,
    noise_listed=0,
    look_alikes=2,
    absent_range=(0, 0),
    present_range=(1, 1),
    train_rows=100,
    validation_rows=1,
  )
  with pytest.raises(ValueError, match='train_rows=100, but this world has only'):
    rare_disease.make(config)


def test_a_case_without_another_listed_gene_gets_any_other_gene(world):
  case = simulator.Case((), (), 0, True, 3)
  genes = {cases.wrong_gene(world, case, np.random.default_rng(seed)) for seed in range(200)}
  assert genes == set(world.genes) - {world.genes[3]}
