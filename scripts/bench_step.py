"""Benchmark of a whole GRPO step: rollout, reference scoring, update; and of the first step.

python scripts/bench_step.py
python scripts/bench_step.py --lengths ragged
python scripts/bench_step.py --prompt 512 --new 32
"""

import statistics
import time

import benchmarks


def run(args, title='step'):
  config = benchmarks.MODELS[args.model]
  start = time.perf_counter()
  trainer = benchmarks.Trainer(args)
  parts = {'rollout': [], 'score': [], 'update': []}
  counts, step = [], iter(range(1000))

  def run_step():
    number = next(step)
    times = [time.perf_counter()]
    samples = benchmarks.sample(args, trainer.state.policy, number, counts)
    batch = benchmarks.make_batch(args, samples, number)
    times.append(time.perf_counter())
    batch = trainer.score(batch)
    times.append(time.perf_counter())
    trainer.learn(batch)
    times.append(time.perf_counter())
    for name, before, after in zip(parts, times, times[1:]):
      parts[name].append(after - before)

  run_step()
  first = time.perf_counter() - start
  seconds, cpu = benchmarks.timed(run_step, args.steps, args.warmup)
  rss = benchmarks.peak_rss_mb()  # before measuring the peak FLOP/s, which allocates memory too
  forward = benchmarks.forward_flops(
    config, [args.prompt] * args.prompts, benchmarks.limits(args, 0)
  )
  peak = benchmarks.peak_flops(config.dtype)
  median = statistics.median
  part_seconds = {f'{name}, seconds': median(times[-args.steps :]) for name, times in parts.items()}
  benchmarks.report(
    title,
    args,
    {
      'tokens': counts[-1].tokens,
      'seconds, median': median(seconds),
      'CPU seconds, median': median(cpu),
      **part_seconds,
      'tokens/s': counts[-1].tokens / median(seconds),
      'tokens decoded / wanted': counts[-1].decoded / counts[-1].tokens,
      'share of peak FLOP/s': 5 * forward / median(seconds) / peak,
      'first step, seconds': first,
      'peak memory, MB': rss,
    },
    seconds=seconds,
    cpu_seconds=cpu,
    peak_gflops=peak / 1e9,
  )


if __name__ == '__main__':
  run(benchmarks.make_parser(__doc__).parse_args())
