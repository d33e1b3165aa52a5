"""Exact scores of the simulated reader and of the Bayes-optimal ranking."""

import json
import math

import numpy as np

from rft_jax.tasks import rare_disease
from rft_jax.tasks.rare_disease import prompts, reference_scores


def test_reader_is_below_bayes_optimal_and_that_is_below_nine_tenths():
  scores = rare_disease.make(rare_disease.Config(train_rows=1)).metadata['reference']
  assert scores['reader']['mean'] < 0.62
  assert scores['reader']['high'] < scores['bayes_optimal']['low']
  assert scores['every_vote']['mean'] < scores['bayes_optimal']['mean'] < 0.9
  for score in scores.values():
    assert score['low'] < score['mean'] < score['high']


def test_exact_reader_grade_is_the_mean_over_sampled_solutions(world, cases, config):
  case, rng = cases[0], np.random.default_rng(0)
  expected = reference_scores.reader_grades(world, case, config)
  grades = np.zeros((3000, len(world.genes)))
  for i in range(len(grades)):
    answer = prompts.solution(world, case, config, rng).split('</think>')[1]
    for rank, gene in enumerate(json.loads(answer)['genes']):
      grades[i, world.genes.index(gene)] = 0.7**rank
  error = grades.std(0) / math.sqrt(len(grades))
  assert np.all(np.abs(grades.mean(0) - expected) < 4.5 * error + 1e-9)
