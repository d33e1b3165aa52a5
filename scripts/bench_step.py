"""A whole GRPO step: rollout, reference scoring, update; and how long the first one takes.

python scripts/bench_step.py
python scripts/bench_step.py --lengths ragged
python scripts/bench_step.py --prompt 512 --new 32
"""

import statistics
import time

import benchmarks


def run(args, title='step'):
  config = benchmarks.MODELS[args.model]
  began = time.perf_counter()
  trainer = benchmarks.Trainer(args)
  parts = {'rollout': [], 'score': [], 'update': []}
  counts, step = [], iter(range(1000))

  def one():
    number = next(step)
    times = [time.perf_counter()]
    batch = benchmarks.batch_of(
      args, benchmarks.sampled(args, trainer.state.policy, number, counts), number
    )
    times.append(time.perf_counter())
    batch = trainer.score(batch)
    times.append(time.perf_counter())
    trainer.learn(batch)
    times.append(time.perf_counter())
    for name, before, after in zip(parts, times, times[1:]):
      parts[name].append(after - before)

  one()
  first = time.perf_counter() - began
  seconds, cpu = benchmarks.clocked(one, args.steps, args.warmup)
  rss = benchmarks.peak_rss_mb()  # before the ceilings are measured, which need memory too
  forward = benchmarks.forward_flops(
    config, [args.prompt] * args.prompts, benchmarks.limits(args, 0)
  )
  peak = benchmarks.peak_flops(config.dtype)
  median = statistics.median
  of_part = {f'{name}, seconds': median(times[-args.steps :]) for name, times in parts.items()}
  benchmarks.report(
    title,
    args,
    {
      'tokens': counts[-1].tokens,
      'seconds, median': median(seconds),
      'CPU seconds, median': median(cpu),
      **of_part,
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
  run(benchmarks.parser(__doc__).parse_args())
