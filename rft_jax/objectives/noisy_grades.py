"""Learning from grades of which some are wrong: what a grade, a group and a row are worth.

Host arrays, numpy, f64. Notation: G samples of a row are a visit; an answer is what a sample says
once its reasoning is left out. A grade counts as right from `right_from` on.

What helps against what. A grader that errs sample by sample (a judge) is answered by correction and
clipping. A row whose reference answer is wrong errs for all samples of a visit at once, and at
every visit alike: averaging over samples does not help, and neither does any affine map of the
grades; there it is groups and rows that must be told apart.
"""

import collections
from typing import NamedTuple

import numpy as np

# ------------------------------------------------------------------ grades


def clip_grades(rewards, low: float, high: float) -> np.ndarray:
  """Returns min(max(r, low), high): one broken grade is then no more than one vote.

  A group-normalised advantage lets one grade of 100 among zeros weigh as one of 1 does, but at
  every other scale it is the loudest of the batch, and within a group it hides all the others.

  Args:
    rewards: f64[...].
  """
  return np.clip(np.asarray(rewards, np.float64), low, high)


def symmetric_correction(
  rewards, *, flip_rate_right: float, flip_rate_wrong: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Returns grades whose mean over the grader's errors is the true grade.

      r~ = low + (r - low - e_w (high - low)) / (1 - e_r - e_w)

  e_r: how often right is graded `low`; e_w: how often wrong is graded `high`. It is the unbiased
  estimator of Natarajan et al. 2013 (https://papers.nips.cc/paper/5073) for a reward of two values,
  in the form that Wang et al. 2020 gave to rewards (https://arxiv.org/abs/1810.01032); with
  e_r = e_w it is the symmetric one. A grade between low and high counts as a chance of high. The
  variance grows by 1 / (1 - e_r - e_w) ** 2.

  It is affine, so whatever compares a reward with its own group and divides by the spread of the
  group or the batch (GRPO, whitening) cancels it to within epsilon. It matters where the scale of
  a reward does: advantage.scale='none', rloo, opo, a critic, or a penalty added to the grade.

  Args:
    rewards: f64[...], low to high for the claim to hold.
  """
  kept = 1 - flip_rate_right - flip_rate_wrong
  if kept <= 0:
    raise ValueError(
      f'flip_rate_right={flip_rate_right} flip_rate_wrong={flip_rate_wrong}, need a sum < 1'
    )
  rewards = np.asarray(rewards, np.float64)
  return low + (rewards - low - flip_rate_wrong * (high - low)) / kept


# ------------------------------------------------------------------ groups


class Evidence(NamedTuple):
  """What the samples of one visit of a row agree on, and what the grader says to it."""

  answer: str | None  # the most frequent one; None: no sample gave an answer
  share: float  # of all G samples, of those that gave it
  grade: float  # their mean grade; 0 where there are none
  right: bool  # whether that is a grade of a right answer
  votes_right: int  # samples graded right, whatever they say
  votes_rival: int  # samples of the most frequent answer among those graded wrong


def evidence(answers, rewards, right_from: float) -> list[Evidence]:
  """Returns the Evidence of each group.

  The majority answer is a policy's own label for a case (self-consistency, Wang et al. 2022,
  https://arxiv.org/abs/2203.11171; as a reward, TTRL, https://arxiv.org/abs/2504.16084). Here it
  is never a reward: it only speaks about a reference. Of answers that tie, the better graded one
  is taken, so that a tie never speaks against the grader.

  Args:
    answers: P lists of G strings, None where a sample gave no answer.
    rewards: f64[P, G].
    right_from: the lowest grade of a right answer.
  """
  found = []
  for said, grades in zip(answers, np.asarray(rewards, np.float64)):
    by_answer = collections.defaultdict(list)
    for one, grade in zip(said, grades):
      if one is not None:
        by_answer[one].append(float(grade))
    mean = {one: sum(given) / len(given) for one, given in by_answer.items()}
    votes = lambda one: (len(by_answer[one]), mean[one])
    best = max(by_answer, key=votes, default=None)
    rivals = [len(given) for one, given in by_answer.items() if mean[one] < right_from]
    share = len(by_answer[best]) / len(said) if by_answer else 0.0
    grade = mean.get(best, 0.0)
    found.append(
      Evidence(
        best,
        share,
        grade,
        best is not None and grade >= right_from,
        int((grades >= right_from).sum()),
        max(rivals, default=0),
      )
    )
  return found


def plausibility(found: list[Evidence]) -> np.ndarray:
  """Returns f64[P], how plausible the samples of each visit find the reference.

      (a + 1) / (a + b + 2)

  a: samples graded right; b: samples of the strongest answer graded wrong. It is the rule of
  succession between the two: 1/2 where neither has a vote. Samples that disagree among themselves
  (a hard case) make a small b, samples that agree against the reference a large one.
  """
  return np.array(
    [(one.votes_right + 1) / (one.votes_right + one.votes_rival + 2) for one in found]
  )


def plausible_groups(found: list[Evidence], min_plausibility: float) -> np.ndarray:
  """Returns bool[P], the groups whose reference is plausible enough to learn from in this step.

  GRPO divides by the spread of a group, so one hit among G = 8 has an advantage of 2.47 and each
  miss -0.35. Where seven others agree on a rival, that hit is more often a wrong reference met by
  chance than an insight; small-loss selection says the same of classifiers (co-teaching, Han et
  al. 2018, https://arxiv.org/abs/1804.06872), and bounds on a group's accuracy are known from
  PRIME (https://arxiv.org/abs/2502.01456). The price, where all references are right: cases that
  most samples get wrong in the same way teach less.
  """
  return plausibility(found) >= min_plausibility


# ------------------------------------------------------------------ rows


def update_history(
  history: dict, rows: list[str], found: list[Evidence], *, step: int, min_share: float
) -> dict:
  """Returns a history that knows of these visits too; the one given stays as it is.

  {row: {'visits', 'streak', 'began', 'answer', 'share', 'grade', 'agrees'}}, all of it JSON.
  streak: visits in a row, began: the step of the first of them, at which at least min_share of the
  samples agreed on the same `answer` and the grader called it wrong. Samples that agree with the
  grader end a streak, another wrong answer begins a new one, and a visit at which no answer has
  min_share leaves it as it is. agrees: whether the grader called the last answer right that the
  samples agreed on; None: they never have.

  Args:
    history: {} at the beginning.
    rows: the name of each visited row, in their order; one may come more than once.
    step: of these visits.
  """
  history = dict(history)
  for row, one in zip(rows, found):
    entry = dict(
      history.get(row)
      or {
        'visits': 0,
        'streak': 0,
        'began': None,
        'answer': None,
        'share': 0.0,
        'grade': 0.0,
        'agrees': None,
      }
    )
    entry['visits'] += 1
    if one.answer is not None and one.share >= min_share:
      same = entry['streak'] > 0 and entry['answer'] == one.answer
      entry |= {
        'answer': one.answer,
        'share': one.share,
        'grade': one.grade,
        'agrees': one.right,
        'streak': 0 if one.right else entry['streak'] + 1 if same else 1,
        'began': None if one.right else entry['began'] if same else step,
      }
    history[row] = entry
  return history


def trust(history: dict) -> float:
  """Returns the share of rows, of those with an answer agreed on, where the grader agrees too.

  With a share c of wrong references and answers agreed on that are right with chance q it is about
  (1 - c) q: near 0 it is more likely that the policy knows little than that the grader errs so
  often. 0.0 where no row has been agreed on.
  """
  judged = [entry['agrees'] for entry in history.values() if entry['agrees'] is not None]
  return sum(judged) / len(judged) if judged else 0.0


def contradicted(history: dict, *, contradictions: int, min_trust: float = 0.0) -> list[str]:
  """Returns the rows that the samples contradict consistently, in order of their names.

  That is: a streak of at least `contradictions` visits, in a history of at least min_trust. What
  separates a wrong reference from a hard case is what training does to it. A hard case with a right
  reference is hit now and then, and learnt from the hits, or from others like it; a wrong one
  stands against all that the other rows teach. A row that most samples get wrong in the same way
  at every visit, and never right, cannot be told from it, and a policy that is often sure and wrong
  confirms itself: configs/noise_grpo.py has a run that became worse than its start. So ask for few
  contradictions only where samples that agree are mostly right, and look at what is left out: every
  row is named, with the answer that spoke against it. Cf. learning with the estimated noise
  of each example, Northcutt et al. 2021 (confident learning, https://arxiv.org/abs/1911.00068).
  """
  if not contradictions or trust(history) < min_trust:
    return []
  return sorted(row for row, entry in history.items() if entry['streak'] >= contradictions)
