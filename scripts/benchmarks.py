"""Shared parts of the bench_*.py scripts: models, completion lengths, timing, peak FLOP/s, report.

The workload is that of published comparisons of small-scale GRPO: a Qwen3 of 4.2 million parameters
with random weights, 8 prompts of 64 tokens, 8 samples each of up to 128, a reference model with KL
0.04, AdamW, one update per rollout. --model=1.5b has the shape of Qwen2.5-1.5B, in bfloat16.
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
from rft_jax.models.decoding_layers import QUANTIZATIONS
from rft_jax.objectives.advantages import AdvantageConfig, group_advantages
from rft_jax.objectives.policy_objective import ObjectiveConfig, policy_objective
from rft_jax.sampling import engine
from rft_jax.training import optim
from rft_jax.training.scoring import score_batch
from rft_jax.training.update import UpdateConfig, make_update
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
MEDIAN, SIGMA = 39.5, 0.7  # ragged lengths: lognormal, clipped; their mean is 48 if clipped at 128


# --- the command line -----------------------------------------------------------------------------
def make_parser(doc: str) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', choices=sorted(MODELS), default='small')
  parser.add_argument('--prompts', type=int, default=8)
  parser.add_argument('--samples', type=int, default=8, help='samples per prompt')
  parser.add_argument('--prompt', type=int, default=64, help='tokens per prompt')
  parser.add_argument('--new', type=int, default=128, help='maximum tokens of a completion')
  parser.add_argument('--lengths', choices=('fixed', 'ragged'), default='fixed')
  parser.add_argument('--steps', type=int, default=6, help='timed steps')
  parser.add_argument('--warmup', type=int, default=2, help='untimed steps before them')
  parser.add_argument('--slots', type=int, default=0, help='slots of the engine; 0: automatic')
  parser.add_argument(
    '--quantization',
    choices=QUANTIZATIONS,
    default='none',
    help='quantization of the weights in the rollout',
  )
  parser.add_argument('--microbatch_tokens', type=int, default=0, help='0: automatic')
  parser.add_argument('--remat', choices=tuple(models.REMAT), default=UpdateConfig().remat)
  return parser


# --- workload -------------------------------------------------------------------------------------
def ragged_lengths(count: int, most: int, step: int) -> list[int]:
  """Returns the mid-quantiles of the lognormal, clipped to 1..most, shuffled by step."""
  normal = statistics.NormalDist()
  lengths = [
    min(most, max(1, round(MEDIAN * math.exp(SIGMA * normal.inv_cdf((i + 0.5) / count)))))
    for i in range(count)
  ]
  random.Random(step).shuffle(lengths)
  return lengths


def limits(args, step: int):
  """Returns the forced length of each sample, P lists of G."""
  P, G = args.prompts, args.samples
  flat = ragged_lengths(P * G, args.new, step) if args.lengths == 'ragged' else [args.new] * P * G
  return [flat[p * G : (p + 1) * G] for p in range(P)]


def prompts(args, step: int) -> list[list[int]]:
  rng = np.random.default_rng(step)
  return rng.integers(4, 4096, (args.prompts, args.prompt)).tolist()


def sample(args, model, step: int, statistics=None):
  """Returns the samples of one rollout.

  The engine checks the forced length of a sample after each token, as it checks for EOS: it does
  not use the length for scheduling.
  """
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
    on_statistics=None if statistics is None else statistics.append,
  )


def make_batch(args, samples, step: int) -> Batch:
  """Returns the batch of a rollout, with artificial rewards: the fraction of odd token ids."""
  item = Item({'messages': []}, 'synthetic')
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
  """Policy, reference, and the scoring and update of a GRPO step after its rollout."""

  def __init__(self, args):
    self.args, self.mesh = args, sharding.make_mesh()
    config = MODELS[args.model]
    init = lambda seed: sharding.place(
      functools.partial(models.init, config), self.mesh, jax.random.key(seed)
    )
    self.reference = init(0)
    policy = init(0)
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


# --- FLOPs and bytes ------------------------------------------------------------------------------
def forward_flops(config, prompt_lengths, completion_lengths, head=True) -> float:
  """Returns the FLOPs of one forward pass: each prompt once, each completion after its prompt.

  Args:
    prompt_lengths: of the P prompts.
    completion_lengths: P lists of the lengths of their completions.
  """
  head_flops = 2 * config.dim * config.vocab_size
  token = 2 * config.matrix_parameters - head_flops
  pair = 4 * config.layers * config.heads * config.head_dim  # one attended (query, key) pair
  total = 0.0
  for m, lengths in zip(prompt_lengths, completion_lengths):
    total += m * token + pair * m * m / 2
    for n in lengths:
      total += n * (token + (head_flops if head else 0)) + pair * (n * m + n * n / 2)
  return total


def decode_bytes(config, rows: int, positions: float) -> float:
  """Returns the bytes that a decoding step must read: kernels, head, KV cache of its rows."""
  size = 2 if config.dtype == 'bfloat16' else 4
  head = 4 * config.dim * config.vocab_size  # logits are float32
  kernels = size * (config.matrix_parameters - config.dim * config.vocab_size)
  return (
    kernels
    + head
    + 2 * size * config.layers * config.kv_heads * config.head_dim * (rows * positions)
  )


def peak_flops(dtype='float32', size: int = 2048) -> float:
  """Returns the peak FLOP/s of this machine: a size-cubed matrix product, best of several."""
  x = jnp.ones((size, size), dtype)
  exact = jax.lax.Precision.HIGHEST if dtype == 'float32' else jax.lax.Precision.DEFAULT
  product = jax.jit(lambda x: jnp.matmul(x, x, precision=exact))
  return 2 * size**3 / min(timed(lambda: jax.block_until_ready(product(x)), 8)[0])


def peak_bandwidth(megabytes: int = 256) -> float:
  """Returns the bytes/s of reading and writing a large array, the best of several."""
  arrays = [jnp.ones(megabytes * 2**18, jnp.float32)]
  add = jax.jit(lambda x: x + 1.0, donate_argnums=0)  # in place: new memory causes page faults

  def once():
    arrays[0] = jax.block_until_ready(add(arrays[0]))

  return 2 * megabytes * 2**20 / min(timed(once, 8)[0])


# --- timing and report ----------------------------------------------------------------------------
def timed(function, times: int, warmup: int = 1) -> tuple[list[float], list[float]]:
  """Returns the seconds and CPU seconds of each call after the warm-up calls."""
  seconds, cpu = [], []
  for turn in range(warmup + times):
    start, cpu_start = time.perf_counter(), time.process_time()
    function()
    if turn >= warmup:
      seconds.append(time.perf_counter() - start)
      cpu.append(time.process_time() - cpu_start)
  return seconds, cpu


def peak_rss_mb() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def peak_device_mb() -> int | None:
  stats = jax.devices()[0].memory_stats() or {}
  return stats['peak_bytes_in_use'] // 2**20 if 'peak_bytes_in_use' in stats else None


def report(title: str, args, rows: dict, **details) -> None:
  """Prints a table of rows and, as the last line, everything as one JSON object."""
  width = max(map(len, rows))
  print(
    f'{title}: {args.prompts} prompts of {args.prompt} x {args.samples} samples of up to '
    f'{args.new}, {args.lengths} lengths, {args.model} model, {jax.devices()[0].device_kind}'
  )
  for name, value in rows.items():
    text = (
      f'{value:,.3f}'
      if isinstance(value, float) and abs(value) < 100
      else (f'{value:,.0f}' if isinstance(value, (int, float)) else str(value))
    )
    print(f'  {name:<{width}}  {text}')
  print(
    json.dumps(
      {
        'benchmark': title,
        **vars(args),
        **rows,
        **details,
        'jax': jax.__version__,
        'device': jax.devices()[0].device_kind,
        'peak_rss_mb': peak_rss_mb(),
        'peak_device_mb': peak_device_mb(),
        'load': os.getloadavg()[0],
      }
    )
  )
