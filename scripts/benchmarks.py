"""What the bench_*.py scripts share: the small model, lengths, clocks, ceilings, the report.

The workload is that of published comparisons of small-scale GRPO: a random Qwen3 of 4.2 million
parameters, 8 prompts of 64 tokens, 8 samples each of up to 128, a reference model with KL 0.04,
AdamW, one update a rollout. With --model=1.5b it is shaped like Qwen2.5-1.5B, in bfloat16.
"""

import argparse
import functools
import json
import math
import os
import random
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax import models, sharding
from rft_jax.data import batching
from rft_jax.models import decoding
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.sampling import engine
from rft_jax.training import optim
from rft_jax.training.update import UpdateConfig, make_update, score_batch
from rft_jax.types import Batch, Episode, Grade, Item, TrainState

SMALL = models.DecoderConfig(
  vocab_size=4096,
  dim=256,
  layers=4,
  heads=8,
  kv_heads=4,
  head_dim=32,
  mlp_dim=768,
  tied_head=True,
  qk_norm=True,
  model_type='qwen3',
  max_positions=1024,
  eos_ids=(2,),
)
MODELS = {
  'small': SMALL,
  '1.5b': models.DecoderConfig(
    vocab_size=151936,
    dim=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    head_dim=128,
    mlp_dim=8960,
    tied_head=True,
    qkv_bias=True,
    rope_theta=1e6,
    model_type='qwen2',
    max_positions=32768,
    eos_ids=(2,),
    dtype='bfloat16',
  ),
}
MEDIAN, SIGMA = 39.5, 0.7  # of the long-tailed lengths: lognormal, clipped; 48 in the mean of 128


# --- the command line -----------------------------------------------------------------------------
def parser(doc: str) -> argparse.ArgumentParser:
  made = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  made.add_argument('--model', choices=sorted(MODELS), default='small')
  made.add_argument('--prompts', type=int, default=8)
  made.add_argument('--samples', type=int, default=8, help='of each prompt')
  made.add_argument('--prompt', type=int, default=64, help='tokens of a prompt')
  made.add_argument('--new', type=int, default=128, help='tokens of a completion, at most')
  made.add_argument('--lengths', choices=('fixed', 'ragged'), default='fixed')
  made.add_argument('--steps', type=int, default=6, help='that count')
  made.add_argument('--warmup', type=int, default=2, help='that do not')
  made.add_argument('--slots', type=int, default=0, help='completions side by side; 0: chosen')
  made.add_argument(
    '--quantization',
    choices=decoding.QUANTIZATIONS,
    default='none',
    help='of the kernels in the rollout',
  )
  made.add_argument('--microbatch_tokens', type=int, default=0, help='0: chosen')
  made.add_argument('--remat', choices=tuple(models.REMAT), default=UpdateConfig().remat)
  return made


# --- the work -------------------------------------------------------------------------------------
def ragged_lengths(count: int, most: int, step: int) -> list[int]:
  """Returns the mid-quantiles of the lognormal, clipped to 1..most, in an order that step gives."""
  normal = statistics.NormalDist()
  lengths = [
    min(most, max(1, round(MEDIAN * math.exp(SIGMA * normal.inv_cdf((i + 0.5) / count)))))
    for i in range(count)
  ]
  random.Random(step).shuffle(lengths)
  return lengths


def limits(args, step: int):
  """Returns the length that each sample shall have, P lists of G: where its end is forced."""
  P, G = args.prompts, args.samples
  flat = ragged_lengths(P * G, args.new, step) if args.lengths == 'ragged' else [args.new] * P * G
  return [flat[p * G : (p + 1) * G] for p in range(P)]


def prompts(args, step: int) -> list[list[int]]:
  rng = np.random.default_rng(step)
  return rng.integers(4, 4096, (args.prompts, args.prompt)).tolist()


def sampled(args, model, step: int, statistics=None):
  """Returns the samples of one rollout. The engine is told each one's end as it comes, as by EOS:
  it decides nothing by it beforehand."""
  return engine.generate(
    model,
    prompts(args, step),
    samples_per_prompt=args.samples,
    max_new_tokens=args.new,
    stop_ids=(),
    limits=limits(args, step),
    seed=step,
    slots_per_shard=args.slots,
    quantization=args.quantization,
    report=None if statistics is None else statistics.append,
  )


def batch_of(args, samples, step: int) -> Batch:
  """Returns the batch of a rollout, with made-up rewards: the share of odd tokens."""
  item = Item({'messages': []}, 'made')
  groups = [
    [
      Episode(item, p, g, prompt, sample, '', '', 0, Grade(None, {}, {}), step)
      for g, sample in enumerate(group)
    ]
    for p, (prompt, group) in enumerate(zip(prompts(args, step), samples))
  ]
  rewards = np.array(
    [[np.mean(np.array(sample.tokens) % 2) for sample in group] for group in samples]
  )
  return batching.from_groups(groups, group_advantages(rewards, AdvantageConfig()))


