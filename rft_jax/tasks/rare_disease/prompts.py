"""Prompt, warm-up solution and row of a rare-disease case."""

import numpy as np

from rft_jax.tasks.rare_disease import simulator
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.simulator import Case, World


def prompt(world: World, case: Case) -> str:
  """Returns the case as a user's message. It does not depend on the gene."""
  present, absent = (
    ', '.join(world.findings[finding] for finding in findings) or 'none'
    for findings in (case.present, case.absent)
  )
  return (
    f'{"Male" if case.male else "Female"} patient, onset in {simulator.ONSETS[case.onset]}.\n'
    f'Present: {present}.\nAbsent: {absent}.\nRank up to five genes.'
  )


def solution(world: World, case: Case, config: Config, rng: np.random.Generator) -> str:
  """Returns the rationale and answer of the simulated reader.

  rng draws the findings that are read, their number, and the order among equal votes.
  `case.disease` is not used.
  """
  low, high = config.read_range
  findings = rng.permutation(case.present)[: int(rng.integers(low, high + 1))]
  votes = simulator.votes(world, findings)
  shuffled = rng.permutation(len(world.genes))
  ranking = shuffled[np.argsort(-votes[shuffled], kind='stable')]
  ranking = [int(gene) for gene in ranking if votes[gene] > 0][: simulator.MAX_RANKS]
  lines, tally, reason = [], 'no votes', ''
  for finding in findings:
    genes = [world.genes[gene] for gene in np.flatnonzero(world.listed[:, finding])]
    lines.append(' '.join([world.findings[finding], *genes]))
  if ranking:
    count, first = votes[ranking[0]], ranking[0]
    tally = f'{count} vote{"s" if count > 1 else ""} for {world.genes[first]}'
    reason = next(world.findings[finding] for finding in findings if world.listed[first, finding])
  return f'<think>{"; ".join(lines)}. {tally}</think>' + answer(
    reason, [world.genes[gene] for gene in ranking]
  )


def answer(explanation: str, genes: list[str]) -> str:
  """Returns the JSON that the grader reads."""
  gene_list = ', '.join(f'"{gene}"' for gene in genes)
  return f'{{"explanation": "{explanation}", "genes": [{gene_list}]}}'


def row(world: World, case: Case, case_id: str, **answers: str) -> dict:
  """Returns the case as a row; `answers` become its fields, such as solution=TEXT."""
  return {
    'messages': [{'role': 'user', 'content': prompt(world, case)}],
    'gene': world.genes[case.disease],
    **answers,
    'case_id': case_id,
  }
