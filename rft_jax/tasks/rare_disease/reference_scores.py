"""Exact scores of ideal and simple policies on rare-disease cases, computed without a model."""

import itertools

import numpy as np

from rft_jax.bootstrap import mean_with_interval
from rft_jax.tasks.rare_disease import simulator
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.simulator import Case, World


def reference_scores(world: World, cases: list[Case], config: Config) -> dict:
  """Returns mean grades over the cases, each as {'mean', 'low', 'high'}.

  bayes_optimal: expected grade of ranking by the posterior, the highest possible.
  bayes_optimal_on_these_labels: grade of the same ranking for the genes that were drawn.
  reader: expected grade of the warm-up solutions.
  every_vote: expected grade of the same rule applied to all present findings.
  """
  scores = ('bayes_optimal', 'bayes_optimal_on_these_labels', 'reader', 'every_vote')
  grades = {name: [] for name in scores}
  for case in cases:
    probabilities = simulator.posterior(world, case)
    ranking = simulator.best_ranking(probabilities)
    truth = np.eye(len(world.genes))[case.disease]
    grades['bayes_optimal'].append(simulator.expected_grade(probabilities, ranking))
    grades['bayes_optimal_on_these_labels'].append(simulator.expected_grade(truth, ranking))
    grades['reader'].append(float(probabilities @ reader_grades(world, case, config)))
    grades['every_vote'].append(
      float(probabilities @ simulator.grades_by_votes(simulator.votes(world, case.present)))
    )
  return {name: mean_with_interval(values) for name, values in grades.items()}


def reader_grades(world: World, case: Case, config: Config) -> np.ndarray:
  """Returns f64[K], the mean grade of a warm-up solution if the true gene were k.

  Exact: the mean over every subset of findings that may be read, and over the order of ties.
  """
  grades = np.zeros(len(world.genes))
  low, high = config.read_range
  for size in range(low, high + 1):
    subsets = list(itertools.combinations(case.present, min(size, len(case.present))))
    grades += np.mean(
      [simulator.grades_by_votes(simulator.votes(world, subset)) for subset in subsets], 0
    )
  return grades / (high - low + 1)
