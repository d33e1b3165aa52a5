"""P prompts x G samples -> graded Episodes: sample, decode, find the answer, grade."""

import collections
import dataclasses
from typing import NamedTuple

import numpy as np

from rft_jax import graders
from rft_jax.errors import GraderFaults
from rft_jax.models.decoding import QUANTIZATIONS
from rft_jax.rollout import grading_queue
from rft_jax.sampling import engine
from rft_jax.sampling.samplers import SamplingConfig
from rft_jax.types import Episode, Example, Grade


@dataclasses.dataclass(slots=True, kw_only=True)
class RolloutConfig(SamplingConfig):
  """How many completions are drawn in a training step, how, and what their faults cost."""

  prompts_per_step: int = 16
  samples_per_prompt: int = 8  # the group; sequences per step = prompts x samples
  slots: int = 0  # completions decoded side by side on each part of the mesh; 0: chosen
  # Of the kernels while training samples are drawn: 'none', or 'int8' (half of what bfloat16
  # reads). The samples are then of a rounded policy; objective.correction makes up for that.
  quantization: str = 'none'
  # The reward of a policy fault: the answer does not parse, lacks a field or was cut off.
  ungradable_reward: float = 0.0
  # Grade what was cut off as it stands, for open-ended text that has no natural end.
  grade_truncated: bool = False
  # Dynamic sampling: groups whose samples all have the same grade are dropped, and so many times
  # more prompts_per_step others are sampled to fill their places. 0: off.
  dynamic_sampling_rounds: int = 0
  # The run stops when more than this share of a step's samples have a grader fault (time-out,
  # broken sandbox, a field missing in the row), since it would learn from what is left by chance.
  max_grader_faults: float = 0.1

  def validate(self) -> list[str]:
    checks = (
      (self.prompts_per_step >= 1, f'prompts_per_step={self.prompts_per_step}, need >= 1'),
      (self.samples_per_prompt >= 1, f'samples_per_prompt={self.samples_per_prompt}, need >= 1'),
      (self.dynamic_sampling_rounds >= 0, f'dynamic_sampling_rounds={self.dynamic_sampling_rounds}, need >= 0 (0: off)'),
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
  groups: list[list[Episode]]  # P groups of G, in prompt order; some rewards may be None
  metrics: dict[str, float]  # TRL's names where TRL has one
  counts: dict[str, dict[str, float]]  # what each grader did, see grading.Desk.counts

  def episodes(self) -> list[Episode]:
    """Returns the P * G episodes in one list."""
    return [episode for group in self.groups for episode in group]


def joined(rollouts: list[Rollout]) -> Rollout:
  """Returns several rollouts of one step as one."""
  if len(rollouts) == 1:
    return rollouts[0]
  groups = [group for one in rollouts for group in one.groups]
  counts = grading_queue.added([one.counts for one in rollouts])
  overhead = np.mean([one.metrics['sampling/slot_overhead'] for one in rollouts])
  return Rollout(
    groups,
    metrics(groups) | grading_queue.metrics(counts) | {'sampling/slot_overhead': float(overhead)},
    counts,
  )


def make(chat, grader, config: RolloutConfig, *, seed: int, mesh, response_format=None):
  """Returns rollout(policy, examples, occurrences, step) -> Rollout.

  Its compile_ahead(policy, examples) needs no weights, see engine.compile_ahead.
  """

  def rollout(policy, examples: list[Example], occurrences: list[int], step: int) -> Rollout:
    groups = [[None] * config.samples_per_prompt for _ in examples]
    with grading_queue.GradingQueue(grader) as queue:

      def finished(p, g, sample):  # graded while the others are still being sampled
        episode = episode_of(chat, examples[p], occurrences[p], g, sample, step)
        groups[p][g] = episode
        given, errors = to_grade(episode, config, response_format)
        if errors:
          queue.grades[p, g] = Grade(config.ungradable_reward, {}, errors)
        else:
          queue.submit((p, g), episode.item.row, given)

      statistics = []
      engine.generate(
        policy,
        [example.prompt_ids for example in examples],
        samples_per_prompt=config.samples_per_prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        seed=seed,
        stop_ids=chat.stop_ids,
        step=step,
        occurrences=occurrences,
        mesh=mesh,
        slots_per_shard=config.slots,
        quantization=config.quantization,
        finished=finished,
        report=statistics.append,
      )
    groups = [
      [episode._replace(grade=queue.grades[p, g]) for g, episode in enumerate(group)]
      for p, group in enumerate(groups)
    ]
    _check_faults([episode for group in groups for episode in group], config, step)
    overhead, counts = statistics[0].decoded / statistics[0].tokens, queue.counts()
    return Rollout(
      groups,
      metrics(groups) | grading_queue.metrics(counts) | {'sampling/slot_overhead': overhead},
      counts,
    )

  rollout.compile_ahead = lambda policy, examples: engine.compile_ahead(
    policy,
    [example.prompt_ids for example in examples],
    samples_per_prompt=config.samples_per_prompt,
    settings=config,
    stop_ids=chat.stop_ids,
    mesh=mesh,
    slots_per_shard=config.slots,
    quantization=config.quantization,
  )
  return rollout


def episode_of(chat, example, occurrence, index, sample, step) -> Episode:
  """Returns the episode of a sample, not graded yet."""
  text = chat.decode(sample.tokens)
  answer = chat.answer(text, sample.tokens)
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
  """Returns (what the grader sees as `sample`, the policy faults that leave nothing to grade)."""
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
      f'{first.item.source}: {first.grade.errors}. Mend the grader or the rows; the run '
      'continues from its last checkpoint.'
    )


def metrics(groups: list[list[Episode]]) -> dict[str, float]:
  """Returns what a step's samples were like, under TRL's names where TRL has one."""
  episodes = [episode for group in groups for episode in group]
  graded = [group for group in groups if all(e.grade.reward is not None for e in group)]
  lengths = np.array([len(e.sample.tokens) for e in episodes])
  ended = np.array([e.sample.stop_reason == 'stop' for e in episodes])
  values = {
    'completions/mean_length': lengths.mean(),
    'completions/min_length': lengths.min(),
    'completions/max_length': lengths.max(),
    'completions/clipped_ratio': 1 - ended.mean(),
    'completions/mean_terminated_length': lengths[ended].mean() if ended.any() else 0.0,
    'reasoning_tokens_mean': np.mean([e.reasoning_tokens for e in episodes]),
    'groups_dropped': len(groups) - len(graded),
    'step_tokens': lengths.sum() + sum(len(group[0].prompt_ids) for group in groups),
  }
  errors = collections.Counter(
    key for e in episodes for key, value in e.grade.errors.items() if value is True
  )
  values |= {f'errors/{key}': count / len(episodes) for key, count in errors.items()}
  if graded:
    rewards = np.array([[e.grade.reward for e in group] for group in graded])
    values['reward'] = rewards.mean()
    values['reward_std'] = rewards.std(1, ddof=1).mean() if rewards.shape[1] > 1 else 0.0
    values['frac_reward_zero_std'] = np.mean(rewards.max(1) == rewards.min(1))
    scores = collections.defaultdict(list)
    for group in graded:
      for episode in group:
        for name, score in episode.grade.components.items():
          if score is not None:
            scores[name].append(score)
    for name, column in scores.items():
      values[f'rewards/{name}/mean'] = np.mean(column)
      values[f'rewards/{name}/std'] = np.std(column, ddof=1) if len(column) > 1 else 0.0
  return {name: float(value) for name, value in values.items()}
