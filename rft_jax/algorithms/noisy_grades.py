"""Grades that may be wrong: what of a step's graded groups is learnt from, and what is left out.

All groups are sampled and recorded as ever; this comes after. A row that is left out is still
sampled when its turn comes, so that it can come back.
"""

import dataclasses
import json
import math

import numpy as np

from rft_jax import graders
from rft_jax.graders import template
from rft_jax.objectives import noisy_grades
from rft_jax.types import Episode

STATE_KEY = 'noisy_grades'  # the key of an algorithm's memory: {'rows': history, 'excluded_rows': {row: step}}


@dataclasses.dataclass(slots=True, kw_only=True)
class NoisyGradesConfig:
  """What is done about grades that may be wrong. All of it is off by default."""

  grade_low: float = 0.0  # the grade of an answer that is plainly wrong
  grade_high: float = 1.0  # and of one that is plainly right
  clip: bool = False  # grades beyond these two become them
  # How often a grader says wrong to what is right, and right to what is wrong, sample by sample.
  flip_rate_right: float = 0.0
  flip_rate_wrong: float = 0.0
  # What samples are said to agree on: a template such as '{{ sample.output_json.genes[0] }}';
  # empty: output_json, or else output_text without outer space.
  answer: str = ''
  right_from: float = 1.0  # an answer is right from this grade on
  # Groups that find the reference less plausible than that are left out of their step; 0: none.
  min_plausibility: float = 0.0
  # A row is left out after so many visits in a row whose samples agree on one answer that the
  # grader calls wrong; 0: never. It comes back when they agree with the grader.
  contradictions: int = 0
  min_share: float = 0.5  # samples of a visit agree when so many of them say the same
  # No row is left out unless at least so many of the answers agreed on are graded right: a policy
  # that knows little has no say.
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
        'both >= 0 and a sum < 1: from there on a grade says nothing',
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
        f'answer={self.answer!r} reads nothing of sample, so that all samples would '
        'agree; need a template such as {{ sample.output_text }}'
      )
    return [problem for good, problem in checks if not good] + problems


def is_on(config: NoisyGradesConfig) -> bool:
  """Returns whether anything of the config changes what is learnt."""
  return bool(corrects(config) or config.min_plausibility or config.contradictions)


def corrects(config: NoisyGradesConfig) -> bool:
  """Returns whether the config changes grades."""
  return bool(config.clip or config.flip_rate_right or config.flip_rate_wrong)


def apply(groups: list[list[Episode]], config: NoisyGradesConfig, algorithm_state: dict, step: int):
  """Returns (the groups to learn from with their rewards made robust, memory, metrics).

  Off, it returns what it was given. Rewards are clipped, then corrected; everything else is judged
  by the grades as given.

  Args:
    groups: graded whole.
    memory: a TrainState's; stays as it is.
    step: of these visits, as metrics.jsonl counts.
  """
  if not is_on(config) or not groups:
    return groups, algorithm_state, {}
  rewards = np.array([[episode.grade.reward for episode in group] for group in groups])
  answers = [[answer(episode, config.answer) for episode in group] for group in groups]
  found = noisy_grades.evidence(answers, rewards, config.right_from)
  kept = noisy_grades.plausible_groups(found, config.min_plausibility)
  metrics = {
    'noisy_grades/plausibility': float(noisy_grades.plausibility(found).mean()),
    'noisy_grades/groups_implausible': int((~kept).sum()),
  }
  if config.contradictions:
    before = algorithm_state.get(STATE_KEY) or {'rows': {}, 'excluded_rows': {}}
    rows = [group[0].item.source for group in groups]
    history = noisy_grades.update_history(
      before['rows'], rows, found, step=step, min_share=config.min_share
    )
    out = noisy_grades.contradicted(
      history, contradictions=config.contradictions, min_trust=config.min_trust
    )
    excluded_rows = {row: before['excluded_rows'].get(row, step) for row in out}
    algorithm_state = algorithm_state | {STATE_KEY: {'rows': history, 'excluded_rows': excluded_rows}}
    contradicted = np.array([row in excluded_rows for row in rows])
    kept &= ~contradicted
    metrics |= {
      'noisy_grades/groups_contradicted': int(contradicted.sum()),
      'noisy_grades/excluded_rows': len(excluded_rows),
      'noisy_grades/trust': noisy_grades.trust(history),
    }
  made = corrected(rewards, config)
  metrics |= {'noisy_grades/groups_learnt_from': int(kept.sum()), 'noisy_grades/reward': float(made.mean())}
  groups = [
    [
      episode._replace(grade=episode.grade._replace(reward=float(reward)))
      for episode, reward in zip(group, row)
    ]
    for group, row in zip(groups, made)
  ]
  return [group for group, keep in zip(groups, kept) if keep], algorithm_state, metrics


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


def answer(episode: Episode, asked: str) -> str | None:
  """Returns what a sample says, so written that equal answers are equal strings; None: nothing.

  Args:
    asked: a template over item and sample; empty: the JSON object or array that the answer is, or
      else its text without outer space.

  Raises:
    template.Fault: the template asks for a field that the row lacks.
  """
  if episode.output_text is None or episode.sample.stop_reason == 'length':
    return None
  sample, _ = graders.make_sample(episode.output_text)
  if asked:
    try:
      return template.render(asked, item=episode.item.row, sample=sample).strip() or None
    except template.Fault as fault:
      if not fault.of_policy:
        raise
      return None
  if sample.get('output_json') is not None:
    return json.dumps(sample['output_json'], sort_keys=True, ensure_ascii=False)
  return episode.output_text.strip() or None


def excluded_rows(algorithm_state: dict) -> list[dict]:
  """Returns a line for each row that is left out now: which, why, and since when."""
  kept = algorithm_state.get(STATE_KEY) or {'rows': {}, 'excluded_rows': {}}
  lines = []
  for row, since in sorted(kept['excluded_rows'].items()):
    entry = kept['rows'][row]
    lines.append(
      {
        'row': row,
        'since': since,
        'contradictions': entry['streak'],
        'first_contradiction': entry['began'],
        'visits': entry['visits'],
        'answer': entry['answer'],
        'share': entry['share'],
        'grade': entry['grade'],
        'why': f'at {_visits(entry["streak"])} the samples agreed on an answer that the grader '
        f'gives {entry["grade"]:.3g}, at the last one {entry["share"]:.0%} of them',
      }
    )
  return lines


def _visits(count):
  return f'{count} visits in a row' if count > 1 else 'one visit'
