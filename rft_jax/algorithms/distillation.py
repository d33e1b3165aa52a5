"""On-policy distillation: the student samples, and a teacher says of every token how it would do.

    A_t = clip(log p_teacher(y_t) - log p_student(y_t)) + grade_coef * (the grade's advantage)

The first part is less the reverse KL of one token, as a constant, and each token answers for itself
alone (discount 0): on the student's own tokens the policy gradient with it is that of the sum of
-KL(student || teacher) over the states that the student visits, these states held fixed. So the
student learns where it goes wrong, not where the teacher happens to go. Agarwal et al. 2023 (GKD),
https://arxiv.org/abs/2306.13649; Gu et al. 2023 (MiniLLM), https://arxiv.org/abs/2306.08543.

Both are tempered by rollout.temperature. Policy loss, aggregation, correction and entropy are those
of the `objective` group. The teacher may be of any family and size; its tokens must be ours.
"""

import dataclasses

import numpy as np

from rft_jax.algorithms import grpo
from rft_jax.algorithms.base import Algorithm, Collected, Requirements, StageContext
from rft_jax.algorithms.rl_batch import (
  explore,
  gather,
  rewards_of,
  with_kl,
  with_logprobs,
  with_policy_objective,
)
from rft_jax.data import batching


@dataclasses.dataclass(slots=True, kw_only=True)
class DistillationConfig:
  """Whom the policy learns from."""

  teacher: str = ''  # HF directory or hub id, with the tokenizer of model.source; required
  grade_coef: float = 0.0  # of the advantage that `advantage` makes of the grades; 0: teacher alone
  clip: float = 0.0  # nats, the most that a token's part of the teacher may be; 0: no bound
  # Less the mean of that part over the step: the same gradient but for chance, with less noise.
  centre: bool = False

  def validate(self) -> list[str]:
    checks = (
      (self.grade_coef >= 0, f'grade_coef={self.grade_coef}, need >= 0'),
      (self.clip >= 0, f'clip={self.clip}, need >= 0 nats (0: no bound)'),
    )
    return [problem for good, problem in checks if not good]


def problems(groups) -> list[str]:
  """Returns what of other groups does not go with this algorithm."""
  config, G = groups['distillation'], groups['rollout'].samples_per_prompt
  checks = (
    (
      config.teacher,
      'distillation.teacher is empty, need the Hugging Face directory or hub id '
      'of the model to learn from',
    ),
    (
      not config.grade_coef or groups['advantage'].estimator not in ('remax', 'reinforce'),
      f'distillation.grade_coef={config.grade_coef} with advantage.estimator='
      f'{groups["advantage"].estimator!r}: no baseline is kept beside a teacher; rloo is the '
      'nearest',
    ),
    (
      not config.grade_coef or G >= 2,
      f'distillation.grade_coef={config.grade_coef} with rollout.samples_per_prompt={G}, need '
      '>= 2: a grade is compared with the others of its prompt',
    ),
  )
  return [problem for good, problem in checks if not good]


REQUIREMENTS = Requirements('prompts', reference=with_kl, problems=problems)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm that moves the policy towards the teacher, which is loaded here."""
  config: DistillationConfig = context.groups['distillation']
  advantage, rollout = context.groups['advantage'], context.groups['rollout']
  teacher = context.load(config.teacher)

  def collect(state, step):
    groups, metrics, algorithm_state = gather(context, state, step)
    if not groups:
      return Collected(None, metrics, algorithm_state)
    of_grades = np.zeros((len(groups), len(groups[0])))
    if config.grade_coef:
      rewards = rewards_of(groups, advantage, rollout.max_new_tokens)
      of_grades = config.grade_coef * grpo.advantages(groups, rewards, advantage)
    batch, scored = with_logprobs(context, state, batching.from_groups(groups, of_grades))
    ours, theirs = scored or context.score(state.policy, batch), context.score(teacher, batch)
    gain, seen = from_teacher(ours, theirs, batch.loss_mask, clip=config.clip, centre=config.centre)
    metrics |= seen
    batch, algorithm_state, seen = explore(
      context, step, batch._replace(advantages=batch.advantages + gain), ours, algorithm_state
    )
    return Collected(batch, metrics | seen, algorithm_state)

  return with_policy_objective(context, collect)


def from_teacher(ours, theirs, weights, *, clip=0.0, centre=False) -> tuple[np.ndarray, dict]:
  """Returns (what the teacher gives each token f32[B, T], metrics over the tokens). Host arrays.

  'distillation/reverse_kl' is KL(student || teacher) a token, of the student's own samples, and
  before any bound; '_std' is that of its terms. Nothing is read where the weight is 0.

  Args:
    ours, theirs: update.Scored of student and teacher.
    clip: nats; 0: no bound.
    centre: take the mean over the tokens from each, after the bound.
  """
  counts = weights > 0
  gain = np.where(counts, theirs.logprobs - ours.logprobs, np.float32(0.0))
  if not counts.any():
    return gain, {}
  terms = -gain[counts].astype(np.float64)
  metrics = {
    'distillation/reverse_kl': float(terms.mean()),
    'distillation/reverse_kl_std': float(terms.std()),
    'distillation/teacher_entropy': float(theirs.entropy[counts].mean()),
  }
  if clip:
    metrics['distillation/clipped_share'] = float((np.abs(terms) > clip).mean())
    gain = np.clip(gain, -clip, clip)
  if centre:
    gain = np.where(counts, gain - gain[counts].mean(), np.float32(0.0))
  return gain, metrics
