"""Rare-disease cases from a known world: rank the causal gene. Nothing is downloaded.

A case names a patient's sex, the onset, findings that are there and findings that are not. The
answer is JSON, {"explanation": ..., "genes": [...]}, graded 1, 0.7, 0.49, ... by the rank of the
true gene among the first five. Diseases overlap: each has findings of its own, findings that it
shares with its look-alikes, and anyone may have the noise findings. See simulator.py for the
model and its exact posterior.

The solutions to warm up on come from a reader with a rule of thumb, who does not know the gene.
He reads two or three of the findings, picked at random; each votes for every disease that the
textbook lists it under, characteristic or shared alike; the votes rank the genes, and chance
breaks the ties. What is absent, how frequent a finding is, sex and onset he ignores. So the
solutions are honest and in the right form, and worse than the case allows: which findings to
read and how to weigh them is left for reinforcement to find out, from the grades alone.
"""

import dataclasses
import itertools

import numpy as np

from rft_jax.tasks import files, simulator
from rft_jax.tasks.simulator import Case, World

# Invented symbols, and findings by the names that doctors use.
GENES = (
  'ABRX',
  'BELQ',
  'CUVN',
  'DOXR',
  'ELZP',
  'FYRQ',
  'GOVX',
  'HIRZ',
  'IQLN',
  'JUVR',
  'KAZB',
  'LOXQ',
  'MIZR',
  'NUQP',
  'OZRL',
  'PYXN',
  'QUBR',
  'ROZK',
  'SIXV',
  'TAQL',
  'UVRN',
  'VEXK',
  'WOLZ',
  'XARP',
  'YUQN',
  'ZIBR',
)
FINDINGS = (
  'ataxia',
  'cataract',
  'seizures',
  'deafness',
  'short stature',
  'scoliosis',
  'cleft palate',
  'joint laxity',
  'nystagmus',
  'anaemia',
  'heart block',
  'renal cysts',
  'sparse hair',
  'brittle nails',
  'skin blisters',
  'muscle wasting',
  'optic atrophy',
  'enlarged liver',
  'large head',
  'small jaw',
  'extra digits',
  'fused toes',
  'wide eyes',
  'dystonia',
  'tremor',
  'high palate',
  'night blindness',
  'gallstones',
  'kidney stones',
  'low calcium',
  'thick lips',
  'hernia',
  'bone pain',
  'fractures',
  'neutropenia',
  'nosebleeds',
  'lens shift',
  'spasticity',
  'neuropathy',
  'dry skin',
  'flat feet',
  'stiff joints',
  'low tone',
  'ptosis',
  'squint',
  'pale iris',
  'goitre',
  'hoarse voice',
)
NOISE_FINDINGS = (
  'fatigue',
  'headache',
  'poor sleep',
  'reflux',
  'myopia',
  'anxiety',
  'back pain',
  'constipation',
  'eczema',
  'frequent colds',
)

GRADER_SOURCE = '''\
import json


def grade(sample, item):
  """0.7 ** (rank - 1) of the true gene among the first five, 0 if it is not there.

  Raises on an answer that is not of the form asked for, which the grader counts as its fault.
  """
  answer = sample.get("output_json")
  if answer is None:
    answer = json.loads(sample["output_text"])
  if not isinstance(answer["explanation"], str):
    raise TypeError("explanation is not a string")
  if not isinstance(answer["genes"], list):
    raise TypeError("genes is not a list")
  ranking = list(dict.fromkeys(gene.strip().upper() for gene in answer["genes"]))[:5]
  return 0.7 ** ranking.index(item["gene"]) if item["gene"] in ranking else 0.0
'''
GRADER = {'type': 'python', 'name': 'gene_rank', 'source': GRADER_SOURCE}


