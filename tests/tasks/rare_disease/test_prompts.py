"""Prompts and warm-up solutions: what they contain, and that they do not depend on the gene."""

import json

import numpy as np

from rft_jax.tasks.rare_disease import prompts


def test_prompt_and_solution_do_not_depend_on_the_true_gene(world, cases, config):
  for case in cases:
    others = [case._replace(disease=k) for k in range(len(world.genes))]
    assert len({prompts.prompt(world, c) for c in others}) == 1
    solutions = {prompts.solution(world, c, config, np.random.default_rng(1)) for c in others}
    assert len(solutions) == 1


def test_solution_has_only_present_findings_with_the_genes_listed_for_them(world, cases, config):
  for seed, case in enumerate(cases):
    text = prompts.solution(world, case, config, np.random.default_rng(seed))
    reading, tally = text.removeprefix('<think>').split('</think>')[0].split('. ')
    vote_counts = dict.fromkeys(world.genes, 0)
    for line in reading.split('; '):
      finding = next(f for f in case.present if line.startswith(world.findings[f]))
      genes = line.removeprefix(world.findings[finding]).split()
      assert genes == [g for g, yes in zip(world.genes, world.listed[:, finding]) if yes]
      for gene in genes:
        vote_counts[gene] += 1
    ranking = json.loads(text.split('</think>')[1])['genes']
    votes = [vote_counts[gene] for gene in ranking]
    assert votes == sorted(vote_counts.values(), reverse=True)[: len(ranking)] and min(votes) > 0
    assert tally == f'{votes[0]} vote{"s" * (votes[0] > 1)} for {ranking[0]}'
