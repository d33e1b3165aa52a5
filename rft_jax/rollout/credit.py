"""Credit by steps: the reasoning as a chain of states, each step with a reward of its own.

    split -> a reward for each step -> advantages of steps -> one advantage for each token

The rewards come from a grader of steps (process), from the grades of what stands there so far
(prefix), or from completions sampled anew from each state (resample).
"""

import dataclasses
import time
from typing import NamedTuple

import numpy as np

from rft_jax import graders
from rft_jax.data import segments
from rft_jax.errors import GraderFaults
from rft_jax.objectives import reasoning_steps as objectives
from rft_jax.rollout import grading_queue
from rft_jax.rollout.rollout import RolloutConfig
from rft_jax.rollout.state_values import Resampling
from rft_jax.types import Episode

LEVELS = ('auto', 'response', 'reasoning_step', 'token')
SOURCES = ('prefix', 'process', 'resample')
ESTIMATORS = ('auto', 'baseline', 'normalised', 'difference')


@dataclasses.dataclass(slots=True, kw_only=True)
class CreditConfig:
  """Where credit goes. All but level is about level='reasoning_step'; `estimator` about grpo alone."""

  # response: one advantage for a whole sample. step: one for each step of it. token: one for each
  # token, which needs a critic. auto: token in ppo, response elsewhere.
  level: str = 'auto'
  # What ends a step: paragraph (an empty line), line, delimiter (the text below), or turn (a tool
  # answers; without tools the whole completion is one). The end of the reasoning ends one too.
  step_boundary: str = 'paragraph'
  delimiter: str = ''  # of step_boundary='delimiter'
  max_reasoning_steps: int = 16  # of a sample; what follows belongs to the last one
  # Where a step's reward comes from.
  # process: credit.grader grades the text of each step.
  # prefix: what the grade of the text so far has risen by; at the end it is the final grade.
  # resample: what the mean grade of completions sampled from there has risen by (VinePPO).
  source: str = 'prefix'
  # Grader JSON, a dict or a path, of process, and of prefix where the run's grader cannot read
  # half an answer. It sees item.reasoning_step.text, .before and .index (from 0) beside the row's fields.
  grader: object = ''
  # baseline: the sum of rewards to the end, less the mean of the group's at the same step.
  # normalised: the sum of rewards divided by the std of the group's. difference: the step's own
  # rise alone, for prefix and resample. auto: difference for resample, baseline for the others.
  estimator: str = 'auto'
  # Of the final grade's advantage in the total; -1: 1 for process, 0 for prefix and resample, in
  # which the last step is the final grade already.
  outcome_weight: float = -1.0
  process_weight: float = 1.0  # of the steps' advantages in the total
  resamples: int = 4  # completions from each state, of source='resample'

  def validate(self) -> list[str]:
    by_steps, process = self.level == 'reasoning_step', self.source == 'process'
    checks = (
      (self.level in LEVELS, f'level={self.level!r}, need one of {LEVELS}'),
      (
        self.step_boundary in segments.BORDERS,
        f'step_boundary={self.step_boundary!r}, need one of {tuple(segments.BORDERS)}',
      ),
      (
        bool(self.delimiter) == (self.step_boundary == 'delimiter'),
        f'delimiter={self.delimiter!r} with step_boundary={self.step_boundary!r}: need a text for '
        "step_boundary='delimiter', and none for the others",
      ),
      (self.max_reasoning_steps >= 2, f"max_reasoning_steps={self.max_reasoning_steps}, need >= 2; one step is level='response'"),
      (self.source in SOURCES, f'source={self.source!r}, need one of {SOURCES}'),
      (
        not by_steps or not process or bool(self.grader),
        "grader is empty, need grader JSON for source='process': it grades each step",
      ),
      (
        not by_steps or self.source != 'resample' or not self.grader,
        "grader is set, need none for source='resample': whole answers are graded, with the "
        "run's grader",
      ),
      (self.estimator in ESTIMATORS, f'estimator={self.estimator!r}, need one of {ESTIMATORS}'),
      (
        not (process and self.estimator == 'difference'),
        "estimator='difference' with source='process': rewards of steps are no values of states, "
        "need 'baseline' or 'normalised'",
      ),
      (
        self.outcome_weight >= 0 or self.outcome_weight == -1,
        f'outcome_weight={self.outcome_weight}, need >= 0, or -1: chosen',
      ),
      (
        self.process_weight > 0,
        f"process_weight={self.process_weight}, need > 0; without the steps it is level='response'",
      ),
      (self.resamples >= 1, f'resamples={self.resamples}, need >= 1'),
    )
    return [problem for good, problem in checks if not good]


