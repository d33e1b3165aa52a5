"""Noisy grades: corrected rewards, and which groups and rows are excluded from training.

Every group is sampled, graded and recorded as usual; this is applied afterwards. An excluded row is
still sampled in its turn, so that it can be included again.
"""

import dataclasses
import json
import math

import numpy as np

from rft_jax import graders
from rft_jax.graders import template
from rft_jax.objectives import noisy_grades
from rft_jax.types import Episode


@dataclasses.dataclass(frozen=True)
class NoisyGradesState:
  """What is known of the rows visited so far; JSON."""

  rows: dict = dataclasses.field(default_factory=dict)  # see noisy_grades.update_history
  excluded_rows: dict = dataclasses.field(default_factory=dict)  # {row: the step it began}


@dataclasses.dataclass(slots=True, kw_only=True)
class NoisyGradesConfig:
  """How training treats grades that may be wrong. Everything is off by default."""

  grade_low: float = 0.0  # the grade of a wrong answer
  grade_high: float = 1.0  # the grade of a right answer
  clip: bool = False  # clip grades to grade_low..grade_high
  # The rates at which a grader calls a right sample wrong, and a wrong sample right.
  flip_rate_right: float = 0.0
  flip_rate_wrong: float = 0.0
  # The answer on which samples may agree: a template such as '{{ sample.output_json.genes[0] }}';
  # empty: output_json, or else output_text without surrounding whitespace.
  answer: str = ''
  right_from: float = 1.0  # an answer with at least this grade is right
  # Groups in which the reference is less plausible than this are excluded from their step; 0: none.
  min_plausibility: float = 0.0
  # A row is excluded after this number of consecutive visits in which its samples agree on one
  # answer that the grader calls wrong; 0: never. It is included again once they agree with the
  # grader.
  contradictions: int = 0
  min_share: float = 0.5  # samples of a visit agree if this share of them gives the same answer
  # No row is excluded unless this share of the agreed answers is graded right: a weak policy
  # excludes nothing.
  min_trust: float = 0.3

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need range'; [] if there is none."""
    checks = (
      (
        self.grade_low < self.grade_high and math.isfinite(self.grade_high - self.grade_low),
        f'grade_low={self.grade_low} grade_high={self.grade_high}, need the first lower, both '
        'finite',
      ),
      (
        self.flip_rate_right >= 0
        and self.flip_rate_wrong >= 0
        and self.flip_rate_right + self.flip_rate_wrong < 1,
        f'flip_rate_right={self.flip_rate_right} flip_rate_wrong={self.flip_rate_wrong}, need '
        'both >= 0 and a sum < 1: with a larger sum a grade carries no information',
      ),
      (
        0 <= self.min_plausibility < 1,
        f'min_plausibility={self.min_plausibility}, need >= 0 and < 1',
      ),
      (self.contradictions >= 0, f'contradictions={self.contradictions}, need >= 0 (0: never)'),
      (0 < self.min_share <= 1, f'min_share={self.min_share}, need > 0 and <= 1'),
      (0 <= self.min_trust <= 1, f'min_trust={self.min_trust}, need 0 to 1'),
      (not math.isnan(self.right_from), 'right_from=nan, need a grade'),
    )
    problems = [f'answer: {problem}' for problem in template.problems(self.answer)]
    if self.answer and not problems and not template.reads_sample(self.answer):
      problems.append(
        f'answer={self.answer!r} uses no field of sample, so that all samples would '
        'agree; need a template such as {{ sample.output_text }}'
      )
    return [problem for good, problem in checks if not good] + problems


def is_on(config: NoisyGradesConfig) -> bool:
  """Returns whether the config changes anything in training."""
  return bool(corrects(config) or config.min_plausibility or config.contradictions)


def corrects(config: NoisyGradesConfig) -> bool:
  """Returns whether the config changes grades."""
  return bool(config.clip or config.flip_rate_right or config.flip_rate_wrong)


