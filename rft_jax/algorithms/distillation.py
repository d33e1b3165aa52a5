"""On-policy distillation: the student samples, a teacher's log-probs give the token advantages.

    A_t = clip(log p_teacher(y_t) - log p_student(y_t)) + grade_coef * (the grade's advantage)

The first part is the negative reverse KL of one token, as a constant, without a return (discount
0): on the student's own tokens its policy gradient is that of the sum of -KL(student || teacher)
over the states the student visits, with these states held fixed. So the student is corrected on
its own mistakes, not shown the teacher's texts. Agarwal et al. 2023 (GKD),
https://arxiv.org/abs/2306.13649; Gu et al. 2023 (MiniLLM), https://arxiv.org/abs/2306.08543.

Both log-probs are of logits divided by rollout.temperature. Policy loss, aggregation, correction
and entropy are those of the `objective` group. The teacher may be of any family and size; it must
have the policy's vocabulary.
"""

import dataclasses

import numpy as np

from rft_jax.algorithms import grpo
from rft_jax.algorithms.base import Algorithm, Requirements, StageContext, StepBatch
from rft_jax.algorithms.rl_batch import (
  RLState,
  forward_passes,
  needs_kl,
  needs_scores,
  rewards_of,
  sample_groups,
  with_exploration,
  with_logprobs,
  with_policy_objective,
)
from rft_jax.data import batching


@dataclasses.dataclass(slots=True, kw_only=True)
class DistillationConfig:
  """The teacher, and how its log-probs become advantages."""

  teacher: str = ''  # HF directory or hub id, with the tokenizer of model.source; required
  grade_coef: float = 0.0  # weight of the advantage from the grades; 0: the teacher alone
  clip: float = 0.0  # nats, bound of a token's advantage from the teacher; 0: no bound
  # Subtract the mean of that advantage over the step: the same expected gradient, less variance.
  centre: bool = False

  def validate(self) -> list[str]:
    checks = (
      (self.grade_coef >= 0, f'grade_coef={self.grade_coef}, need >= 0'),
      (self.clip >= 0, f'clip={self.clip}, need >= 0 nats (0: no bound)'),
    )
    return [problem for good, problem in checks if not good]


def problems(groups: dict, steps: int) -> list[str]:
  """Returns what of other groups does not fit this algorithm."""
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
      f'{groups["advantage"].estimator!r}: there is no baseline in distillation; the '
      "nearest estimator is 'rloo'",
    ),
    (
      not config.grade_coef or G >= 2,
      f'distillation.grade_coef={config.grade_coef} with rollout.samples_per_prompt={G}, need '
      '>= 2: a grade is compared with the others of its prompt',
    ),
  )
  return [problem for good, problem in checks if not good]


REQUIREMENTS = Requirements(
  'prompts',
  label='distillation',
  # The teacher, and the student where nothing else has scored the batch.
  passes=lambda groups: forward_passes(groups) + 1 + (not needs_scores(groups)),
  reference=needs_kl,
  teacher=lambda groups: groups['distillation'].teacher,
  initial_state=RLState,
  problems=problems,
)


def make(context: StageContext) -> Algorithm:
  """Returns the Algorithm that moves the policy towards the teacher, which is loaded here."""
  config: DistillationConfig = context.groups['distillation']
  advantage, rollout = context.groups['advantage'], context.groups['rollout']
  teacher = context.load(config.teacher)

  def collect(state, step):
    groups, metrics, next_state = sample_groups(context, state, step)
    if not groups:
      return StepBatch(None, metrics, next_state)
    grade_advantages = np.zeros((len(groups), len(groups[0])))
    if config.grade_coef:
      rewards = rewards_of(groups, advantage, rollout.max_new_tokens)
      grade_advantages = config.grade_coef * grpo.advantages(groups, rewards, advantage)
    batch, scores = with_logprobs(context, state, batching.from_groups(groups, grade_advantages))
    student_scores = scores or context.score(state.policy, batch)
    teacher_scores = context.score(teacher, batch)
    by_token, teacher_metrics = teacher_advantages(
      student_scores, teacher_scores, batch.loss_mask, clip=config.clip, centre=config.centre
    )
    batch = batch._replace(advantages=batch.advantages + by_token)
    batch, next_state, entropy_metrics = with_exploration(
      context, step, batch, student_scores, next_state
    )
    return StepBatch(batch, metrics | teacher_metrics | entropy_metrics, next_state)

  return with_policy_objective(context, collect)


def teacher_advantages(
  student, teacher, loss_mask, *, clip=0.0, centre=False
) -> tuple[np.ndarray, dict]:
  """Returns (the advantages from the teacher f32[B, T], metrics over the tokens). Host arrays.

  'distillation/reverse_kl' is the mean of log p_student - log p_teacher over the sampled tokens, an
  estimate of KL(student || teacher) a token, before any bound; '_std' is the std of its terms.
  Nothing is read where the mask is 0.

  Args:
    student, teacher: scoring.TokenScores.
    clip: nats; 0: no bound.
    centre: subtract the mean over the tokens from each, after the bound.
  """
  trained = loss_mask > 0
  gain = np.where(trained, teacher.logprobs - student.logprobs, np.float32(0.0))
  if not trained.any():
    return gain, {}
  terms = -gain[trained].astype(np.float64)
  metrics = {
    'distillation/reverse_kl': float(terms.mean()),
    'distillation/reverse_kl_std': float(terms.std()),
    'distillation/teacher_entropy': float(teacher.entropy[trained].mean()),
  }
  if clip:
    metrics['distillation/clipped_share'] = float((np.abs(terms) > clip).mean())
    gain = np.clip(gain, -clip, clip)
  if centre:
    gain = np.where(trained, gain - gain[trained].mean(), np.float32(0.0))
  return gain, metrics