class Trainer:
  """Policy, reference and the two programs of a GRPO step after its rollout."""

  def __init__(self, args):
    self.args, self.mesh = args, sharding.make_mesh()
    config = MODELS[args.model]
    place = lambda seed: sharding.place(
      functools.partial(models.init, config), self.mesh, jax.random.key(seed)
    )
    self.reference = place(0)
    policy = place(0)
    tx = optim.make(optim.OptimConfig(learning_rate=1e-5), 1000)
    optimizer = {'policy': sharding.place(tx.init, self.mesh, policy)}
    self.state = TrainState(0, policy, optimizer)
    self.settings = UpdateConfig(microbatch_tokens=args.microbatch_tokens, remat=args.remat)
    self.update = make_update(
      functools.partial(
        policy_objective, config=ObjectiveConfig(kl_coef=0.04), max_new_tokens=args.new
      ),
      {'policy': tx},
      config=self.settings,
      temperature=1.0,
      mesh=self.mesh,
    )

  def score(self, batch: Batch) -> Batch:
    scored = score_batch(
      self.reference, batch, self.settings, temperature=jnp.float32(1.0), mesh=self.mesh
    )
    return batch._replace(reference_logprobs=scored.logprobs)

  def learn(self, batch: Batch) -> dict:
    self.state, metrics = self.update(self.state, batch)
    return metrics


# --- counting -------------------------------------------------------------------------------------
def forward_flops(config, prompt_lengths, completion_lengths, head=True) -> float:
  """Returns the FLOPs of one forward pass: each prompt once, each completion behind its own.

  Args:
    prompt_lengths: of the P prompts.
    completion_lengths: P lists of the lengths of their completions.
  """
  head_flops = 2 * config.dim * config.vocab_size
  token = 2 * config.matrix_parameters - head_flops
  pair = 4 * config.layers * config.heads * config.head_dim  # a query with a key that it may see
  total = 0.0
  for m, lengths in zip(prompt_lengths, completion_lengths):
    total += m * token + pair * m * m / 2
    for n in lengths:
      total += n * (token + (head_flops if head else 0)) + pair * (n * m + n * n / 2)
  return total


def decode_bytes(config, rows: int, positions: float) -> float:
  """Returns what a decoding step must read: kernels, head, and the keys and values of its rows."""
  size = 2 if config.dtype == 'bfloat16' else 4
  head = 4 * config.dim * config.vocab_size  # logits are float32
  kernels = size * (config.matrix_parameters - config.dim * config.vocab_size)
  return (
    kernels
    + head
    + 2 * size * config.layers * config.kv_heads * config.head_dim * (rows * positions)
  )


def peak_flops(dtype='float32', size: int = 2048) -> float:
  """Returns the FLOP/s of a size-cubed matrix product, the best of several: the ceiling here."""
  x = jnp.ones((size, size), dtype)
  exact = jax.lax.Precision.HIGHEST if dtype == 'float32' else jax.lax.Precision.DEFAULT
  product = jax.jit(lambda x: jnp.matmul(x, x, precision=exact))
  return 2 * size**3 / min(clocked(lambda: jax.block_until_ready(product(x)), 8)[0])


def peak_bandwidth(megabytes: int = 256) -> float:
  """Returns the bytes/s of reading and writing a large array, the best of several."""
  kept = [jnp.ones(megabytes * 2**18, jnp.float32)]
  add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place: fresh memory costs page faults

  def once():
    kept[0] = jax.block_until_ready(add(kept[0]))

  return 2 * megabytes * 2**20 / min(clocked(once, 8)[0])


# --- clocks and the report ------------------------------------------------------------------------
def clocked(function, times: int, warmup: int = 1) -> tuple[list[float], list[float]]:
  """Returns the seconds and CPU-seconds of each counted call."""
  seconds, cpu = [], []
  for turn in range(warmup + times):
    began, began_cpu = time.perf_counter(), time.process_time()
    function()
    if turn >= warmup:
      seconds.append(time.perf_counter() - began)
      cpu.append(time.process_time() - began_cpu)
  return seconds, cpu


def peak_rss_mb() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def peak_device_mb() -> int | None:
  found = jax.devices()[0].memory_stats() or {}
  return found['peak_bytes_in_use'] // 2**20 if 'peak_bytes_in_use' in found else None


def report(title: str, args, rows: dict, **more) -> None:
  """Prints a table of rows and, as the last line, everything as one JSON object."""
  width = max(map(len, rows))
  print(
    f'{title}: {args.prompts} prompts of {args.prompt} x {args.samples} samples of up to '
    f'{args.new}, {args.lengths} lengths, {args.model} model, {jax.devices()[0].device_kind}'
  )
  for name, value in rows.items():
    shown = (
      f'{value:,.3f}'
      if isinstance(value, float) and abs(value) < 100
      else (f'{value:,.0f}' if isinstance(value, (int, float)) else str(value))
    )
    print(f'  {name:<{width}}  {shown}')
  print(
    json.dumps(
      {
        'benchmark': title,
        **vars(args),
        **rows,
        **more,
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
        'peak_rss_mb': peak_rss_mb(),
        'peak_device_mb': peak_device_mb(),
        'load': os.getloadavg()[0],
      }
    )
  )
