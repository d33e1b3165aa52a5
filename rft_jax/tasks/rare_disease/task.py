"""Generates the rare-disease task: rows, grader, and the metadata of task.json."""

import dataclasses

import numpy as np

from rft_jax.tasks import files
from rft_jax.tasks.rare_disease.cases import draw_cases, wrong_gene
from rft_jax.tasks.rare_disease.config import Config
from rft_jax.tasks.rare_disease.prompts import row, solution
from rft_jax.tasks.rare_disease.reference_scores import reference_scores
from rft_jax.tasks.rare_disease.world import make_world

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


def make(config: Config) -> files.Files:
  """Returns the task. Every prompt occurs once, in train or in validation.

  Raises:
    ValueError: the config has problems (all are listed), or its world has too few cases.
  """
  problems = config.validate()
  if problems:
    raise ValueError('\n'.join(['rare_disease:', *problems]))
  world, cases = make_world(config), draw_cases(config)
  rng = np.random.default_rng((config.seed, 2))  # another stream than that of the cases
  rows = {}
  for split in ('validation', 'train'):
    rows[split] = [
      row(world, case, f'{split}-{number:05d}', solution=solution(world, case, config, rng))
      for number, case in enumerate(cases[split], 1)
    ]
  train = files.corrupt(
    rows['train'],
    'gene',
    config.corrupt,
    config.seed,
    lambda index, rng: wrong_gene(world, cases['train'][index], rng),
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
