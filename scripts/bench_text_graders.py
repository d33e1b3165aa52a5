"""Benchmark: grades per second of the text and format graders, on one core.

  python scripts/bench_text_graders.py

Each figure is the best of several runs of graders.grade_many over answers of six words, including
template rendering; the samples are built beforehand. math has one process of its own, on the same
core. Prints a table, and then the figures as one line of JSON.
"""

import argparse
import json
import os
import random
import time

from rft_jax import graders

TEXTS = {'input': '{{ sample.output_text }}', 'reference': '{{ item.answer }}'}
METRICS = ('fuzzy_match', 'bleu', 'gleu', 'meteor', 'rouge_1', 'rouge_2', 'rouge_l')
WORDS = [
  'the',
  'gene',
  'variant',
  'causes',
  'a',
  'rare',
  'disease',
  'of',
  'heart',
  'bone',
  'and',
  'eye',
  'in',
  'most',
  'families',
]
SCHEMA = {
  'type': 'object',
  'required': ['genes'],
  'properties': {'genes': {'type': 'array', 'items': {'type': 'string'}}},
}
GRADERS = {
  **{
    f'string_check {operation}': {'type': 'string_check', 'operation': operation, **TEXTS}
    for operation in ('eq', 'ne', 'like', 'ilike')
  },
  **{
    f'text_similarity {name}': {'type': 'text_similarity', 'evaluation_metric': name, **TEXTS}
    for name in METRICS
  },
  'json_schema': {'type': 'json_schema', 'schema': SCHEMA},
  'rank': {
    'type': 'rank',
    'input': '{{ sample.output_json.genes }}',
    'reference': '{{ item.answer }}',
  },
  'length': {
    'type': 'length',
    'input': '{{ sample.output_text }}',
    'unit': 'words',
    'soft_limit': 4,
    'hard_limit': 8,
  },
  'repetition': {'type': 'repetition', 'input': '{{ sample.output_text }}', 'n': 2},
  'math': {'type': 'math', **TEXTS},
}


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--grades', type=int, default=5000, help='grades per turn')
  parser.add_argument('--turns', type=int, default=5)
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  figures = {name: rate(name, grader, args) for name, grader in GRADERS.items()}
  print(f'{"grader":30}{"grades/s":>12}{"µs each":>12}')
  for name, figure in figures.items():
    print(f'{name:30}' + (f'{figure:12,.0f}{1e6 / figure:12.1f}' if figure else '  not available'))
  print(json.dumps({name: figure and round(figure) for name, figure in figures.items()}))


def rate(name: str, grader_json: dict, args) -> float | None:
  """Returns grades per second; None if the data of a metric is not on this machine."""
  try:
    grader = graders.make(grader_json)
  except ValueError:
    return None
  try:
    pairs = random_pairs(grader_json['type'], args.grades)
    return max(len(pairs) / seconds(grader, pairs) for _ in range(args.turns))
  finally:
    grader.close()


def seconds(grader, pairs) -> float:
  start = time.perf_counter()
  graders.grade_many(grader, pairs)
  return time.perf_counter() - start


def random_pairs(kind: str, count: int) -> list[tuple[dict, dict]]:
  """Returns `count` random (item, sample) in the format of this grader type; a tenth for math."""
  rng = random.Random(0)
  pairs = []
  for _ in range(count if kind != 'math' else count // 10):
    answer, reference = (' '.join(rng.choices(WORDS, k=6)) for _ in range(2))
    if kind in ('json_schema', 'rank'):
      answer, reference = json.dumps({'genes': answer.split()}), rng.choice(WORDS)
    if kind == 'math':
      answer, reference = f'so it is \\boxed{{{rng.randrange(99)}}}', str(rng.randrange(99))
    pairs.append(({'answer': reference}, graders.make_sample(answer)[0]))
  return pairs


if __name__ == '__main__':
  main()