def apply(
  groups: list[list[Episode]], config: NoisyGradesConfig, state: NoisyGradesState, step: int
):
  """Returns (the groups to train on, with corrected rewards; the next state; metrics).

  With everything off it returns its arguments. Rewards are clipped, then corrected; plausibility
  and contradictions are computed from the original grades.

  Args:
    groups: every sample graded.
    step: of these visits, as counted in metrics.jsonl.
  """
  if not is_on(config) or not groups:
    return groups, state, {}
  rewards = np.array([[episode.grade.reward for episode in group] for group in groups])
  answers = [[answer(episode, config.answer) for episode in group] for group in groups]
  evidence = noisy_grades.evidence(answers, rewards, config.right_from)
  included = noisy_grades.plausible_groups(evidence, config.min_plausibility)
  metrics = {
    'noisy_grades/plausibility': float(noisy_grades.plausibility(evidence).mean()),
    'noisy_grades/groups_implausible': int((~included).sum()),
  }
  if config.contradictions:
    rows = [group[0].item.source for group in groups]
    history = noisy_grades.update_history(
      state.rows, rows, evidence, step=step, min_share=config.min_share
    )
    contradicted_rows = noisy_grades.contradicted_rows(
      history, contradictions=config.contradictions, min_trust=config.min_trust
    )
    excluded = {row: state.excluded_rows.get(row, step) for row in contradicted_rows}
    state = NoisyGradesState(history, excluded)
    contradicted = np.array([row in excluded for row in rows])
    included &= ~contradicted
    metrics |= {
      'noisy_grades/groups_contradicted': int(contradicted.sum()),
      'noisy_grades/excluded_rows': len(excluded),
      'noisy_grades/trust': noisy_grades.trust(history),
    }
  new_rewards = corrected(rewards, config)
  metrics |= {
    'noisy_grades/groups_learnt_from': int(included.sum()),
    'noisy_grades/reward': float(new_rewards.mean()),
  }
  groups = [
    [
      episode._replace(grade=episode.grade._replace(reward=float(reward)))
      for episode, reward in zip(group, group_rewards)
    ]
    for group, group_rewards in zip(groups, new_rewards)
  ]
  return [group for group, keep in zip(groups, included) if keep], state, metrics


def corrected(rewards, config: NoisyGradesConfig) -> np.ndarray:
  """Returns the rewards f64[P, G], clipped and then corrected as the config says."""
  if config.clip:
    rewards = noisy_grades.clip_grades(rewards, config.grade_low, config.grade_high)
  if not config.flip_rate_right and not config.flip_rate_wrong:
    return rewards  # the correction would round them
  return noisy_grades.symmetric_correction(
    rewards,
    flip_rate_right=config.flip_rate_right,
    flip_rate_wrong=config.flip_rate_wrong,
    low=config.grade_low,
    high=config.grade_high,
  )


def answer(episode: Episode, answer_template: str) -> str | None:
  """Returns the answer of a sample in a normal form, equal strings for equal answers; or None.

  Args:
    answer_template: over item and sample; empty: the JSON object or array of the answer, or else
      its text without surrounding whitespace.

  Raises:
    template.Fault: the template needs a field that the row does not have.
  """
  if episode.output_text is None or episode.sample.stop_reason == 'length':
    return None
  sample, _ = graders.make_sample(episode.output_text)
  if answer_template:
    try:
      return template.render(answer_template, item=episode.item.row, sample=sample).strip() or None
    except template.Fault as fault:
      if not fault.is_policy_fault:
        raise
      return None
  if sample.get('output_json') is not None:
    return json.dumps(sample['output_json'], sort_keys=True, ensure_ascii=False)
  return episode.output_text.strip() or None


def excluded_rows(state: NoisyGradesState) -> list[dict]:
  """Returns a record for each row that is excluded now: which, why, and since which step."""
  records = []
  for row, since in sorted(state.excluded_rows.items()):
    entry = state.rows[row]
    records.append(
      {
        'row': row,
        'since': since,
        'contradictions': entry['streak'],
        'first_contradiction': entry['began'],
        'visits': entry['visits'],
        'answer': entry['answer'],
        'share': entry['share'],
        'grade': entry['grade'],
        'why': f'in {_visits(entry["streak"])} the samples agreed on an answer that the grader '
        f'grades {entry["grade"]:.3g}, in the last visit {entry["share"]:.0%} of them',
      }
    )
  return records


def _visits(count):
  return f'{count} consecutive visits' if count > 1 else 'one visit'
