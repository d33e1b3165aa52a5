"""A fully known world of rare diseases: who has what, and how likely, exactly.

One gene to a disease, so a disease is named by its gene. The generative model of a case:

    d ~ prior;  onset ~ onset[d];  male ~ Bernoulli(male[d])
    finding f is there with probability frequency[d, f], each by itself
    a finding that is there is written down with probability noted_present,
    one that is not there with probability noted_absent, otherwise nothing is said of it
    the case is kept if it names enough findings and not too many; else it is drawn again, same d

Everything in it is known, the chance of a case being kept included, so that the posterior over
genes and the best grade that anyone can expect are computed, not estimated.

Dimension letters here: K genes (diseases), F findings, R rows.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

ONSETS = ('infancy', 'childhood', 'youth', 'adulthood')
MAX_RANKS = 5  # how many genes of an answer count
DECAY = 0.7  # the grade falls by this factor from rank to rank


@dataclasses.dataclass(frozen=True)
class World:
  """The generative model, and the textbook that its doctors read."""

  genes: tuple[str, ...]  # K invented symbols
  findings: tuple[str, ...]  # F names
  prior: np.ndarray  # f64[K]
  frequency: np.ndarray  # f64[K, F]: probability that a patient with the disease has the finding
  listed: np.ndarray  # bool[K, F]: the textbook names the finding under the disease
  onset: np.ndarray  # f64[K, len(ONSETS)]
  male: np.ndarray  # f64[K]
  noted_present: float
  noted_absent: float
  present_range: tuple[int, int]  # findings noted as present in a kept case, both ends included
  absent_range: tuple[int, int]  # the same for those noted as absent


class Case(NamedTuple):
  """What is written down of one patient, and the truth that only the grader may see."""

  present: tuple[int, ...]  # findings, in the order written
  absent: tuple[int, ...]
  onset: int
  male: bool
  disease: int


def _note_probabilities(world: World):
  """Returns f64[K, F] chances of a finding being noted present, and noted absent."""
  return (world.frequency * world.noted_present, (1 - world.frequency) * world.noted_absent)


def log_kept(world: World) -> np.ndarray:
  """Returns f64[K], the log of each disease's chance that a case drawn from it is kept.

  Exact: a dynamic programme over the findings carries the joint distribution of the two counts,
  present and absent, with everything above the upper limits let fall.
  """
  present, absent = _note_probabilities(world)
  (low_p, high_p), (low_a, high_a) = world.present_range, world.absent_range
  counts = np.zeros((len(world.genes), high_p + 1, high_a + 1))
  counts[:, 0, 0] = 1
  for p, a in zip(present.T[:, :, None, None], absent.T[:, :, None, None]):
    grown = counts * (1 - p - a)
    grown[:, 1:] += counts[:, :-1] * p
    grown[:, :, 1:] += counts[:, :, :-1] * a
    counts = grown
  return np.log(counts[:, low_p:, low_a:].sum((1, 2)))


def draw(world: World, rng: np.random.Generator) -> Case:
  """Returns one kept case. Raises ValueError if a thousand draws keep none."""
  disease = int(rng.choice(len(world.genes), p=world.prior))
  onset = int(rng.choice(len(ONSETS), p=world.onset[disease]))
  male = bool(rng.random() < world.male[disease])
  present, absent = (x[disease] for x in _note_probabilities(world))
  for _ in range(1000):
    u = rng.random(len(world.findings))
    seen, missing = np.flatnonzero(u < present), np.flatnonzero(u > 1 - absent)
    if all(
      low <= len(x) <= high
      for x, (low, high) in ((seen, world.present_range), (missing, world.absent_range))
    ):
      return Case(
        tuple(map(int, rng.permutation(seen))),
        tuple(map(int, rng.permutation(missing))),
        onset,
        male,
        disease,
      )
  raise ValueError(
    f'no case of {world.genes[disease]} with present_range={world.present_range}, '
    f'absent_range={world.absent_range} in 1000 draws: widen the ranges'
  )


def posterior(world: World, case: Case) -> np.ndarray:
  """Returns f64[K], the exact probability of each gene given what the case says.

      p(d | case) ~ prior[d] onset[d] sex[d] prod_f p(note on f | d) / p(kept | d)

  The field `disease` is not read.
  """
  present, absent = _note_probabilities(world)
  unsaid = np.ones(len(world.findings), bool)
  unsaid[list(case.present + case.absent)] = False
  logits = (
    np.log(world.prior)
    + np.log(world.onset[:, case.onset])
    + np.log(world.male if case.male else 1 - world.male)
    + np.log(present[:, list(case.present)]).sum(1)
    + np.log(absent[:, list(case.absent)]).sum(1)
    + np.log1p(-(present + absent)[:, unsaid]).sum(1)
    - log_kept(world)
  )
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def expected_grade(probabilities: np.ndarray, ranking) -> float:
  """Returns sum over ranks of p(gene at that rank) * 0.7 ** (rank - 1), the first five alone."""
  ranking = list(ranking)[:MAX_RANKS]
  return float(sum(probabilities[gene] * DECAY**place for place, gene in enumerate(ranking)))


def best_ranking(probabilities: np.ndarray) -> list[int]:
  """Returns the genes from most to least probable: no ranking has a higher expected grade."""
  return [int(k) for k in np.argsort(-probabilities, kind='stable')[:MAX_RANKS]]


def votes(world: World, findings) -> np.ndarray:
  """Returns i64[K]: of the findings, how many the textbook lists under each disease."""
  return world.listed[:, list(findings)].sum(1)


def tied_grades(tally: np.ndarray) -> np.ndarray:
  """Returns f64[K], each gene's mean grade when the tally ranks and chance breaks its ties.

  A gene without a vote is not named and gets 0.
  """
  worth = np.where(np.arange(len(tally)) < MAX_RANKS, DECAY ** np.arange(len(tally)), 0.0)
  grades = np.zeros(len(tally))
  for level in set(tally[tally > 0].tolist()):
    above, here = int((tally > level).sum()), tally == level
    grades[here] = worth[above : above + int(here.sum())].mean()
  return grades
