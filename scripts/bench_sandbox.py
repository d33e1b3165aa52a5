"""Benchmark: grades per second of the `python` and `code` graders in their sandbox.

  python scripts/bench_sandbox.py
  python scripts/bench_sandbox.py --workers 2 --repeats 9

Uses the strongest isolation that this machine has. python: a warm worker, the same source in every
call; the same with a fresh process per call (calls_per_worker=1); or an exception in each call.
code: two fresh processes per answer.
"""

import argparse
import json
import os
import platform
import statistics
import time

from rft_jax import graders

COMPARE = 'def grade(sample, item):\n  return float(sample["output_text"] == item["answer"])\n'
RAISE = 'def grade(sample, item):\n  raise ValueError("always")\n'
PROGRAM = 'def add(a, b):\n  return a + b\n'
TESTS = ['assert add(1, 2) == 3', 'assert add(0, 0) == 0', 'assert add("a", "b") == "ab"']
ITEM = {'answer': '7', 'tests': TESTS}


def cases(workers: int):
  """Yields (name, grader, answer, expected score, number of grades per repeat)."""
  config = dict(workers=workers, time_limit_seconds=10)
  for name, source, answer, score, count, options in (
    ('python, warm', COMPARE, '7', 1.0, 4000, {}),
    ('python, a process a call', COMPARE, '7', 1.0, 400, {'calls_per_worker': 1}),
    ('python, an error a call', RAISE, '7', 0.0, 400, {}),
  ):
    yield (
      name,
      graders.make(
        {'type': 'python', 'name': 'x', 'source': source},
        sandbox=graders.SandboxConfig(**config, **options),
      ),
      answer,
      score,
      count,
    )
  yield (
    'code',
    graders.make(
      {'type': 'code', 'name': 'x', 'tests': '{{ item.tests }}'},
      sandbox=graders.SandboxConfig(**config),
    ),
    PROGRAM,
    1.0,
    400,
  )


def measure(grader, answer: str, score: float, count: int, repeats: int) -> list[float]:
  """Returns the grades per second of each repeat, after one warm-up repeat."""
  sample, _ = graders.make_sample(answer)
  rates = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    grades = grader.many([(ITEM, sample)] * count)
    rates.append(count / (time.perf_counter() - start))
    assert all(grade.reward == score for grade in grades), grades[0]
  return rates[1:]


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--workers', type=int, default=1, help='sandbox processes per grader')
  parser.add_argument('--repeats', type=int, default=5)
  args = parser.parse_args()
  level = graders.isolation_level()
  print(f'isolation: {level}; {os.cpu_count()} CPUs, {args.workers} worker(s)')
  print(f'{"grader":<28}{"grades/s":>10}{"lowest":>10}{"highest":>10}')
  rows = {}
  for name, grader, *case in cases(args.workers):
    rates = measure(grader, *case, args.repeats)
    grader.close()
    rows[name] = {'median': statistics.median(rates), 'low': min(rates), 'high': max(rates)}
    print(f'{name:<28}{rows[name]["median"]:10.0f}{min(rates):10.0f}{max(rates):10.0f}', flush=True)
  print(
    json.dumps(
      {
        'benchmark': 'sandbox',
        'isolation': level,
        'workers': args.workers,
        'rows': rows,
        'python': platform.python_version(),
        'cpus': os.cpu_count(),
      }
    )
  )


if __name__ == '__main__':
  main()
