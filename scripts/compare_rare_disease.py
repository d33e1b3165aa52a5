"""Compares both arms of configs/rare_disease_grpo.py with naive Bayes on the same held-out rows.

  python scripts/compare_rare_disease.py runs/rare_disease runs/rare_disease_warm_up \
      runs/rare_disease_rft

The first argument is the output of scripts/prepare_rare_disease.py, the others are workdirs. Prints
mean grade (0.7 ** (rank - 1) among the first ten, else 0), top-1, top-5 and mean reciprocal rank
(0 beyond the tenth) with 95 % intervals, and the paired differences to the first workdir and to
naive Bayes. Greedy: one list per row. Sampled: the mean over the k sampled lists of a row.

Intervals are percentile bootstraps over rows. Rows of one publication are correlated, so the
differences of the grade have a second interval from a bootstrap over publications.
"""

import argparse
import collections
import json
import pathlib
import sys

import numpy as np

from rft_jax.bootstrap import interval_over_groups
from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics

RANKS = 10
MEASURES = {
  'grade': lambda rank: 0.7 ** (rank - 1) if rank <= RANKS else 0.0,
  'top-1': lambda rank: float(rank == 1),
  'top-5': lambda rank: float(rank <= 5),
  'MRR': lambda rank: 1 / rank if rank <= RANKS else 0.0,
}


# --- ranks ----------------------------------------------------------------------------------------
def rank_of(gene: str, genes: list[str]) -> int:
  """Returns the rank of the gene in the list without duplicates; RANKS + 1 if it is not in it."""
  ranking = list(dict.fromkeys(name.strip().upper() for name in genes))[:RANKS]
  return ranking.index(gene) + 1 if gene in ranking else RANKS + 1


def genes_of(answer: str) -> list[str]:
  """Returns the list of genes in an answer, [] if the answer has not the required format."""
  try:
    genes = json.loads(answer)['genes']
  except (ValueError, KeyError, TypeError):
    return []
  return genes if isinstance(genes, list) and all(isinstance(g, str) for g in genes) else []


def ranks_of(workdir: pathlib.Path, step: int | None) -> tuple[int, dict, dict]:
  """Returns (step, greedy, sampled) of an evaluation, the last one if step is None.

  greedy and sampled are {case id: [rank, ...]}.
  """
  evaluated_steps = episode_files.steps(workdir / 'evaluations')
  if not evaluated_steps:
    raise FileNotFoundError(
      f'{workdir}: no evaluations; train it first: python -m rft_jax.main '
      f'--config=configs/rare_disease_grpo.py:ARM --workdir={workdir}'
    )
  step = evaluated_steps[-1] if step is None else step
  episodes = episode_files.read(workdir / 'evaluations', step, ['occurrence', 'row', 'output_text'])
  rows = len({episode['occurrence'] for episode in episodes})
  greedy, sampled = collections.defaultdict(list), collections.defaultdict(list)
  for number, episode in enumerate(episodes):  # evaluate.py writes the greedy ones first
    row = episode['row']
    rank = rank_of(row['gene'], genes_of(episode['output_text']))
    (greedy if number < rows else sampled)[row['case_id']].append(rank)
  return step, greedy, sampled


def naive_bayes(path: pathlib.Path) -> dict[str, list[int]]:
  lines = map(json.loads, path.read_text(encoding='utf-8').splitlines())
  return {line['case_id']: [rank_of(line['gene'], line['genes'])] for line in lines}


# --- figures --------------------------------------------------------------------------------------
def columns(ranks: dict[str, list[int]], cases: list[str]) -> dict[str, np.ndarray]:
  """Returns {measure: f64[cases]}, each the mean over the lists of a case."""
  return {
    name: np.array([np.mean([measure(rank) for rank in ranks[case]]) for case in cases])
    for name, measure in MEASURES.items()
  }


def interval_text(values) -> str:
  return '{:.3f} [{:.3f}, {:.3f}]'.format(*values)


def report(systems: dict[str, dict], pairs, publications: dict[str, str]) -> str:
  """Returns the tables in Markdown.

  Args:
    systems: {name: {case id: ranks}}, all over the same cases.
    pairs: (name, name), compared as the first minus the second.
    publications: {case id: publication}.
  """
  cases = sorted(publications)
  table = {name: columns(ranks, cases) for name, ranks in systems.items()}
  groups = [publications[case] for case in cases]
  lines = [
    f'{len(cases)} held-out rows of {len(set(groups))} publications',
    '',
    '| | ' + ' | '.join(MEASURES) + ' |',
    '|---' * (len(MEASURES) + 1) + '|',
  ]
  for name, values in table.items():
    lines.append(
      f'| {name} | '
      + ' | '.join(interval_text(interval_over_groups(values[m])) for m in MEASURES)
      + ' |'
    )
  lines += [
    '',
    '| paired difference | ' + ' | '.join(MEASURES) + ' | grade, by publication |',
    '|---' * (len(MEASURES) + 2) + '|',
  ]
  for first, second in pairs:
    differences = {m: table[first][m] - table[second][m] for m in MEASURES}
    lines.append(
      f'| {first} - {second} | '
      + ' | '.join(interval_text(interval_over_groups(differences[m])) for m in MEASURES)
      + f' | {interval_text(interval_over_groups(differences["grade"], groups))} |'
    )
  return '\n'.join(lines)


def tokens(workdir: pathlib.Path, step: int) -> int:
  """Returns the tokens trained on up to a step."""
  rows = [row for row in metrics.read(workdir / metrics.TRAINING) if row['step'] <= step]
  return int(rows[-1]['num_tokens']) if rows else 0


# --- the command ----------------------------------------------------------------------------------
def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('data', type=pathlib.Path, help='output directory of prepare_rare_disease.py')
  parser.add_argument('workdirs', type=pathlib.Path, nargs='+', help='workdirs, the baseline first')
  parser.add_argument(
    '--steps', type=int, nargs='+', help='step of the evaluation of each workdir; default its last'
  )
  args = parser.parse_args()
  steps = args.steps or [None] * len(args.workdirs)
  if len(steps) != len(args.workdirs):
    parser.error(f'--steps: {len(steps)} for {len(args.workdirs)} workdirs, need one each')
  try:
    systems = {
      'naive Bayes': naive_bayes(args.data / 'naive_bayes.jsonl'),
      'naive Bayes, present only': naive_bayes(args.data / 'naive_bayes_present.jsonl'),
    }
    lines = (args.data / 'valid.jsonl').read_text(encoding='utf-8').splitlines()
    publications = {row['case_id']: row['pmid'] for row in map(json.loads, lines)}
    names = []
    for workdir, requested_step in zip(args.workdirs, steps):
      step, greedy, sampled = ranks_of(workdir, requested_step)
      name = f'{workdir.name}@{step}'
      names.append(name)
      systems[f'{name} greedy'], systems[f'{name} sampled'] = greedy, sampled
      if greedy.keys() != publications.keys():
        raise ValueError(
          f'{workdir}: its evaluation has other rows than {args.data / "valid.jsonl"}'
        )
      print(f'{name}: {tokens(workdir, step):,} tokens')
  except (OSError, ValueError) as error:
    print(error, file=sys.stderr)
    sys.exit(2)
  pairs = [
    (f'{name} {mode}', f'{names[0]} {mode}') for name in names[1:] for mode in ('greedy', 'sampled')
  ]
  pairs += [
    (f'{name} greedy', bayes)
    for name in names
    for bayes in ('naive Bayes', 'naive Bayes, present only')
  ]
  print(report(systems, pairs, publications))


if __name__ == '__main__':
  main()
