"""Benchmark of scoring and update, as a fraction of the matrix-product peak of the same machine.

  python scripts/bench_update.py
  python scripts/bench_update.py --prompt 512 --new 32

Model FLOPs are three times those of the forward pass, each prompt once per group; recomputation in
the backward pass and padding are not counted.
"""

import statistics
import time

import benchmarks


def main():
  args = benchmarks.make_parser(__doc__).parse_args()
  config = benchmarks.MODELS[args.model]
  trainer = benchmarks.Trainer(args)
  samples = benchmarks.sample(args, trainer.state.policy, 0)
  batch = benchmarks.make_batch(args, samples, 0)
  start = time.perf_counter()
  scored = trainer.score(batch)
  metrics = trainer.learn(scored)
  first = time.perf_counter() - start

  score, score_cpu = benchmarks.timed(lambda: trainer.score(batch), args.steps, args.warmup)
  learn, learn_cpu = benchmarks.timed(lambda: trainer.learn(scored), args.steps, args.warmup)
  flops = benchmarks.forward_flops(config, [args.prompt] * args.prompts, benchmarks.limits(args, 0))
  peak = benchmarks.peak_flops(config.dtype)
  median = statistics.median
  benchmarks.report(
    'update',
    args,
    {
      'tokens': int(batch.completion_lengths.sum()),
      'score, seconds': median(score),
      'score, CPU seconds': median(score_cpu),
      'update, seconds': median(learn),
      'update, CPU seconds': median(learn_cpu),
      'token efficiency': metrics['token_efficiency'],
      'score, share of peak FLOP/s': flops / median(score) / peak,
      'update, share of peak FLOP/s': 3 * flops / median(learn) / peak,
      'first score and update, seconds': first,
    },
    score=score,
    learn=learn,
    peak_gflops=peak / 1e9,
  )


if __name__ == '__main__':
  main()
