"""Held-out evaluation: greedy and sampled answers, grades, pass@k, with 95 % intervals."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from rft_jax import hf
from rft_jax.bootstrap import intervals
from rft_jax.config import Config
from rft_jax.errors import as_input_error
from rft_jax.rollout import rollout
from rft_jax.run import build, build_grader
from rft_jax.types import Episode

STREAM = 0x4E11  # folded into the seed: evaluation has random numbers of its own


class Evaluation(NamedTuple):
  """The result of a policy on the held-out rows."""

  values: dict[str, dict[str, float]]  # metric -> mean, low, high (95 %, bootstrap over rows)
  rows: int
  greedy: list[Episode]  # one for each row; [] without a grader
  sampled: rollout.Rollout | None  # k for each row


def make(components, config: Config):
  """Returns evaluate(policy) -> Evaluation on the held-out rows.

  The random numbers are the same in every call, so that two policies differ by what they have
  learnt and not by chance, and independent of those of training. Without a grader nothing is
  sampled and nothing measured.

  Args:
    components: the RunComponents.
  """
  validation = components.validation
  if components.grader is None:
    return lambda policy: Evaluation({}, len(validation), [], None)
  seed = int(np.random.SeedSequence([config.seed, STREAM]).generate_state(1)[0] >> 1)
  sampled_settings = dataclasses.replace(
    config.rollout,
    samples_per_prompt=config.evaluate.samples_per_prompt,
    temperature=config.evaluate.temperature,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    quantization='none',
  )
  greedy_settings = dataclasses.replace(sampled_settings, samples_per_prompt=1, temperature=0.0)
  make_rollout = lambda settings: rollout.make(
    components.chat,
    components.grader,
    settings,
    seed=seed,
    mesh=components.mesh,
    response_format=components.response_format,
  )
  sample, decode_greedy = make_rollout(sampled_settings), make_rollout(greedy_settings)
  occurrences = list(range(len(validation)))

  def evaluate_policy(policy) -> Evaluation:
    sampled = sample(policy, validation, occurrences, 0)
    greedy = [group[0] for group in decode_greedy(policy, validation, occurrences, 0).groups]
    columns = measure(sampled.groups, greedy, config.evaluate.pass_threshold)
    return Evaluation(intervals(columns), len(validation), greedy, sampled)

  # The function has its ahead-of-time compilation as an attribute, as rollout.make's has.
  evaluate_policy.compile_ahead = (  # type: ignore[attr-defined]
    lambda policy: sample.compile_ahead(policy, validation)
  )
  return evaluate_policy


def measure(sampled, greedy, pass_threshold) -> dict[str, np.ndarray]:
  """Returns {metric: f64[rows]}, NaN where a grader fault leaves a row without a value."""
  rewards = np.array([[_reward(episode) for episode in group] for group in sampled])
  passed = np.where(np.isnan(rewards), np.nan, rewards >= pass_threshold)
  mean = lambda value: np.array([np.mean([value(e) for e in group]) for group in sampled])
  k = rewards.shape[1]
  columns = {
    'grade': rewards.mean(1),
    'greedy/grade': np.array([_reward(e) for e in greedy]),
    'greedy/pass': np.array([_reward(e) >= pass_threshold for e in greedy], float),
    'truncated': mean(lambda e: e.sample.stop_reason == 'length'),
    'unparsable': mean(_unparsable),
    'mean_tokens': mean(lambda e: len(e.sample.tokens)),
    'reasoning_tokens': mean(lambda e: e.reasoning_tokens),
  }
  for size in sorted({1, k} | {2**n for n in range(1, k.bit_length()) if 2**n <= k}):
    columns[f'pass@{size}'] = np.array([pass_at_k(k, c, size) for c in passed.sum(1)])
  return columns


def pass_at_k(n: int, correct: float, k: int) -> float:
  """Returns the unbiased estimate of the chance that one of k samples passes, from n samples.

      1 - C(n - c, k) / C(n, k)

  Chen et al. 2021, https://arxiv.org/abs/2107.03374. NaN in, NaN out.
  """
  if math.isnan(correct):
    return math.nan
  return 1.0 - math.comb(n - int(correct), k) / math.comb(n, k)


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
    InputError: config, data, grader or checkpoint are not fit; lists every problem.
  """
  source = model or config.model.source
  build_grader.check_graded(config)
  with build.components(config, source=source, training=False) as components:
    policy, _ = as_input_error(
      hf.load,
      source,
      dtype=config.model.dtype,
      attention=config.model.attention,
      mesh=components.mesh,
    )
    return make(components, config)(policy).values
