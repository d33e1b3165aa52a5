"""Builds the rare-disease world of a config: diseases, their findings and frequencies."""

import numpy as np

from rft_jax.tasks.rare_disease import names
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.simulator import ONSETS, World


def make_world(config: Config) -> World:
  """Returns the world that the seed and the sizes of the config determine."""
  rng = np.random.default_rng((config.seed, 0))
  genes, findings, noise = config.genes, config.findings, config.noise_findings
  background = np.concatenate(
    [
      rng.uniform(*config.background_frequency, findings),
      rng.uniform(*config.noise_frequency, noise),
    ]
  )
  frequency, listed = np.tile(background, (genes, 1)), np.zeros((genes, findings + noise), bool)

  def add_findings(gene, indices, frequency_range):
    frequency[gene, indices] = rng.uniform(*frequency_range, len(indices))
    listed[gene, indices] = True

  characteristic = _characteristic_findings(config, rng)
  for gene in range(genes):
    add_findings(gene, characteristic[gene], config.characteristic_frequency)
  for gene in range(genes):
    look_alikes = [
      other
      for other in range(genes)
      if other != gene and other // config.look_alikes == gene // config.look_alikes
    ]
    candidates = sorted(
      {int(f) for other in look_alikes for f in characteristic[other]}
      - set(characteristic[gene].tolist())
    )
    shared = rng.permutation(np.array(candidates, int))[: config.shared]
    add_findings(gene, shared, config.shared_frequency)
  for finding in range(findings, findings + noise):
    listed[rng.permutation(genes)[: config.noise_listed], finding] = True

  return World(
    genes=tuple(sorted(rng.permutation(names.GENES)[:genes].tolist())),
    findings=tuple(
      rng.permutation(names.FINDINGS)[:findings].tolist()
      + rng.permutation(names.NOISE_FINDINGS)[:noise].tolist()
    ),
    prior=np.full(genes, 1 / genes),
    frequency=frequency,
    listed=listed,
    onset=0.025 + 0.9 * rng.dirichlet(np.ones(len(ONSETS)), genes),
    male=np.where(rng.random(genes) < 0.3, 0.9, 0.5),  # some diseases are X-linked
    noted_present=config.noted_present,
    noted_absent=config.noted_absent,
    present_range=config.present_range,
    absent_range=config.absent_range,
  )


def _characteristic_findings(config, rng) -> list[np.ndarray]:
  """Returns the characteristic findings of each gene: each finding is used before any repeats."""
  rounds = -(-config.genes * config.characteristic // config.findings)
  order = np.concatenate([rng.permutation(config.findings) for _ in range(rounds)])
  return [
    np.unique(order[gene * config.characteristic :][: config.characteristic])
    for gene in range(config.genes)
  ]
