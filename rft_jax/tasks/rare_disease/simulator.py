"""Generative model of rare-disease cases with exact posterior and best expected grade.

Each disease has one gene and is named by it. The generative model of a case:

    d ~ prior;  onset ~ onset[d];  male ~ Bernoulli(male[d])
    finding f is present with probability frequency[d, f], independently
    a present finding is noted with probability noted_present, an absent one with probability
    noted_absent; other findings are not mentioned
    the case is accepted if the numbers of noted findings are in range; else the findings are drawn
    again for the same d

All of it is known, including the acceptance probability, so that the posterior over genes and the
best possible expected grade are computed, not estimated.

Dimension letters here: K genes (diseases), F findings, R rows.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

ONSETS = ('infancy', 'childhood', 'youth', 'adulthood')
MAX_RANKS = 5  # genes of an answer that are graded
DECAY = 0.7  # factor on the grade from one rank to the next


@dataclasses.dataclass(frozen=True)
class World:
  """Parameters of the generative model, and the textbook that the warm-up solutions use."""

  genes: tuple[str, ...]  # K invented symbols
  findings: tuple[str, ...]  # F names
  prior: np.ndarray  # f64[K]
  frequency: np.ndarray  # f64[K, F]: probability that a patient with the disease has the finding
  listed: np.ndarray  # bool[K, F]: the textbook lists the finding under the disease
  onset: np.ndarray  # f64[K, len(ONSETS)]
  male: np.ndarray  # f64[K]
  noted_present: float
  noted_absent: float
  present_range: tuple[int, int]  # findings noted as present in an accepted case, both inclusive
  absent_range: tuple[int, int]  # the same for those noted as absent


class Case(NamedTuple):
  """The notes on one patient, and the true disease, which only the grader uses."""

  present: tuple[int, ...]  # findings, in the order written
  absent: tuple[int, ...]
  onset: int
  male: bool
  disease: int


def _note_probabilities(world: World):
  """Returns f64[K, F] probabilities of a finding being noted as present, and as absent."""
  return (world.frequency * world.noted_present, (1 - world.frequency) * world.noted_absent)


def log_acceptance(world: World) -> np.ndarray:
  """Returns f64[K], the log-probability for each disease that a case drawn from it is accepted.

  Exact: a dynamic program over the findings carries the joint distribution of the numbers of
  present and absent notes, without the states above the upper limits.
  """
  present, absent = _note_probabilities(world)
  (low_p, high_p), (low_a, high_a) = world.present_range, world.absent_range
  counts = np.zeros((len(world.genes), high_p + 1, high_a + 1))
  counts[:, 0, 0] = 1
  for p, a in zip(present.T[:, :, None, None], absent.T[:, :, None, None]):
    updated = counts * (1 - p - a)
    updated[:, 1:] += counts[:, :-1] * p
    updated[:, :, 1:] += counts[:, :, :-1] * a
    counts = updated
  return np.log(counts[:, low_p:, low_a:].sum((1, 2)))


def draw_case(world: World, rng: np.random.Generator) -> Case:
  """Returns one accepted case. Raises ValueError if none of a thousand draws is accepted."""
  disease = int(rng.choice(len(world.genes), p=world.prior))
  onset = int(rng.choice(len(ONSETS), p=world.onset[disease]))
  male = bool(rng.random() < world.male[disease])
  p_present, p_absent = (p[disease] for p in _note_probabilities(world))
  for _ in range(1000):
    u = rng.random(len(world.findings))
    present, absent = np.flatnonzero(u < p_present), np.flatnonzero(u > 1 - p_absent)
    if all(
      low <= len(findings) <= high
      for findings, (low, high) in ((present, world.present_range), (absent, world.absent_range))
    ):
      return Case(
        tuple(map(int, rng.permutation(present))),
        tuple(map(int, rng.permutation(absent))),
        onset,
        male,
        disease,
      )
  raise ValueError(
    f'no case of {world.genes[disease]} with present_range={world.present_range}, '
    f'absent_range={world.absent_range} in 1000 draws: widen the ranges'
  )


def posterior(world: World, case: Case) -> np.ndarray:
  """Returns f64[K], the exact posterior probability of each gene given the notes of the case.

      p(d | case) ~ prior[d] onset[d] sex[d] prod_f p(note on f | d) / p(accepted | d)

  `case.disease` is not used.
  """
  present, absent = _note_probabilities(world)
  unmentioned = np.ones(len(world.findings), bool)
  unmentioned[list(case.present + case.absent)] = False
  logits = (
    np.log(world.prior)
    + np.log(world.onset[:, case.onset])
    + np.log(world.male if case.male else 1 - world.male)
    + np.log(present[:, list(case.present)]).sum(1)
    + np.log(absent[:, list(case.absent)]).sum(1)
    + np.log1p(-(present + absent)[:, unmentioned]).sum(1)
    - log_acceptance(world)
  )
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def expected_grade(probabilities: np.ndarray, ranking) -> float:
  """Returns the sum over the first five ranks of p(gene at that rank) * 0.7 ** (rank - 1)."""
  ranking = list(ranking)[:MAX_RANKS]
  return float(sum(probabilities[gene] * DECAY**place for place, gene in enumerate(ranking)))


def best_ranking(probabilities: np.ndarray) -> list[int]:
  """Returns the genes from most to least probable: no ranking has a higher expected grade."""
  return [int(k) for k in np.argsort(-probabilities, kind='stable')[:MAX_RANKS]]


def votes(world: World, findings) -> np.ndarray:
  """Returns i64[K], the number of the findings that the textbook lists under each disease."""
  return world.listed[:, list(findings)].sum(1)


def grades_by_votes(vote_counts: np.ndarray) -> np.ndarray:
  """Returns f64[K], each gene's mean grade when genes are ranked by votes, ties in random order.

  A gene without votes is not in the ranking and gets 0.
  """
  ranks = np.arange(len(vote_counts))
  grade_by_rank = np.where(ranks < MAX_RANKS, DECAY**ranks, 0.0)
  grades = np.zeros(len(vote_counts))
  for level in set(vote_counts[vote_counts > 0].tolist()):
    higher, tied = int((vote_counts > level).sum()), vote_counts == level
    grades[tied] = grade_by_rank[higher : higher + int(tied.sum())].mean()
  return grades