@dataclasses.dataclass(slots=True, kw_only=True)
class Config:
  """The world and how many cases are drawn from it. Probabilities are (lowest, highest)."""

  seed: int = 0
  train_rows: int = 4000
  validation_rows: int = 400
  genes: int = 12
  findings: int = 24  # those that belong to diseases
  noise_findings: int = 6  # those that anyone may have
  characteristic: int = 3  # findings of each disease's own
  shared: int = 3  # findings that each disease takes over from its look-alikes
  look_alikes: int = 4  # diseases in a group that is hard to tell apart
  noise_listed: int = 2  # diseases under which the textbook lists a noise finding, for nothing
  characteristic_frequency: tuple[float, float] = (0.5, 0.8)
  shared_frequency: tuple[float, float] = (0.12, 0.35)
  background_frequency: tuple[float, float] = (0.04, 0.1)
  noise_frequency: tuple[float, float] = (0.25, 0.45)
  noted_present: float = 0.8
  noted_absent: float = 0.1
  present_range: tuple[int, int] = (3, 7)
  absent_range: tuple[int, int] = (0, 4)
  read_range: tuple[int, int] = (2, 3)  # findings that the reader of the warm-up reads
  corrupt: float = 0.0  # share of the training cases whose gene is replaced by a wrong one

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = [
      (self.train_rows >= 1, f'train_rows={self.train_rows}, need >= 1'),
      (self.validation_rows >= 1, f'validation_rows={self.validation_rows}, need >= 1'),
      (2 <= self.genes <= len(GENES), f'genes={self.genes}, need 2 to {len(GENES)}'),
      (1 <= self.findings <= len(FINDINGS), f'findings={self.findings}, need 1 to {len(FINDINGS)}'),
      (
        0 <= self.noise_findings <= len(NOISE_FINDINGS),
        f'noise_findings={self.noise_findings}, need 0 to {len(NOISE_FINDINGS)}',
      ),
      (
        1 <= self.characteristic <= self.findings,
        f'characteristic={self.characteristic}, need 1 to findings={self.findings}',
      ),
      (self.shared >= 0, f'shared={self.shared}, need >= 0'),
      (self.look_alikes >= 1, f'look_alikes={self.look_alikes}, need >= 1'),
      (
        0 <= self.noise_listed <= self.genes,
        f'noise_listed={self.noise_listed}, need 0 to genes={self.genes}',
      ),
      (
        self.noted_present > 0
        and self.noted_absent > 0
        and self.noted_present + self.noted_absent <= 1,
        f'noted_present={self.noted_present} noted_absent={self.noted_absent}, '
        'need both above 0, sum at most 1',
      ),
      (0 <= self.corrupt <= 1, f'corrupt={self.corrupt}, need 0 to 1'),
      (
        1 <= self.read_range[0] <= self.read_range[1],
        f'read_range={self.read_range}, need 1 <= first <= second',
      ),
    ]
    for field in ('characteristic', 'shared', 'background', 'noise'):
      low, high = getattr(self, f'{field}_frequency')
      checks.append(
        (0 < low <= high < 1, f'{field}_frequency={(low, high)}, need 0 < first <= second < 1')
      )
    for field in ('present_range', 'absent_range'):
      low, high = getattr(self, field)
      checks.append((0 <= low <= high, f'{field}={(low, high)}, need 0 <= first <= second'))
    return [problem for good, problem in checks if not good]


