"""Benchmark: how the time of a GRPO step scales with sequence length, samples and model size.

  python scripts/bench_scaling.py --steps 2

Each row is a GRPO step. If the last column (fraction of the peak FLOP/s) is constant, time grows in
proportion to FLOPs.
"""

import argparse
import dataclasses
import json
import statistics
import time

import benchmarks
import jax

LENGTHS = ((64, 32), (64, 128), (64, 256), (256, 128), (512, 32))
SAMPLES = (2, 4, 8, 16)
SIZES = {
  'small / 4': dict(layers=2, dim=128, mlp_dim=384, heads=4, kv_heads=2),
  'small': {},
  'small x 3': dict(layers=6, dim=384, mlp_dim=1152, heads=12, kv_heads=4),
}


def measure(args):
  """Returns the median seconds of (rollout, score, update), and the FLOPs of a forward pass."""
  trainer = benchmarks.Trainer(args)
  seconds = []
  for step in range(args.warmup + args.steps):
    times = [time.perf_counter()]
    samples = benchmarks.sample(args, trainer.state.policy, step)
    batch = benchmarks.make_batch(args, samples, step)
    times.append(time.perf_counter())
    batch = trainer.score(batch)
    times.append(time.perf_counter())
    trainer.learn(batch)
    times.append(time.perf_counter())
    seconds.append([after - before for before, after in zip(times, times[1:])])
  medians = [statistics.median(column) for column in zip(*seconds[-args.steps :])]
  return medians, benchmarks.forward_flops(
    benchmarks.MODELS[args.model], [args.prompt] * args.prompts, benchmarks.limits(args, 0)
  )


def main():
  args = benchmarks.make_parser(__doc__).parse_args()
  peak = benchmarks.peak_flops()
  defaults = vars(args)
  runs = [(f'{prompt} + {new}', defaults | dict(prompt=prompt, new=new)) for prompt, new in LENGTHS]
  runs += [(f'{count} samples', defaults | dict(samples=count)) for count in SAMPLES]
  for name, changes in SIZES.items():
    benchmarks.MODELS[name] = dataclasses.replace(benchmarks.SMALL, **changes)
    runs.append((name, defaults | dict(model=name)))
  print(
    f'{"":<12}{"rollout":>9}{"score":>9}{"update":>9}{"step":>9}  s {"GFLOP":>8} {"of peak":>8}'
  )
  rows = {}
  for name, settings in runs:
    (rollout, score, update), flops = measure(argparse.Namespace(**settings))
    total = rollout + score + update
    rows[name] = dict(
      rollout=rollout,
      score=score,
      update=update,
      gflop=5 * flops / 1e9,
      share=5 * flops / total / peak,
    )
    print(
      f'{name:<12}{rollout:9.3f}{score:9.3f}{update:9.3f}{total:9.3f}    '
      f'{5 * flops / 1e9:8.0f} {5 * flops / total / peak:8.1%}',
      flush=True,
    )
  print(
    json.dumps(
      {
        'benchmark': 'scaling',
        'rows': rows,
        'peak_gflops': peak / 1e9,
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
      }
    )
  )


if __name__ == '__main__':
  main()
