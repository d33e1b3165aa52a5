"""Grades a second of the graders of text and format, on one core.

  python scripts/bench_text_graders.py

Each figure is the best of a few turns of graders.grade_many over answers of six words: template,
score and Grade; the samples are made beforehand. math has one process of its own, on the same
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
WORDS = ['the', 'gene', 'variant', 'causes', 'a', 'rare', 'disease', 'of', 'heart', 'bone', 'and', 'eye', 'in', 'most', 'families']
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
  parser.add_argument('--grades', type=int, default=5000, help='in one turn')
  parser.add_argument('--turns', type=int, default=5)
  args = parser.parse_args()
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  figures = {name: rate(name, grader, args) for name, grader in GRADERS.items()}
  print(f'{"grader":30}{"grades/s":>12}{"µs each":>12}')
  for name, figure in figures.items():
    print(f'{name:30}' + (f'{figure:12,.0f}{1e6 / figure:12.1f}' if figure else '     not here'))
  print(json.dumps({name: figure and round(figure) for name, figure in figures.items()}))


def rate(name: str, given: dict, args) -> float | None:
  """Returns grades a second; None where the data of a metric is not on this machine."""
  try:
    grader = graders.make(given)
  except ValueError:
    return None
  try:
    made = pairs(given['type'], args.grades)
    return max(len(made) / timed(grader, made) for _ in range(args.turns))
  finally:
    grader.close()


def timed(grader, made) -> float:
  start = time.perf_counter()
  graders.grade_many(grader, made)
  return time.perf_counter() - start


def pairs(kind: str, count: int) -> list[tuple[dict, dict]]:
  """Returns (item, sample) for so many answers, those that this type of grader reads."""
  rng = random.Random(0)
  made = []
  for _ in range(count if kind != 'math' else count // 10):
    answer, reference = (' '.join(rng.choices(WORDS, k=6)) for _ in range(2))
    if kind in ('json_schema', 'rank'):
      answer, reference = json.dumps({'genes': answer.split()}), rng.choice(WORDS)
    if kind == 'math':
      answer, reference = f'so it is \\boxed{{{rng.randrange(99)}}}', str(rng.randrange(99))
    made.append(({'answer': reference}, graders.make_sample(answer)[0]))
  return made


if __name__ == '__main__':
  main()
