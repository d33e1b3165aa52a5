"""Values of states: completions sampled anew from the end of each step, and their mean grade."""

from typing import Any, NamedTuple

import numpy as np

from rft_jax.bucketing import few
from rft_jax.rollout import grading_queue
from rft_jax.rollout.rollout import RolloutConfig, episode_of, to_grade
from rft_jax.sampling import engine
from rft_jax.types import Example, Sample

STREAM = 0x5EED  # keeps the random numbers of resampling apart from those of the rollout


class Resampling(NamedTuple):
  """Values of states, by completions from each: VinePPO, https://arxiv.org/abs/2410.01679."""

  chat: Any
  resamples: int  # K, completions from each state
  rollout: RolloutConfig
  grader: Any
  seed: int
  mesh: Any
  response_format: dict | None

  def grades(self, policy, episodes, parts, step):
    """Returns ({(row, step): rewards of the K completions from its end}, metrics).

    Samples of a prompt that have said the same so far are in the same state, which is resampled
    once for all of them.
    """
    first = first_in_state(episodes, parts)
    states = list(dict.fromkeys(first.values()))
    counts = {
      'credit/resampled': 0.0,
      'credit/resampled_tokens': 0.0,
      'credit/resampled_prompt_tokens': 0.0,
    }
    rewards = {}
    with grading_queue.GradingQueue(self.grader) as queue:

      def finished(number, k, sample):
        if number >= len(states):
          return
        b, j = states[number]
        counts['credit/resampled'] += 1
        counts['credit/resampled_tokens'] += len(sample.tokens)
        ready, errors = self._answer(episodes[b], parts[b].ends[j], sample)
        if errors:
          rewards[b, j, k] = self.rollout.ungradable_reward
        else:
          queue.submit((b, j, k), episodes[b].item.row, ready)

      if states:
        self._generate(
          policy, episodes, [(b, parts[b].ends[j]) for b, j in states], step, finished, counts
        )
    rewards |= {key: grade.reward for key, grade in queue.grades.items()}
    told = {f'credit/{name}': value for name, value in grading_queue.metrics(queue.counts()).items()}
    return {
      place: [rewards[*state, k] for k in range(self.resamples)] for place, state in first.items()
    }, counts | told

  def _generate(self, policy, episodes, states, step, finished, counts):
    settings, K = self.rollout, self.resamples
    prompts, occurrences, limits = [], [], []
    for b, end in states:
      episode = episodes[b]
      prompts.append([*episode.prompt_ids, *episode.sample.tokens[: end + 1]])
      limits.append([settings.max_new_tokens - end - 1] * K)
      # One number for each state of a step, whatever else the step holds.
      sample = episode.occurrence * settings.samples_per_prompt + episode.index
      occurrences.append((sample * settings.max_new_tokens + end) % 2**32)
    counts['credit/resampled_prompt_tokens'] += sum(map(len, prompts))
    # How many states there are differs from step to step; few sizes need few programs.
    spare = few(len(prompts)) - len(prompts)
    stream = int(np.random.SeedSequence((self.seed, STREAM)).generate_state(1)[0]) >> 1
    engine.generate(
      policy,
      prompts + [prompts[0]] * spare,
      samples_per_prompt=K,
      max_new_tokens=settings.max_new_tokens,
      temperature=settings.temperature,
      top_k=settings.top_k,
      top_p=settings.top_p,
      min_p=settings.min_p,
      seed=stream,
      stop_ids=self.chat.stop_ids,
      step=step,
      occurrences=occurrences + [0] * spare,
      mesh=self.mesh,
      limits=limits + [[1] * K] * spare,
      slots_per_shard=settings.slots,
      quantization=settings.quantization,
      finished=finished,
    )

  def _answer(self, episode, end, sample):
    """Returns (what the grader sees, policy faults) of the steps so far with their new end."""
    whole = Sample(
      [*episode.sample.tokens[: end + 1], *sample.tokens], [], None, sample.stop_reason
    )
    again = episode_of(
      self.chat,
      Example(episode.item, episode.prompt_ids, None),
      episode.occurrence,
      episode.index,
      whole,
      episode.policy_step,
    )
    return to_grade(again, self.rollout, self.response_format)


def first_in_state(episodes, parts) -> dict[tuple[int, int], tuple[int, int]]:
  """Returns for each (row, step) but the last ones the first place that is in the same state."""
  first, found = {}, {}
  for b, (episode, part) in enumerate(zip(episodes, parts)):
    for j, end in enumerate(part.ends[:-1]):
      state = episode.occurrence, tuple(episode.sample.tokens[: end + 1])
      found[b, j] = first.setdefault(state, (b, j))
  return found
