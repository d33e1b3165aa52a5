"""Benchmark: a GRPO step with long-tailed completion lengths against one with fixed lengths.

  python scripts/bench_ragged.py

The ragged step has 38 % of the tokens of the fixed one. A stack that keeps finished rows in the
decoding batch and pads to the longest row takes the same time for both.
"""

import argparse

import bench_step
import benchmarks


def main():
  args = benchmarks.make_parser(__doc__).parse_args()
  for lengths in ('fixed', 'ragged'):
    bench_step.run(argparse.Namespace(**{**vars(args), 'lengths': lengths}), f'step, {lengths}')


if __name__ == '__main__':
  main()
