"""The generative model: acceptance, posterior, expected grades."""

import itertools
import math

import numpy as np
import pytest

from rft_jax.tasks.rare_disease import simulator


def small_world(**changes):
  """Returns a world of three genes and four findings without symmetries."""
  rng = np.random.default_rng(3)
  values = dict(
    genes=('A', 'B', 'C'),
    findings=('p', 'q', 'r', 's'),
    prior=np.array([0.5, 0.3, 0.2]),
    frequency=rng.uniform(0.1, 0.9, (3, 4)),
    listed=rng.random((3, 4)) < 0.5,
    onset=rng.dirichlet(np.ones(4), 3),
    male=np.array([0.5, 0.9, 0.3]),
    noted_present=0.8,
    noted_absent=0.15,
    present_range=(1, 2),
    absent_range=(0, 1),
  )
  return simulator.World(**(values | changes))


def every_accepted_case(world):
  """Yields every case that is accepted, with p(case, accepted | d) as a product over findings."""
  for notes in itertools.product('+-.', repeat=len(world.findings)):
    present = tuple(f for f, note in enumerate(notes) if note == '+')
    absent = tuple(f for f, note in enumerate(notes) if note == '-')
    if not (
      world.present_range[0] <= len(present) <= world.present_range[1]
      and world.absent_range[0] <= len(absent) <= world.absent_range[1]
    ):
      continue
    chance = [
      math.prod(
        {
          '+': p * world.noted_present,
          '-': (1 - p) * world.noted_absent,
          '.': p * (1 - world.noted_present) + (1 - p) * (1 - world.noted_absent),
        }[note]
        for note, p in zip(notes, row)
      )
      for row in world.frequency
    ]
    for onset, male in itertools.product(range(len(simulator.ONSETS)), (True, False)):
      sex = world.male if male else 1 - world.male
      yield (
        simulator.Case(present, absent, onset, male, disease=-1),
        np.array(chance) * world.onset[:, onset] * sex,
      )


def test_acceptance_probability_is_the_sum_over_all_accepted_cases():
  world = small_world()
  total = sum(chance for _, chance in every_accepted_case(world))
  np.testing.assert_allclose(np.exp(simulator.log_acceptance(world)), total, rtol=1e-12)


def test_posterior_is_bayes_rule_over_all_accepted_cases():
  world = small_world()
  acceptance = sum(chance for _, chance in every_accepted_case(world))
  for case, chance in every_accepted_case(world):
    joint = world.prior * chance / acceptance
    np.testing.assert_allclose(simulator.posterior(world, case), joint / joint.sum(), rtol=1e-10)


def test_posterior_is_the_frequency_of_genes_among_equal_drawn_cases():
  world, rng, counts = small_world(), np.random.default_rng(0), {}
  for _ in range(20000):
    case = simulator.draw_case(world, rng)
    key = case._replace(present=tuple(sorted(case.present)), disease=-1)
    counts.setdefault(key, np.zeros(3))[case.disease] += 1
  common = sorted(counts, key=lambda key: -counts[key].sum())[:20]
  for case in common:
    n, p = counts[case].sum(), simulator.posterior(world, case)
    spread = np.sqrt(p * (1 - p) / n)
    assert n > 100
    assert np.all(np.abs(counts[case] / n - p) < 4.5 * spread + 1e-9), (case, counts[case] / n, p)


def test_drawn_cases_are_in_range(world, cases):
  for case in cases:
    assert 3 <= len(case.present) <= 7 and len(case.absent) <= 4
    assert not set(case.present) & set(case.absent)


def test_a_world_without_accepted_cases_is_an_error():
  with pytest.raises(ValueError, match='widen the ranges'):
    simulator.draw_case(small_world(frequency=np.full((3, 4), 1e-9)), np.random.default_rng(0))


def test_no_ranking_beats_the_posterior():
  world = small_world(genes=tuple('ABC'))
  for case, _ in every_accepted_case(world):
    p = simulator.posterior(world, case)
    best = simulator.expected_grade(p, simulator.best_ranking(p))
    assert all(
      best >= simulator.expected_grade(p, ranking) - 1e-12
      for ranking in itertools.permutations(range(3))
    )


def test_swapping_two_genes_of_the_best_ranking_lowers_the_expected_grade(world, cases):
  for case in cases:
    p = simulator.posterior(world, case)
    ranking = simulator.best_ranking(p)
    best = simulator.expected_grade(p, ranking)
    for i, j in itertools.combinations(range(len(ranking)), 2):
      swapped = list(ranking)
      swapped[i], swapped[j] = swapped[j], swapped[i]
      assert simulator.expected_grade(p, swapped) < best


def test_tied_genes_share_the_grades_of_their_ranks_and_genes_without_votes_get_zero():
  grades = simulator.grades_by_votes(np.array([2, 1, 1, 0]))
  np.testing.assert_allclose(grades, [1, (0.7 + 0.49) / 2, (0.7 + 0.49) / 2, 0])
  np.testing.assert_allclose(
    simulator.grades_by_votes(np.ones(10, int)), np.full(10, (1 + 0.7 + 0.49 + 0.343 + 0.2401) / 10)
  )