def problems(config: CreditConfig, algorithms) -> list[str]:
  """Returns why the stages' algorithms cannot give credit at config.level; [] if they can."""
  if config.level == 'token' and 'grpo' in algorithms:
    return [
      "credit.level='token' with algorithm 'grpo': a value for each token needs a critic, "
      "which grpo has not; need algorithm 'ppo', or credit.level='reasoning_step' (its "
      "source='resample' values states without a critic)"
    ]
  if config.level == 'reasoning_step' and not {'grpo', 'ppo'} & {*algorithms}:
    return [
      f"credit.level='reasoning_step' with algorithms {tuple(algorithms)}: need a stage of 'grpo' or "
      "'ppo', or credit.level='auto'"
    ]
  if config.level == 'reasoning_step' and config.source == 'resample' and 'ppo' in algorithms:
    return [
      "credit.source='resample' with algorithm 'ppo': its critic values the states already; "
      "need algorithm 'grpo', or credit.source='prefix' or 'process'"
    ]
  return []


def chosen(config: CreditConfig) -> tuple[str, float]:
  """Returns (the estimator, the weight of the outcome), with 'auto' and -1 decided."""
  estimator, weight = config.estimator, config.outcome_weight
  if estimator == 'auto':
    estimator = 'difference' if config.source == 'resample' else 'baseline'
  return estimator, float(config.source == 'process') if weight == -1 else weight


class StepRewards(NamedTuple):
  """What the steps of B samples are worth; rows in the order of their groups."""

  ends: list[list[int]]  # the last token of each step
  rewards: list[list[float]]  # one for each step; of prefix and resample the rises
  whole: np.ndarray  # bool[P]: every step of the group has its reward
  metrics: dict[str, float]


def advantages(
  groups: list[list[Episode]], weights, outcome, given: StepRewards, config: CreditConfig
) -> np.ndarray:
  """Returns the advantages f32[B, T] of tokens: of their step, blended with the sample's.

  A group that is not whole has the advantages of its samples alone.

  Args:
    weights: f32[B, T].
    outcome: f32[P, G], from the final grades.
  """
  estimator, outcome_weight = chosen(config)
  weights = np.asarray(weights)
  group = np.repeat(np.arange(len(groups)), [len(some) for some in groups])
  outcome, whole = np.asarray(outcome, np.float32).reshape(-1), given.whole[group]
  rewards = [row if sure else [0.0] * len(row) for row, sure in zip(given.rewards, whole)]
  values = {
    'baseline': lambda: objectives.baseline_sums(rewards, group),
    'normalised': lambda: objectives.normalised_sums(rewards, group),
    'difference': lambda: [np.asarray(row, np.float64) for row in rewards],
  }[estimator]()
  total = objectives.blend(
    outcome,
    objectives.to_tokens(values, given.ends, weights),
    weights,
    outcome_weight=outcome_weight,
    process_weight=config.process_weight,
  )
  return np.where(whole[:, None], total, outcome[:, None] * weights)


