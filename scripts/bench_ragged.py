"""What long-tailed lengths cost: a GRPO step of ragged lengths beside one of fixed lengths.

  python scripts/bench_ragged.py

The ragged step has 38 % of the fixed one's tokens; where finished rows stay in the batch and
training pads to the longest, it takes as long.
"""

import argparse

import bench_step
import benchmarks


def main():
  args = benchmarks.parser(__doc__).parse_args()
  for lengths in ('fixed', 'ragged'):
    bench_step.run(argparse.Namespace(**{**vars(args), 'lengths': lengths}), f'step, {lengths}')


if __name__ == '__main__':
  main()
