"""Rejection sampling: the policy samples, the grader chooses, and what it chose is learnt.

    sample G a prompt -> keep those that are good enough, the best first -> -log p of their tokens

One rule serves a family that differs in what is kept and who samples:

  RAFT, Dong et al. 2023, https://arxiv.org/abs/2304.06767: the best of each prompt, sampled by the
    policy of the moment (per_prompt=1, threshold=None)
  expert iteration, STaR, https://arxiv.org/abs/2203.14465: all that are right, the policy of the
    moment (per_prompt=0, threshold=1.0)
  RFT, Yuan et al. 2023, https://arxiv.org/abs/2308.01825: right and distinct, all sampled by the
    policy that the stage began with (per_prompt=0, threshold=1.0, samples_from='reference')

There is no advantage and no ratio: a wrong answer teaches nothing. Log-probs are of the
distribution that was sampled, logits divided by rollout.temperature.
"""

import dataclasses

import numpy as np

from rft_jax.algorithms import sft
from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.algorithms.rl_batch import gather
from rft_jax.data import batching
from rft_jax.types import Episode

SAMPLERS = ('policy', 'reference')


@dataclasses.dataclass(slots=True, kw_only=True)
class RejectionConfig:
  """Which samples are kept to learn from."""

  per_prompt: int = 1  # at most so many of a prompt, the best first; 0: all that are good enough
  threshold: float | None = None  # the least grade that is good enough; None: any
  distinct: bool = True  # the same text counts once
  # Without a threshold: whether a prompt whose samples all have the same grade, of which none is
  # better than another, is learnt from all the same.
  tied: bool = False
  samples_from: str = 'policy'  # or 'reference': the policy at the start of the stage, throughout

  def validate(self) -> list[str]:
    checks = (
      (self.per_prompt >= 0, f'per_prompt={self.per_prompt}, need >= 0 (0: all good enough)'),
      (
        self.per_prompt or self.threshold is not None,
        'per_prompt=0 and threshold=None keep everything, and a policy learns nothing from all of '
        'its own samples; need per_prompt >= 1 (1: best of n) or a threshold',
      ),
      (
        not self.tied or self.threshold is None,
        f'tied=True with threshold={self.threshold}, '
        'need one of them: the threshold says already what is good enough',
      ),
      (
        self.samples_from in SAMPLERS,
        f'samples_from={self.samples_from!r}, need one of {SAMPLERS}',
      ),
    )
    return [problem for good, problem in checks if not good]


def problems(groups) -> list[str]:
  """Returns what of other groups does not go with this algorithm."""
  config, G = groups['rejection'], groups['rollout'].samples_per_prompt
  if config.threshold is None and config.per_prompt >= G:
    return [
      f'rejection.per_prompt={config.per_prompt} of rollout.samples_per_prompt={G} without a '
      'threshold keeps every sample; need fewer, more samples, or rejection.threshold'
    ]
  return []


REQUIREMENTS = Requirements(
  'prompts',
  problems=problems,
  reference=lambda groups: groups['rejection'].samples_from == 'reference',
)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm that learns from the samples of room.rollout that are good enough."""
  config: RejectionConfig = context.groups['rejection']

  def collect(state, step):
    sampler = context.reference() if config.samples_from == 'reference' else state.policy
    graded, seen, algorithm_state = gather(context, state, step, sampler)
    kept = [keep(group, config) for group in graded]
    seen |= _counts(graded, kept)
    kept = [group for group in kept if group]
    if not kept:
      return Collected(None, seen, algorithm_state)
    batch = batching.from_groups(kept, np.zeros(sum(map(len, kept))))
    return Collected(batch._replace(advantages=None, sampler_logprobs=None), seen, algorithm_state)

  return Algorithm(
    collect,
    sft.loss,
    temperature=context.groups['rollout'].temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
  )


def keep(group: list[Episode], config: RejectionConfig) -> list[Episode]:
  """Returns the samples of a prompt to learn from, the best first; equals as they were drawn."""
  ranked = sorted(group, key=lambda episode: -episode.grade.reward)
  if config.threshold is not None:
    ranked = [episode for episode in ranked if episode.grade.reward >= config.threshold]
  elif not config.tied and ranked[0].grade.reward == ranked[-1].grade.reward:
    return []
  if config.distinct:
    first = {}
    for episode in ranked:
      first.setdefault(episode.text, episode)
    ranked = list(first.values())
  return ranked[: config.per_prompt or None]


def _counts(graded, kept):
  """Returns what was kept of the samples that could be graded."""
  samples, rewards = sum(map(len, graded)), [e.grade.reward for group in kept for e in group]
  counts = {
    'rejection/kept_share': len(rewards) / max(samples, 1),
    'rejection/prompts_without': sum(not group for group in kept) / max(len(kept), 1),
  }
  if rewards:
    counts['rejection/kept_reward'] = float(np.mean(rewards))
  return counts
