"""Rollouts: P prompts x G samples -> decoded text, answer, grade: the Episodes of a step."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from rft_jax import graders
from rft_jax.errors import GraderFaults
from rft_jax.models.decoding_layers import QUANTIZATIONS
from rft_jax.rollout import completion_metrics, grading_queue
from rft_jax.sampling import engine
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.types import Episode, Example, Grade


@dataclasses.dataclass(slots=True, kw_only=True)
class RolloutConfig(SamplingConfig):
  """The samples of a training step: their number, how they are drawn, and the cost of faults."""

  prompts_per_step: int = 16
  samples_per_prompt: int = 8  # the group size; sequences per step = prompts x samples
  slots: int = 0  # completions decoded at once on each shard of the mesh; 0: chosen
  # Of the kernels in training rollouts: 'none', or 'int8' (half the bytes of bfloat16). The samples
  # are then of a rounded policy, for which objective.correction corrects.
  quantization: str = 'none'
  # The reward after a policy fault: the answer does not parse, lacks a field or was truncated.
  ungradable_reward: float = 0.0
  # Grade truncated completions as they are, for open-ended text that has no natural end.
  grade_truncated: bool = False
  # Dynamic sampling (DAPO): zero-variance groups are dropped, and prompts_per_step more prompts
  # are sampled in at most this number of further rounds to replace them. 0: off.
  dynamic_sampling_rounds: int = 0
  # The run stops if more than this share of a step's samples has a grader fault (time-out, broken
  # sandbox, a field missing in the row), as it would learn from an arbitrary remainder.
  max_grader_faults: float = 0.1

  def validate(self) -> list[str]:
    checks = (
      (self.prompts_per_step >= 1, f'prompts_per_step={self.prompts_per_step}, need >= 1'),
      (self.samples_per_prompt >= 1, f'samples_per_prompt={self.samples_per_prompt}, need >= 1'),
      (
        self.dynamic_sampling_rounds >= 0,
        f'dynamic_sampling_rounds={self.dynamic_sampling_rounds}, need >= 0 (0: off)',
      ),
      (self.slots >= 0, f'slots={self.slots}, need >= 0 (0: chosen)'),
      (
        self.quantization in QUANTIZATIONS,
        f'quantization={self.quantization!r}, need one of {QUANTIZATIONS}',
      ),
      (
        0 <= self.max_grader_faults <= 1,
        f'max_grader_faults={self.max_grader_faults}, need 0 to 1',
      ),
    )
    # Named in full: a slots dataclass is a new class, which a bare super() does not know.
    return SamplingConfig.validate(self) + [problem for good, problem in checks if not good]


class Rollout(NamedTuple):
  """The graded samples of a step."""

  groups: list[list[Episode]]  # P groups of G, in prompt order; some rewards may be None
  metrics: dict[str, float]  # TRL's names where TRL has one
  counts: dict[str, dict[str, float]]  # by grader, see GradingQueue.counts

  def episodes(self) -> list[Episode]:
    """Returns the P * G episodes in one list."""
    return [episode for group in self.groups for episode in group]


def joined(rollouts: list[Rollout]) -> Rollout:
  """Returns several rollouts of one step as one."""
  if len(rollouts) == 1:
    return rollouts[0]
  groups = [group for rollout in rollouts for group in rollout.groups]
  counts = grading_queue.added([rollout.counts for rollout in rollouts])
  overhead = np.mean([rollout.metrics['sampling/slot_overhead'] for rollout in rollouts])
  return Rollout(groups, _metrics(groups, counts, float(overhead)), counts)


def make(chat, grader, config: RolloutConfig, *, seed: int, mesh, response_format=None):
  """Returns rollout(policy, examples, occurrences, step) -> Rollout.

  Its compile_ahead(policy, examples) needs no weights, see engine.compile_ahead.
  """

  def rollout(policy, examples: list[Example], occurrences: list[int], step: int) -> Rollout:
    groups = [[None] * config.samples_per_prompt for _ in examples]
    with grading_queue.GradingQueue(grader) as queue:

      def finished(p, g, sample):  # graded while the others are still being sampled
        episode = make_episode(chat, examples[p], occurrences[p], g, sample, step)
        groups[p][g] = episode
        grader_sample, errors = to_grade(episode, config, response_format)
        if errors:
          queue.grades[p, g] = Grade(config.ungradable_reward, {}, errors)
        else:
          queue.submit((p, g), episode.item.row, grader_sample)

      statistics = []
      engine.sample(
        policy,
        [example.prompt_ids for example in examples],
        config,
        samples_per_prompt=config.samples_per_prompt,
        seed=seed,
        stop_ids=chat.stop_ids,
        step=step,
        occurrences=occurrences,
        mesh=mesh,
        slots_per_shard=config.slots,
        quantization=config.quantization,
        on_finished=finished,
        on_statistics=statistics.append,
      )
    groups = [
      [episode._replace(grade=queue.grades[p, g]) for g, episode in enumerate(group)]
      for p, group in enumerate(groups)
    ]
    _check_faults([episode for group in groups for episode in group], config, step)
    overhead, counts = statistics[0].decoded / statistics[0].tokens, queue.counts()
    return Rollout(groups, _metrics(groups, counts, overhead), counts)

  rollout.compile_ahead = lambda policy, examples: engine.compile_ahead(
    policy,
    [example.prompt_ids for example in examples],
    config,
    samples_per_prompt=config.samples_per_prompt,
    stop_ids=chat.stop_ids,
    mesh=mesh,
    slots_per_shard=config.slots,
    quantization=config.quantization,
  )
  return rollout


def make_episode(chat, example, occurrence, index, sample, step) -> Episode:
  """Returns the Episode of a sample: its text and answer, without a grade."""
  text = chat.decode(sample.tokens)
  answer = chat.parse_completion(text, sample.tokens)
  return Episode(
    example.item,
    occurrence,
    index,
    example.prompt_ids,
    sample,
    text,
    answer.output_text,
    answer.reasoning_tokens,
    Grade(None, {}, {}),
    step,
  )


def to_grade(episode, config, response_format):
  """Returns (the `sample` for the grader, the policy faults); without an answer it is None."""
  errors = {}
  if episode.output_text is None:
    errors['unresponsive_reward_error'] = True
  if episode.sample.stop_reason == 'length' and not config.grade_truncated:
    errors['truncated_observation_error'] = True
  if errors:
    return None, errors
  return graders.make_sample(episode.output_text, response_format)


def _check_faults(episodes, config, step):
  faults = [episode for episode in episodes if episode.grade.reward is None]
  if len(faults) > config.max_grader_faults * len(episodes):
    kinds = collections.Counter(key for episode in faults for key in episode.grade.errors)
    first = faults[0]
    raise GraderFaults(
      f'step {step}: the grader failed on {len(faults)} of {len(episodes)} samples '
      f'({dict(kinds)}), more than rollout.max_grader_faults={config.max_grader_faults}; first: '
      f'{first.item.source}: {first.grade.errors}. Correct the grader or the rows; the '
      'run continues from its last checkpoint.'
    )


def _metrics(groups, counts, slot_overhead) -> dict[str, float]:
  grading = grading_queue.metrics(counts)
  return completion_metrics.metrics(groups) | grading | {'sampling/slot_overhead': slot_overhead}
