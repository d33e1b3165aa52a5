"""Rejection sampling: fine-tunes on the best samples of the policy (RAFT, STaR, RFT).

    sample G a prompt -> keep those with a sufficient grade, best first -> -log p of their tokens

What is kept, and which policy samples, sets the member of the family:

  RAFT, Dong et al. 2023, https://arxiv.org/abs/2304.06767: the best sample of each prompt, from the
    current policy (per_prompt=1, threshold=None)
  expert iteration, STaR, https://arxiv.org/abs/2203.14465: all correct samples, from the current
    policy (per_prompt=0, threshold=1.0)
  RFT, Yuan et al. 2023, https://arxiv.org/abs/2308.01825: all correct and distinct samples, from
    the policy at the start of the stage (per_prompt=0, threshold=1.0, samples_from='reference')

There is no advantage and no ratio: a wrong answer has no gradient. Log-probs are of logits divided
by rollout.temperature, the distribution that was sampled.
"""

import dataclasses

import numpy as np

from rft_jax.algorithms import sft
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.algorithms.rl_batch import RLState, sample_groups
from rft_jax.data import batching
from rft_jax.types import Episode

SAMPLERS = ('policy', 'reference')


@dataclasses.dataclass(slots=True, kw_only=True)
class RejectionConfig:
  """Which samples the policy is fine-tuned on."""

  per_prompt: int = 1  # at most this number of samples a prompt, best first; 0: no limit
  threshold: float | None = None  # keep samples with at least this grade; None: any grade
  distinct: bool = True  # keep one of several samples with the same text
  # Without a threshold: also keep samples of zero-variance groups, where no sample is better.
  tied: bool = False
  samples_from: str = 'policy'  # or 'reference': the policy at the start of the stage

  def validate(self) -> list[str]:
    checks = (
      (self.per_prompt >= 0, f'per_prompt={self.per_prompt}, need >= 0 (0: no limit)'),
      (
        self.per_prompt or self.threshold is not None,
        'per_prompt=0 and threshold=None keep every sample, and a policy learns nothing from all '
        'of its own samples; need per_prompt >= 1 (1: best of n) or a threshold',
      ),
      (
        not self.tied or self.threshold is None,
        f'tied=True with threshold={self.threshold}, '
        'need one of them: the threshold already decides which samples are kept',
      ),
      (
        self.samples_from in SAMPLERS,
        f'samples_from={self.samples_from!r}, need one of {SAMPLERS}',
      ),
    )
    return [problem for good, problem in checks if not good]


def problems(groups: dict, steps: int) -> list[str]:
  """Returns what of other groups does not fit this algorithm."""
  config, G = groups['rejection'], groups['rollout'].samples_per_prompt
  if config.threshold is None and config.per_prompt >= G:
    return [
      f'rejection.per_prompt={config.per_prompt} of rollout.samples_per_prompt={G} without a '
      'threshold keeps every sample; need fewer, more samples, or rejection.threshold'
    ]
  return []


def passes(groups: dict) -> float:
  """Returns the forward passes of a step over each sample: of an update, over the kept share."""
  config, G = groups['rejection'], groups['rollout'].samples_per_prompt
  kept_share = config.per_prompt / G if config.threshold is None else 1.0
  return 3 * min(1.0, kept_share)


REQUIREMENTS = Requirements(
  'prompts',
  label='rejection sampling',
  passes=passes,
  reference=lambda groups: groups['rejection'].samples_from == 'reference',
  initial_state=RLState,
  problems=problems,
)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm that fine-tunes on the samples of context.rollout that it keeps."""
  config: RejectionConfig = context.groups['rejection']

  def collect(state, step):
    sampler = context.reference() if config.samples_from == 'reference' else state.policy
    groups, metrics, next_state = sample_groups(context, state, step, sampler)
    selected = [select(group, config) for group in groups]
    metrics |= _selection_metrics(groups, selected)
    selected = [group for group in selected if group]
    if not selected:
      return StepBatch(None, metrics, next_state)
    batch = batching.from_groups(selected, np.zeros(sum(map(len, selected))))
    return StepBatch(batch._replace(advantages=None, sampler_logprobs=None), metrics, next_state)

  return Algorithm(
    collect,
    sft.loss,
    temperature=context.groups['rollout'].temperature,
    updates_per_batch=context.groups['update'].updates_per_batch,
  )


def select(group: list[Episode], config: RejectionConfig) -> list[Episode]:
  """Returns the samples of a prompt to fine-tune on, best first; equal grades in sampling order."""
  # Groups with an ungraded sample were dropped before: every reward is a number.
  ranked = sorted(group, key=lambda episode: -episode.grade.reward)  # type: ignore[operator]
  if config.threshold is not None:
    ranked = [episode for episode in ranked if episode.grade.reward >= config.threshold]  # type: ignore[operator]
  elif not config.tied and ranked[0].grade.reward == ranked[-1].grade.reward:
    return []
  if config.distinct:
    by_text: dict[str, Episode] = {}
    for episode in ranked:
      by_text.setdefault(episode.text, episode)
    ranked = list(by_text.values())
  return ranked[: config.per_prompt or None]


def _selection_metrics(groups, selected):
  """Returns the share of the graded samples that were selected, and their mean reward."""
  samples = sum(map(len, groups))
  rewards = [episode.grade.reward for group in selected for episode in group]
  metrics = {
    'rejection/kept_share': len(rewards) / max(samples, 1),
    'rejection/prompts_without': sum(not group for group in selected) / max(len(selected), 1),
  }
  if rewards:
    metrics['rejection/kept_reward'] = float(np.mean(rewards))
  return metrics
