"""Scoring and update speed, beside the peak of a matrix product measured in the same run.

  python scripts/bench_update.py
  python scripts/bench_update.py --prompt 512 --new 32

Model FLOPs are those of the forward pass three times, each prompt once a group; what is computed
again in the backward pass is not counted, and neither is padding.
"""

import statistics
import time

import benchmarks


def main():
  args = benchmarks.parser(__doc__).parse_args()
  config = benchmarks.MODELS[args.model]
  trainer = benchmarks.Trainer(args)
  samples = benchmarks.sampled(args, trainer.state.policy, 0)
  batch = benchmarks.batch_of(args, samples, 0)
  began = time.perf_counter()
  scored = trainer.score(batch)
  metrics = trainer.learn(scored)
  first = time.perf_counter() - began

  score, score_cpu = benchmarks.clocked(lambda: trainer.score(batch), args.steps, args.warmup)
  learn, learn_cpu = benchmarks.clocked(lambda: trainer.learn(scored), args.steps, args.warmup)
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
