"""Held-out rows -> greedy and sampled answers -> grades, pass@k, faults, with 95 % intervals."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rft_jax import hf
from rft_jax.config import Config
from rft_jax.errors import as_input_error
from rft_jax.rollout import rollout
from rft_jax.run import build
from rft_jax.types import Episode, Example

BOOTSTRAP = 2000  # resamples of the rows
STREAM = 0x4E11  # folded into the seed: evaluation has random numbers of its own


class Evaluation(NamedTuple):
  """What a policy does on held-out rows."""

  values: dict[str, dict[str, float]]  # metric -> mean, low, high (95 %, bootstrap over rows)
  rows: int
  greedy: list[Episode]  # one a row; [] without a grader
  sampled: rollout.Rollout | None  # k a row


def make(chat, grader, config: Config, *, mesh, response_format=None):
  """Returns evaluate(policy, examples) -> Evaluation.

  The random numbers are the same at every call, so that two policies differ by what they have
  learnt and not by their draws, and independent of those of training. Without a grader nothing is
  sampled, and nothing measured here.
  """
  if grader is None:
    return lambda policy, examples: Evaluation({}, len(examples), [], None)
  seed = int(np.random.SeedSequence([config.seed, STREAM]).generate_state(1)[0] >> 1)
  settings = dataclasses.replace(
    config.rollout,
    samples_per_prompt=config.evaluate.samples_per_prompt,
    temperature=config.evaluate.temperature,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    quantization='none',
  )
  greedily = dataclasses.replace(settings, samples_per_prompt=1, temperature=0.0)
  run = lambda settings: rollout.make(
    chat, grader, settings, seed=seed, mesh=mesh, response_format=response_format
  )
  sample, decode = run(settings), run(greedily)

  def evaluate_policy(policy, examples: list[Example]) -> Evaluation:
    occurrences = list(range(len(examples)))
    sampled = sample(policy, examples, occurrences, 0)
    greedy = [group[0] for group in decode(policy, examples, occurrences, 0).groups]
    columns = measure(sampled.groups, greedy, config.evaluate.pass_threshold)
    return Evaluation(intervals(columns), len(examples), greedy, sampled)

  evaluate_policy.compile_ahead = sample.compile_ahead
  return evaluate_policy


def measure(sampled, greedy, pass_threshold) -> dict[str, np.ndarray]:
  """Returns {metric: f64[rows]}, NaN where a grader fault leaves a row without a value."""
  rewards = np.array([[_reward(e) for e in group] for group in sampled])
  passed = np.where(np.isnan(rewards), np.nan, rewards >= pass_threshold)
  share = lambda test: np.array([np.mean([test(e) for e in group]) for group in sampled])
  k = rewards.shape[1]
  columns = {
    'grade': rewards.mean(1),
    'greedy/grade': np.array([_reward(e) for e in greedy]),
    'greedy/pass': np.array([_reward(e) >= pass_threshold for e in greedy], float),
    'truncated': share(lambda e: e.sample.stop_reason == 'length'),
    'unparsable': share(_unparsable),
    'mean_tokens': share(lambda e: len(e.sample.tokens)),
    'reasoning_tokens': share(lambda e: e.reasoning_tokens),
  }
  for size in sorted({1, k} | {2**n for n in range(1, k.bit_length()) if 2**n <= k}):
    columns[f'pass@{size}'] = np.array([pass_at_k(k, c, size) for c in passed.sum(1)])
  return columns


def pass_at_k(n: int, correct: float, k: int) -> float:
  """Returns the unbiased chance that one of k samples passes, of which `correct` of n did.

      1 - C(n - c, k) / C(n, k)

  Chen et al. 2021, https://arxiv.org/abs/2107.03374. NaN in, NaN out.
  """
  if math.isnan(correct):
    return math.nan
  return 1.0 - math.comb(n - int(correct), k) / math.comb(n, k)


def intervals(columns: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """Returns the mean of each column with its 95 % interval, percentile bootstrap over rows."""
  results = {}
  for name, values in columns.items():
    values = values[~np.isnan(values)]
    if len(values):
      means = _resampled_means(values)
      low, high = np.quantile(means, [0.025, 0.975])
      results[name] = {'mean': float(values.mean()), 'low': float(low), 'high': float(high)}
  return results


def paired_difference(after, before) -> dict[str, float]:
  """Returns the mean of after - before over the same rows, with its 95 % interval.

  Args:
    after, before: f64[rows], NaN where a row has no value in one of them: left out of both.
  """
  difference = np.asarray(after, float) - np.asarray(before, float)
  return intervals({'difference': difference})['difference']


def _resampled_means(values):
  rng = np.random.default_rng(0)  # the same resamples for every column and every evaluation
  counts = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=BOOTSTRAP)
  return counts @ values / len(values)


def _reward(episode):
  return math.nan if episode.grade.reward is None else episode.grade.reward


def _unparsable(episode):
  errors = episode.grade.errors
  return bool(
    errors.get('sample_parse_error')
    or errors.get('unresponsive_reward_error')
    or errors.get('python_grader_runtime_error')
    or errors.get('invalid_variable_error')
  )


def evaluate(config: Config, model: str = '') -> dict[str, dict[str, float]]:
  """Grades a Hugging Face checkpoint on the held-out rows.

  Args:
    config: the run's Config; its stages are not used.
    model: HF directory or hub id; '' means config.model.source.

  Returns:
    {metric: {'mean', 'low', 'high'}} over the validation rows, 95 % intervals.

  Raises:
    build.Refused: config, data, grader or checkpoint are not fit; lists everything found.
  """
  source = model or config.model.source
  build.check_graded(config)
  with build.components(config, source=source, training=False) as components:
    policy, _ = as_input_error(
      hf.load, source, dtype=config.model.dtype, attention=config.model.attention, mesh=components.mesh
    )
    run = make(
      components.chat, components.grader, config, mesh=components.mesh, response_format=components.response_format
    )
    return run(policy, components.validation).values
