"""Benchmark of the rollout: completion tokens per second, and fraction of the peak bandwidth.

python scripts/bench_rollout.py --prompts 32 --samples 1            # 32 x (64 + 128)
python scripts/bench_rollout.py --lengths ragged
"""

import statistics
import time

import benchmarks

from rft_jax import models, platform
from rft_jax.sampling import decode_session


def main():
  args = benchmarks.make_parser(__doc__).parse_args()
  config = benchmarks.MODELS[args.model]
  model = models.make(config, seed=0)
  start = time.perf_counter()
  benchmarks.sample(args, model, 0)
  first = time.perf_counter() - start

  counts, step = [], iter(range(1, 1000))
  seconds, cpu = benchmarks.timed(
    lambda: benchmarks.sample(args, model, next(step), counts), args.steps, args.warmup
  )
  median = statistics.median(seconds)
  count = counts[-1]
  rows = count.decoded / max(count.tokens, 1)  # slots computed per token of a completion
  flops = benchmarks.forward_flops(config, [args.prompt] * args.prompts, benchmarks.limits(args, 1))
  bandwidth, peak = benchmarks.peak_bandwidth(), benchmarks.peak_flops(config.dtype)
  slots = args.slots or decode_session.slots_for(
    config, args.new, args.prompts * args.samples, platform.backend()
  )
  bytes_read = benchmarks.decode_bytes(config, slots, args.prompt + args.new / 2) * (
    count.decoded / slots
  )
  benchmarks.report(
    'rollout',
    args,
    {
      'tokens': count.tokens,
      'seconds, median': median,
      'CPU seconds, median': statistics.median(cpu),
      'tokens/s': count.tokens / median,
      'tokens/s, best': count.tokens / min(seconds),
      'slots': slots,
      'tokens decoded / wanted': rows,
      'share of peak FLOP/s': flops / median / peak,
      'share of peak bandwidth': bytes_read / median / bandwidth,
      'first call, seconds': first,
      'programs compiled': decode_session.compilations(),
    },
    seconds=seconds,
    cpu_seconds=cpu,
    peak_gflops=peak / 1e9,
    peak_gb_s=bandwidth / 1e9,
  )


if __name__ == '__main__':
  main()