def make_world(config: Config) -> World:
  """Returns the world that the seed and the sizes stand for."""
  rng = np.random.default_rng((config.seed, 0))
  genes, findings, noise = config.genes, config.findings, config.noise_findings
  background = np.concatenate(
    [
      rng.uniform(*config.background_frequency, findings),
      rng.uniform(*config.noise_frequency, noise),
    ]
  )
  frequency, listed = np.tile(background, (genes, 1)), np.zeros((genes, findings + noise), bool)

  def give(gene, chosen, between):
    frequency[gene, chosen], listed[gene, chosen] = rng.uniform(*between, len(chosen)), True

  # Characteristic findings are dealt like cards, so that each is used before one comes again.
  rounds = -(-genes * config.characteristic // findings)
  cards = np.concatenate([rng.permutation(findings) for _ in range(rounds)])
  own = [
    np.unique(cards[gene * config.characteristic :][: config.characteristic])
    for gene in range(genes)
  ]
  for gene in range(genes):
    give(gene, own[gene], config.characteristic_frequency)
  for gene in range(genes):
    mates = [
      other
      for other in range(genes)
      if other != gene and other // config.look_alikes == gene // config.look_alikes
    ]
    pool = sorted({int(f) for mate in mates for f in own[mate]} - set(own[gene].tolist()))
    give(gene, rng.permutation(np.array(pool, int))[: config.shared], config.shared_frequency)
  for finding in range(findings, findings + noise):
    listed[rng.permutation(genes)[: config.noise_listed], finding] = True

  return World(
    genes=tuple(sorted(rng.permutation(GENES)[:genes].tolist())),
    findings=tuple(
      rng.permutation(FINDINGS)[:findings].tolist()
      + rng.permutation(NOISE_FINDINGS)[:noise].tolist()
    ),
    prior=np.full(genes, 1 / genes),
    frequency=frequency,
    listed=listed,
    onset=0.025 + 0.9 * rng.dirichlet(np.ones(len(simulator.ONSETS)), genes),
    male=np.where(rng.random(genes) < 0.3, 0.9, 0.5),  # some diseases are X-linked
    noted_present=config.noted_present,
    noted_absent=config.noted_absent,
    present_range=config.present_range,
    absent_range=config.absent_range,
  )


def prompt(world: World, case: Case) -> str:
  """Returns the case as a user's message. The gene does not enter."""
  present, absent = (
    ', '.join(world.findings[f] for f in noted) or 'none' for noted in (case.present, case.absent)
  )
  return (
    f'{"Male" if case.male else "Female"} patient, onset in {simulator.ONSETS[case.onset]}.\n'
    f'Present: {present}.\nAbsent: {absent}.\nRank up to five genes.'
  )


def solution(world: World, case: Case, config: Config, rng: np.random.Generator) -> str:
  """Returns the reader's rationale and answer, drawing from rng what he leaves to chance.

  That is which findings he reads, how many, and the order among equal votes. The gene does not
  enter: `case.disease` is not read.
  """
  low, high = config.read_range
  read = rng.permutation(case.present)[: int(rng.integers(low, high + 1))]
  votes = simulator.votes(world, read)
  shuffled = rng.permutation(len(world.genes))
  ranking = shuffled[np.argsort(-votes[shuffled], kind='stable')]
  ranking = [int(gene) for gene in ranking if votes[gene] > 0][: simulator.MAX_RANKS]
  lines, tally, reason = [], 'no votes', ''
  for finding in read:
    speaks_for = [world.genes[gene] for gene in np.flatnonzero(world.listed[:, finding])]
    lines.append(' '.join([world.findings[finding], *speaks_for]))
  if ranking:
    most, first = votes[ranking[0]], ranking[0]
    tally = f'{most} vote{"s" if most > 1 else ""} for {world.genes[first]}'
    reason = next(world.findings[finding] for finding in read if world.listed[first, finding])
  return f'<think>{"; ".join(lines)}. {tally}</think>' + answer(
    reason, [world.genes[gene] for gene in ranking]
  )


def answer(explanation: str, genes: list[str]) -> str:
  """Returns the JSON that the grader reads."""
  listed = ', '.join(f'"{gene}"' for gene in genes)
  return f'{{"explanation": "{explanation}", "genes": [{listed}]}}'


def reader_grade(world: World, case: Case, config: Config) -> np.ndarray:
  """Returns f64[K], the reader's exact mean grade over all his choices, if the gene were k."""
  grades = np.zeros(len(world.genes))
  low, high = config.read_range
  for size in range(low, high + 1):
    choices = list(itertools.combinations(case.present, min(size, len(case.present))))
    grades += np.mean([simulator.tied_grades(simulator.votes(world, read)) for read in choices], 0)
  return grades / (high - low + 1)


def wrong_gene(world: World, case: Case, rng: np.random.Generator) -> str:
  """Returns a gene that is not the case's, as a hasty doctor would find it.

  A gene is drawn as often as the textbook lists findings of the case under it; any other gene,
  where none are listed.
  """
  votes = simulator.votes(world, case.present).astype(float)
  votes[case.disease] = 0
  if not votes.any():
    votes[:] = 1
    votes[case.disease] = 0
  return world.genes[int(rng.choice(len(votes), p=votes / votes.sum()))]


def reference_scores(world: World, cases: list[Case], config: Config) -> dict:
  """Returns what can be said of the cases without a model, each as mean, low, high.

  bayes_optimal: expected grade of ranking by the posterior; nobody can expect more.
  bayes_optimal_on_these_labels: the same ranking graded with the genes that were drawn.
  reader: expected grade of the warm-up's solutions.
  every_vote: the reader's rule if he read every finding that is present.
  """
  names = ('bayes_optimal', 'bayes_optimal_on_these_labels', 'reader', 'every_vote')
  values = {name: [] for name in names}
  for case in cases:
    probabilities = simulator.posterior(world, case)
    ranking = simulator.best_ranking(probabilities)
    truth = np.eye(len(world.genes))[case.disease]
    values['bayes_optimal'].append(simulator.expected_grade(probabilities, ranking))
    values['bayes_optimal_on_these_labels'].append(simulator.expected_grade(truth, ranking))
    values['reader'].append(float(probabilities @ reader_grade(world, case, config)))
    values['every_vote'].append(
      float(probabilities @ simulator.tied_grades(simulator.votes(world, case.present)))
    )
  return {name: files.mean_with_interval(numbers) for name, numbers in values.items()}


def make(config: Config) -> files.Files:
  """Returns the task. Every prompt occurs once, in train or in validation.

  Raises:
    ValueError: the config has problems (all are named), or its world has too few cases.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['rare_disease:', *problems]))
  world, cases = make_world(config), draw_cases(config)
  readers = np.random.default_rng((config.seed, 2))  # apart: no draw of a case moves a reader
  rows = {}
  for split in ('validation', 'train'):
    rows[split] = [
      row(world, case, f'{split}-{place:05d}', solution=solution(world, case, config, readers))
      for place, case in enumerate(cases[split], 1)
    ]
  train = files.corrupt(
    rows['train'],
    'gene',
    config.corrupt,
    config.seed,
    lambda number, rng: wrong_gene(world, cases['train'][number], rng),
  )
  return files.Files(
    train,
    rows['validation'],
    GRADER,
    {
      'task': 'rare_disease',
      'config': dataclasses.asdict(config),
      'reference': reference_scores(world, cases['validation'], config),
      'world': {
        field.name: np.asarray(getattr(world, field.name)).tolist()
        for field in dataclasses.fields(world)
      },
    },
  )


def row(world: World, case: Case, case_id: str, **answers: str) -> dict:
  """Returns the case as a row, with the answers that are given."""
  return {
    'messages': [{'role': 'user', 'content': prompt(world, case)}],
    'gene': world.genes[case.disease],
    **answers,
    'case_id': case_id,
  }


def draw_cases(config: Config) -> dict[str, list[Case]]:
  """Returns the cases of 'validation' and 'train'; no two of them say the same.

  Raises:
    ValueError: the world has too few cases.
  """
  world, rng = make_world(config), np.random.default_rng((config.seed, 1))
  seen, cases = set(), {}
  for split, count in (('validation', config.validation_rows), ('train', config.train_rows)):
    cases[split] = []
    for _ in range(20 * count):
      if len(cases[split]) == count:
        break
      case = simulator.draw(world, rng)
      key = (frozenset(case.present), frozenset(case.absent), case.onset, case.male)
      if key in seen:  # by what it says alone, so that the posterior holds
        continue
      seen.add(key)
      cases[split].append(case)
    if len(cases[split]) < count:
      raise ValueError(
        f'{split}_rows={count}, but this world gave {len(cases[split])} different '
        'cases: ask for fewer rows or more findings'
      )
  return cases