def on_tokens(
  groups: list[list[Episode]], weights, outcome, given: StepRewards, config: CreditConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (what whole answers earn f64[B], what steps earn, on their last tokens, f32[B, T]).

  What a critic learns from; a group that is not whole earns its outcome alone.

  Args:
    weights: f32[B, T].
    outcome: f64[B], the final grades.
  """
  whole = np.repeat(given.whole, [len(some) for some in groups])
  earned = np.zeros(np.shape(weights), np.float32)
  for b, (ends, rewards) in enumerate(zip(given.ends, given.rewards)):
    if whole[b]:
      earned[b, ends] = config.process_weight * np.asarray(rewards)
  return np.where(whole, chosen(config)[1] * outcome, outcome), earned


def splitter(chat, config: CreditConfig):
  """Returns split(tokens) -> segments.Steps, as config says where steps end."""
  return segments.make(
    chat.decode,
    steps=config.step_boundary,
    delimiter=config.delimiter,
    reasoning=chat.reasoning,
    max_reasoning_steps=config.max_reasoning_steps,
  )


def make(
  chat,
  config: CreditConfig,
  rollout: RolloutConfig,
  *,
  grader,
  step_grader,
  seed: int,
  mesh,
  response_format=None,
):
  """Returns step_rewards(policy, groups, step) -> StepRewards, for groups graded whole.

  Args:
    grader: the run's.
    step_grader: of config.grader; None: the run's.

  Raises (in a call):
    GraderFaults: more than rollout.max_grader_faults of the grades failed.
  """
  split, asked = splitter(chat, config), step_grader or grader

  def step_rewards(policy, groups, step) -> StepRewards:
    began = time.monotonic()
    episodes = [episode for group in groups for episode in group]
    parts = [split(episode.sample.tokens) for episode in episodes]
    if config.source == 'resample':
      resampling = Resampling(chat, config.resamples, rollout, grader, seed, mesh, response_format)
      grades, metrics = resampling.grades(policy, episodes, parts, step)
    else:
      grades, metrics = _graded(asked, episodes, parts, config.source)
    _check_faults(grades, rollout, step)
    starts, last = _starts(groups, config.source), config.source != 'process'
    rewards = [
      _rewards(
        [grades[b, j] for j in range(len(part.ends) - last)],
        config.source,
        starts[b],
        episodes[b].grade.reward,
      )
      for b, part in enumerate(parts)
    ]
    whole, first = np.ones(len(groups), bool), 0
    for p, group in enumerate(groups):
      whole[p] = all(None not in row for row in rewards[first : first + len(group)])
      first += len(group)
    given = StepRewards(
      [part.ends for part in parts],
      [[0.0 if r is None else r for r in row] for row in rewards],
      whole,
      {},
    )
    return given._replace(
      metrics=_metrics(given, config) | metrics | {'seconds/credit': time.monotonic() - began}
    )

  return step_rewards


# ------------------------------------------------------------------ grades of steps and prefixes


def _graded(grader, episodes, parts, source):
  """Returns ({(row, step): rewards}, metrics): each step graded, or the text up to its end."""
  with grading_queue.GradingQueue(grader) as queue:
    for b, (episode, part) in enumerate(zip(episodes, parts)):
      # The prefix that ends at the end is the answer, which has its grade.
      for j in range(len(part.ends) - (source == 'prefix')):
        before = part.so_far[j - 1] if j else ''
        about = {'text': part.said[j], 'before': before, 'index': j}
        text = part.said[j] if source == 'process' else part.so_far[j]
        queue.submit((b, j), {**episode.item.row, 'reasoning_step': about}, graders.make_sample(text)[0])
  told = {f'credit/{name}': value for name, value in grading_queue.metrics(queue.counts()).items()}
  return {key: [grade.reward] for key, grade in queue.grades.items()}, told


def _rewards(grades, source, start, end) -> list[float | None]:
  """Returns the reward of each step of a sample; None where a grade is missing.

  Args:
    grades: of each step, or, of prefix and resample, those of each state between two steps.
    start, end: the value of the prompt, and the final grade.
  """
  means = [None if None in row else float(np.mean(row)) for row in grades]
  if source == 'process':
    return means
  J, values = len(means) + 1, [start, *means, end]
  if None in values:
    return [None] * J
  return objectives.differences([values])[0].tolist()


def _starts(groups, source) -> list[float]:
  """Returns the value of each sample's prompt: of resample the mean of the group's other grades."""
  if source != 'resample':
    return [0.0] * sum(map(len, groups))
  starts = []
  for group in groups:
    grades = np.array([episode.grade.reward for episode in group], np.float64)
    starts += ((grades.sum() - grades) / max(len(grades) - 1, 1)).tolist()
  return starts


# ------------------------------------------------------------------ what is told


def _check_faults(grades, rollout, step):
  every = [reward for row in grades.values() for reward in row]
  failed = sum(reward is None for reward in every)
  if failed > rollout.max_grader_faults * len(every):
    raise GraderFaults(
      f'step {step}: the grader failed on {failed} of {len(every)} steps, more than '
      f'rollout.max_grader_faults={rollout.max_grader_faults}. Mend credit.grader or the rows; '
      'the run continues from its last checkpoint.'
    )


def _metrics(given, config):
  counts = np.array([len(row) for row in given.ends])
  rewards = [reward for row in given.rewards for reward in row]
  return {
    'credit/reasoning_steps_mean': float(counts.mean()),
    'credit/at_max_reasoning_steps': float((counts == config.max_reasoning_steps).mean()),
    'credit/reasoning_step_reward': float(np.mean(rewards)),
    'credit/groups_without_step_rewards': float((~given.whole).sum()),
  }
