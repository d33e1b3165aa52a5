"""State values by resampling: the mean grade of completions sampled from each reasoning step."""

from typing import Any, NamedTuple

import numpy as np

from rft_jax.bucketing import coarse_bucket
from rft_jax.rollout import grading_queue
from rft_jax.rollout.rollout import RolloutConfig, make_episode, to_grade
from rft_jax.sampling import engine
from rft_jax.types import Example, Sample

STREAM = 0x5EED  # keeps the random numbers of resampling apart from those of the rollout


class Resampling(NamedTuple):
  """Values of states by completions from each: VinePPO, https://arxiv.org/abs/2410.01679."""

  chat: Any
  resamples: int  # K, completions from each state
  rollout: RolloutConfig
  grader: Any
  seed: int
  mesh: Any
  response_format: dict | None

  def grades(self, policy, episodes, splits, step):
    """Returns ({(row, step): rewards of the K completions from its end}, metrics).

    Samples of a prompt with the same text so far are in the same state, which is resampled once.

    Args:
      episodes: the samples.
      splits: their reasoning steps, see segments.
    """
    state_of = first_in_state(episodes, splits)
    states = list(dict.fromkeys(state_of.values()))
    metrics = {
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
        metrics['credit/resampled'] += 1
        metrics['credit/resampled_tokens'] += len(sample.tokens)
        grader_sample, errors = self._answer(episodes[b], splits[b].ends[j], sample)
        if errors:
          rewards[b, j, k] = self.rollout.ungradable_reward
        else:
          queue.submit((b, j, k), episodes[b].item.row, grader_sample)

      if states:
        ends = [(b, splits[b].ends[j]) for b, j in states]
        metrics['credit/resampled_prompt_tokens'] += self._generate(
          policy, episodes, ends, step, finished
        )
    rewards |= {key: grade.reward for key, grade in queue.grades.items()}
    grading = grading_queue.metrics(queue.counts())
    return {
      row_and_step: [rewards[*state, k] for k in range(self.resamples)]
      for row_and_step, state in state_of.items()
    }, metrics | {f'credit/{name}': value for name, value in grading.items()}

  def _generate(self, policy, episodes, ends, step, finished) -> int:
    """Samples K completions from each (row, last token); returns the tokens of their prompts."""
    settings, K = self.rollout, self.resamples
    prompts, occurrences, limits = [], [], []
    for b, end in ends:
      episode = episodes[b]
      prompts.append([*episode.prompt_ids, *episode.sample.tokens[: end + 1]])
      limits.append([settings.max_new_tokens - end - 1] * K)
      # A number for each state of a step, independent of the other states.
      sample = episode.occurrence * settings.samples_per_prompt + episode.index
      occurrences.append((sample * settings.max_new_tokens + end) % 2**32)
    # The number of states varies from step to step; a few sizes need few programs.
    padding = coarse_bucket(len(prompts)) - len(prompts)
    stream = int(np.random.SeedSequence((self.seed, STREAM)).generate_state(1)[0]) >> 1
    engine.sample(
      policy,
      prompts + [prompts[0]] * padding,
      settings,
      samples_per_prompt=K,
      seed=stream,
      stop_ids=self.chat.stop_ids,
      step=step,
      occurrences=occurrences + [0] * padding,
      mesh=self.mesh,
      limits=limits + [[1] * K] * padding,
      slots_per_shard=settings.slots,
      quantization=settings.quantization,
      on_finished=finished,
    )
    return sum(map(len, prompts))

  def _answer(self, episode, end, sample):
    """Returns to_grade(...) of the steps so far with their resampled end."""
    tokens = [*episode.sample.tokens[: end + 1], *sample.tokens]
    resampled = make_episode(
      self.chat,
      Example(episode.item, episode.prompt_ids, None),
      episode.occurrence,
      episode.index,
      Sample(tokens, [], None, sample.stop_reason),
      episode.policy_step,
    )
    return to_grade(resampled, self.rollout, self.response_format)


def first_in_state(episodes, splits) -> dict[tuple[int, int], tuple[int, int]]:
  """Returns {(row, step): the first (row, step) in the same state}, without the last steps."""
  first, state_of = {}, {}
  for b, (episode, steps) in enumerate(zip(episodes, splits)):
    for j, end in enumerate(steps.ends[:-1]):
      state = episode.occurrence, tuple(episode.sample.tokens[: end + 1])
      state_of[b, j] = first.setdefault(state, (b, j))
  return state_of
