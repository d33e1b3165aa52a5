"""The world of rare diseases: its mathematics, its reader, its rows and its grader."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from rft_jax import graders
from rft_jax.tasks import rare_disease, simulator

CONFIG = rare_disease.Config(train_rows=60, validation_rows=30)


@pytest.fixture(scope='module')
def world():
  return rare_disease.make_world(CONFIG)


@pytest.fixture(scope='module')
def made():
  return rare_disease.make(CONFIG)


@pytest.fixture(scope='module')
def cases(world):
  rng = np.random.default_rng(7)
  return [simulator.draw(world, rng) for _ in range(40)]


def small_world(**changes):
  """Three genes, four findings, unequal in everything."""
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


def every_kept_case(world):
  """All that a case can say, each with its p(case, kept | d) written out finding by finding."""
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


# --- the mathematics -----------------------------------------------------------------------------
def test_chance_of_a_kept_case_is_the_sum_over_all_kept_cases():
  world = small_world()
  total = sum(chance for _, chance in every_kept_case(world))
  np.testing.assert_allclose(np.exp(simulator.log_kept(world)), total, rtol=1e-12)


def test_posterior_is_bayes_rule_over_all_kept_cases():
  world = small_world()
  kept = sum(chance for _, chance in every_kept_case(world))
  for case, chance in every_kept_case(world):
    joint = world.prior * chance / kept
    np.testing.assert_allclose(simulator.posterior(world, case), joint / joint.sum(), rtol=1e-10)


def test_posterior_is_the_share_of_genes_among_equal_drawn_cases():
  world, rng, counts = small_world(), np.random.default_rng(0), {}
  for _ in range(20000):
    case = simulator.draw(world, rng)
    key = case._replace(present=tuple(sorted(case.present)), disease=-1)
    counts.setdefault(key, np.zeros(3))[case.disease] += 1
  common = sorted(counts, key=lambda key: -counts[key].sum())[:20]
  for case in common:
    n, p = counts[case].sum(), simulator.posterior(world, case)
    spread = np.sqrt(p * (1 - p) / n)
    assert n > 100
    assert np.all(np.abs(counts[case] / n - p) < 4.5 * spread + 1e-9), (case, counts[case] / n, p)


def test_drawn_cases_keep_to_the_ranges(world, cases):
  for case in cases:
    assert 3 <= len(case.present) <= 7 and len(case.absent) <= 4
    assert not set(case.present) & set(case.absent)


def test_a_world_that_keeps_no_case_says_so():
  with pytest.raises(ValueError, match='widen the ranges'):
    simulator.draw(small_world(frequency=np.full((3, 4), 1e-9)), np.random.default_rng(0))


def test_no_ranking_beats_the_posterior():
  world = small_world(genes=tuple('ABC'))
  for case, _ in every_kept_case(world):
    p = simulator.posterior(world, case)
    best = simulator.expected_grade(p, simulator.best_ranking(p))
    assert all(
      best >= simulator.expected_grade(p, ranking) - 1e-12
      for ranking in itertools.permutations(range(3))
    )


def test_swapping_two_unequal_genes_of_the_best_ranking_costs_grade(world, cases):
  for case in cases:
    p = simulator.posterior(world, case)
    ranking = simulator.best_ranking(p)
    best = simulator.expected_grade(p, ranking)
    for i, j in itertools.combinations(range(len(ranking)), 2):
      swapped = list(ranking)
      swapped[i], swapped[j] = swapped[j], swapped[i]
      assert simulator.expected_grade(p, swapped) < best


def test_ties_share_their_ranks_and_unvoted_genes_get_nothing():
  grades = simulator.tied_grades(np.array([2, 1, 1, 0]))
  np.testing.assert_allclose(grades, [1, (0.7 + 0.49) / 2, (0.7 + 0.49) / 2, 0])
  np.testing.assert_allclose(
    simulator.tied_grades(np.ones(10, int)), np.full(10, (1 + 0.7 + 0.49 + 0.343 + 0.2401) / 10)
  )


# --- the reader ----------------------------------------------------------------------------------
def test_the_reader_is_below_what_can_be_had_and_that_is_below_nine_tenths():
  scores = rare_disease.make(rare_disease.Config(train_rows=1)).facts['reference']
  assert scores['reader']['mean'] < 0.62
  assert scores['reader']['high'] < scores['bayes_optimal']['low']
  assert scores['every_vote']['mean'] < scores['bayes_optimal']['mean'] < 0.9
  for score in scores.values():
    assert score['low'] < score['mean'] < score['high']


def test_prompt_and_solution_do_not_depend_on_the_true_gene(world, cases):
  for case in cases:
    others = [case._replace(disease=k) for k in range(len(world.genes))]
    assert len({rare_disease.prompt(world, c) for c in others}) == 1
    assert (
      len({rare_disease.solution(world, c, CONFIG, np.random.default_rng(1)) for c in others}) == 1
    )


def test_solution_names_only_findings_that_are_present_and_what_the_textbook_lists(world, cases):
  for seed, case in enumerate(cases):
    text = rare_disease.solution(world, case, CONFIG, np.random.default_rng(seed))
    reading, tally = text.removeprefix('<think>').split('</think>')[0].split('. ')
    tallied = dict.fromkeys(world.genes, 0)
    for line in reading.split('; '):
      finding = next(f for f in case.present if line.startswith(world.findings[f]))
      listed = line.removeprefix(world.findings[finding]).split()
      assert listed == [g for g, yes in zip(world.genes, world.listed[:, finding]) if yes]
      for gene in listed:
        tallied[gene] += 1
    ranked = json.loads(text.split('</think>')[1])['genes']
    voted = [tallied[gene] for gene in ranked]
    assert voted == sorted(tallied.values(), reverse=True)[: len(ranked)] and min(voted) > 0
    assert tally == f'{voted[0]} vote{"s" * (voted[0] > 1)} for {ranked[0]}'


def test_exact_grade_of_the_reader_is_the_mean_over_his_solutions(world, cases):
  case, rng = cases[0], np.random.default_rng(0)
  expected = rare_disease.reader_grade(world, case, CONFIG)
  graded = np.zeros((3000, len(world.genes)))
  for i in range(len(graded)):
    answer = rare_disease.solution(world, case, CONFIG, rng).split('</think>')[1]
    for place, gene in enumerate(json.loads(answer)['genes']):
      graded[i, world.genes.index(gene)] = 0.7**place
  error = graded.std(0) / math.sqrt(len(graded))
  assert np.all(np.abs(graded.mean(0) - expected) < 4.5 * error + 1e-9)


# --- rows and grader -----------------------------------------------------------------------------
def test_the_same_seed_makes_the_same_files_and_another_seed_others(made):
  assert rare_disease.make(CONFIG) == made
  other = rare_disease.make(dataclasses.replace(CONFIG, seed=1))
  assert other.facts['world'] != made.facts['world'] and other.train != made.train


def test_more_training_rows_leave_the_validation_rows_as_they_are(made):
  more = rare_disease.make(dataclasses.replace(CONFIG, train_rows=90))
  assert more.validation == made.validation and more.train[:60] == made.train


def test_no_case_is_in_both_parts_or_twice(made):
  def key(row):
    first, *lists = row['messages'][0]['content'].split('\n')
    return first, *(frozenset(line.split(': ')[1].rstrip('.').split(', ')) for line in lists[:2])

  keys = [key(row) for row in made.train + made.validation]
  assert len(set(keys)) == len(keys) == 90


def test_no_prompt_names_a_gene(made):
  genes = made.facts['world']['genes']
  for row in made.train + made.validation:
    assert row['gene'] in genes
    assert not any(gene in row['messages'][0]['content'] for gene in genes)


def test_files_are_json_all_through(made):
  assert json.loads(json.dumps([made.train, made.validation, made.grader])) == [*made[:3]]
  assert np.array(json.loads(json.dumps(made.facts))['world']['frequency']).shape == (12, 30)


def test_grader_scores_every_solution_as_computed_directly(made):
  grade = graders.make(made.grader)
  try:
    for row in made.train[:20]:
      answer = row['solution'].split('</think>')[1]
      genes = json.loads(answer)['genes']
      expected = 0.7 ** genes.index(row['gene']) if row['gene'] in genes else 0.0
      found = grade(row, {'output_text': answer, 'output_json': json.loads(answer)})
      assert found.reward == pytest.approx(expected) and not found.errors
  finally:
    grade.close()


@pytest.mark.parametrize(
  'text, reward',
  [
    ('{"explanation": "", "genes": ["X", "X", "ABRX"]}', 0.7),
    ('{"explanation": "", "genes": [" abrx "]}', 1.0),
    ('{"explanation": "", "genes": ["A", "B", "C", "D", "E", "ABRX"]}', 0.0),
    ('{"explanation": "", "genes": []}', 0.0),
  ],
)
def test_grader_takes_repeats_out_and_counts_five(text, reward):
  assert run_source(text) == pytest.approx(reward)


@pytest.mark.parametrize(
  'text',
  [
    'ABRX',
    '["ABRX"]',
    '{"genes": ["ABRX"]}',
    '{"explanation": 1, "genes": ["ABRX"]}',
    '{"explanation": "", "genes": "ABRX"}',
    '{"explanation": "", "genes": [["ABRX"]]}',
    '',
  ],
)
def test_grader_raises_on_an_answer_of_another_form(text):
  with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
    run_source(text)


def run_source(text):
  """Runs the grader's source as it stands, on a sample with nothing but text."""
  names = {}
  exec(rare_disease.GRADER['source'], names)  # pylint: disable=exec-used
  return names['grade']({'output_text': text}, {'gene': 'ABRX'})


def test_all_problems_of_a_config_are_told_at_once():
  config = rare_disease.Config(genes=99, noted_absent=0.5, shared_frequency=(0.5, 0.1))
  with pytest.raises(ValueError) as error:
    rare_disease.make(config)
  assert all(
    field in str(error.value)
    for field in ('genes=99', 'noted_absent=0.5', 'shared_frequency=(0.5, 0.1)')
  )


def test_a_world_with_too_few_cases_says_so():
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
  with pytest.raises(ValueError, match='train_rows=100, but this world gave'):
    rare_disease.make(config)
