"""Credit assignment: the settings, and from rewards of reasoning steps to advantages of tokens.

    split into steps -> a reward for each step -> advantages of steps -> an advantage for each token

The rewards of steps come from a grader of steps (process), from grades of the text so far (prefix),
or from completions sampled from each state (resample); see step_rewards.py.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rft_jax.data import segments
from rft_jax.objectives import reasoning_steps
from rft_jax.types import Episode

LEVELS = ('auto', 'response', 'reasoning_step', 'token')
SOURCES = ('prefix', 'process', 'resample')
ESTIMATORS = ('auto', 'baseline', 'normalised', 'difference')


@dataclasses.dataclass(slots=True, kw_only=True)
class CreditConfig:
  """Credit assignment. All but `level` is for level='reasoning_step'; `estimator` for grpo."""

  # response: one advantage for a whole sample. reasoning_step: one for each reasoning step.
  # token: one for each token, which needs a critic. auto: token in ppo, response elsewhere.
  level: str = 'auto'
  # Where a reasoning step ends: paragraph (an empty line), line, delimiter (the text below), or
  # turn (the answer of a tool; without tools the whole completion is one step). The end of the
  # reasoning also ends a step.
  step_boundary: str = 'paragraph'
  delimiter: str = ''  # of step_boundary='delimiter'
  max_reasoning_steps: int = 16  # of a sample; the text after that belongs to the last step
  # The source of the rewards of steps.
  # process: credit.grader grades the text of each step.
  # prefix: the increase of the grade of the text so far; at the end that is the final grade.
  # resample: the increase of the mean grade of completions sampled from the state (VinePPO).
  source: str = 'prefix'
  # Grader JSON, a dict or a path: required by process, and by prefix where the run's grader cannot
  # grade an unfinished answer. It reads item.reasoning_step.text, .before and .index (from 0) and
  # the fields of the row.
  grader: object = ''
  # baseline: the sum of rewards to the end minus the group's mean at the same step.
  # normalised: the sum of rewards to the end, rewards centred and divided by the group's std.
  # difference: the reward of the step alone, for prefix and resample.
  # auto: difference for resample, baseline for the others.
  estimator: str = 'auto'
  # Weight of the advantage from the final grade; -1: 1 for process, 0 for prefix and resample,
  # where the last step already holds the final grade.
  outcome_weight: float = -1.0
  process_weight: float = 1.0  # weight of the advantages of the steps
  resamples: int = 4  # completions from each state, of source='resample'

  def validate(self) -> list[str]:
    by_step, process = self.level == 'reasoning_step', self.source == 'process'
    checks = (
      (self.level in LEVELS, f'level={self.level!r}, need one of {LEVELS}'),
      (
        self.step_boundary in segments.BOUNDARIES,
        f'step_boundary={self.step_boundary!r}, need one of {tuple(segments.BOUNDARIES)}',
      ),
      (
        bool(self.delimiter) == (self.step_boundary == 'delimiter'),
        f'delimiter={self.delimiter!r} with step_boundary={self.step_boundary!r}: need a text for '
        "step_boundary='delimiter', and none for the others",
      ),
      (
        self.max_reasoning_steps >= 2,
        f"max_reasoning_steps={self.max_reasoning_steps}, need >= 2; one step is level='response'",
      ),
      (self.source in SOURCES, f'source={self.source!r}, need one of {SOURCES}'),
      (
        not by_step or not process or bool(self.grader),
        "grader is empty, need grader JSON for source='process': it grades each step",
      ),
      (
        not by_step or self.source != 'resample' or not self.grader,
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


def problems(config: CreditConfig, levels: dict[str, tuple[str, ...]]) -> list[str]:
  """Returns why the algorithms of a run cannot assign credit at config.level; [] if they can.

  Args:
    levels: {algorithm: the levels at which it can assign credit, () where it assigns none}.
  """
  unable = [name for name, possible in levels.items() if possible and config.level not in possible]
  if config.level == 'token' and unable:
    return [
      f"credit.level='token' with algorithm {unable[0]!r}: a value for each token needs a critic, "
      f"which {unable[0]} has not; need algorithm 'ppo', or credit.level='reasoning_step' (its "
      "source='resample' values states without a critic)"
    ]
  if config.level != 'reasoning_step':
    return []
  if not any('reasoning_step' in possible for possible in levels.values()):
    return [
      f"credit.level='reasoning_step' with algorithms {tuple(levels)}: need a stage of 'grpo' or "
      "'ppo', or credit.level='auto'"
    ]
  with_critic = [name for name, possible in levels.items() if 'token' in possible]
  if config.source == 'resample' and with_critic:
    return [
      f"credit.source='resample' with algorithm {with_critic[0]!r}: its critic values the states "
      "already; need algorithm 'grpo', or credit.source='prefix' or 'process'"
    ]
  return []


def estimator_and_outcome_weight(config: CreditConfig) -> tuple[str, float]:
  """Returns (the estimator, the weight of the outcome), with 'auto' and -1 resolved."""
  estimator, weight = config.estimator, config.outcome_weight
  if estimator == 'auto':
    estimator = 'difference' if config.source == 'resample' else 'baseline'
  return estimator, float(config.source == 'process') if weight == -1 else weight


class StepRewards(NamedTuple):
  """The rewards of the reasoning steps of B samples; rows in the order of their groups."""

  ends: list[list[int]]  # the last token of each step
  rewards: list[list[float]]  # of each step; for prefix and resample the increases
  complete: np.ndarray  # bool[P]: whether every step of the group has a reward
  metrics: dict[str, float]


def advantages(
  groups: list[list[Episode]], loss_mask, outcome, steps: StepRewards, config: CreditConfig
) -> np.ndarray:
  """Returns the advantages f32[B, T] of tokens: that of their step, blended with the sample's.

  A group that is not complete has the advantages of its samples alone.

  Args:
    loss_mask: f32[B, T].
    outcome: f32[P, G], advantages from the final grades.
  """
  estimator, outcome_weight = estimator_and_outcome_weight(config)
  loss_mask = np.asarray(loss_mask)
  group = np.repeat(np.arange(len(groups)), [len(episodes) for episodes in groups])
  outcome, complete = np.asarray(outcome, np.float32).reshape(-1), steps.complete[group]
  rewards = [row if known else [0.0] * len(row) for row, known in zip(steps.rewards, complete)]
  by_step = {
    'baseline': lambda: reasoning_steps.baseline_sums(rewards, group),
    'normalised': lambda: reasoning_steps.normalised_sums(rewards, group),
    'difference': lambda: [np.asarray(row, np.float64) for row in rewards],
  }[estimator]()
  blended = reasoning_steps.blend(
    outcome,
    reasoning_steps.to_tokens(by_step, steps.ends, loss_mask),
    loss_mask,
    outcome_weight=outcome_weight,
    process_weight=config.process_weight,
  )
  return np.where(complete[:, None], blended, outcome[:, None] * loss_mask)


def on_tokens(
  groups: list[list[Episode]], loss_mask, outcome, steps: StepRewards, config: CreditConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (rewards of whole answers f64[B], rewards of steps on their last tokens f32[B, T]).

  For a critic. A group that is not complete has its outcome alone.

  Args:
    loss_mask: f32[B, T].
    outcome: f64[B], the final grades.
  """
  complete = np.repeat(steps.complete, [len(episodes) for episodes in groups])
  step_rewards = np.zeros(np.shape(loss_mask), np.float32)
  for b, (ends, rewards) in enumerate(zip(steps.ends, steps.rewards)):
    if complete[b]:
      step_rewards[b, ends] = config.process_weight * np.asarray(rewards)
  outcome_weight = estimator_and_outcome_weight(config)[1]
  return np.where(complete, outcome_weight * outcome, outcome), step_rewards


def splitter(chat, config: CreditConfig):
  """Returns split(tokens) -> the reasoning steps of a completion, ended as the config says."""
  return segments.make(
    chat.decode,
    boundary=config.step_boundary,
    delimiter=config.delimiter,
    reasoning=chat.reasoning,
    max_reasoning_steps=config.max_reasoning_steps,
  )
