"""Training on noisy grades: corrected grades, majority answers, and rows with wrong references.

Host arrays, numpy, f64. Notation: the G samples of a row in one step are a visit; an answer is what
a sample says without its reasoning. A grade counts as right from `right_from` on.

Which method for which noise. If a grader (a judge) errs independently for each sample, correction
and clipping help. If the reference answer of a row is wrong, the grader errs for all samples of a
visit at once and at every visit in the same way: neither averaging over samples nor an affine map
of the grades helps, so groups and rows have to be excluded.
"""

import collections
from typing import NamedTuple

import numpy as np

# ------------------------------------------------------------------ grades


def clip_grades(rewards, low: float, high: float) -> np.ndarray:
  """Returns min(max(r, low), high), so that one extreme grade counts no more than others.

  In a group-normalised advantage one grade of 100 among zeros has the effect of a grade of 1, but
  with any other scale it dominates the batch, and within a group it hides the other differences.

  Args:
    rewards: f64[...].
  """
  return np.clip(np.asarray(rewards, np.float64), low, high)


def symmetric_correction(
  rewards, *, flip_rate_right: float, flip_rate_wrong: float, low: float = 0.0, high: float = 1.0
) -> np.ndarray:
  """Returns grades whose mean over the grader's errors is the true grade.

      r~ = low + (r - low - e_w (high - low)) / (1 - e_r - e_w)

  e_r: the rate at which right is graded `low`; e_w: at which wrong is graded `high`. It is the
  unbiased estimator of Natarajan et al. 2013 (https://papers.nips.cc/paper/5073) for a reward of
  two values, in the form that Wang et al. 2020 use for rewards (https://arxiv.org/abs/1810.01032);
  with e_r = e_w it is the symmetric one. A grade between low and high counts as a probability of
  high. The variance grows by 1 / (1 - e_r - e_w) ** 2.

  It is affine, so an advantage that compares a reward with its own group and divides by the std of
  the group or the batch (GRPO, whitening) cancels it to within epsilon. It matters where the scale
  of a reward does: advantage.scale='none', rloo, opo, a critic, or a penalty added to the grade.

  Args:
    rewards: f64[...], in low..high for the mean to be right.
  """
  scale = 1 - flip_rate_right - flip_rate_wrong
  if scale <= 0:
    raise ValueError(
      f'flip_rate_right={flip_rate_right} flip_rate_wrong={flip_rate_wrong}, need a sum < 1'
    )
  rewards = np.asarray(rewards, np.float64)
  return low + (rewards - low - flip_rate_wrong * (high - low)) / scale


# ------------------------------------------------------------------ groups


class Evidence(NamedTuple):
  """The majority answer of one visit of a row, and its grades."""

  answer: str | None  # the most frequent one; None: no sample gave an answer
  share: float  # of all G samples, those with this answer
  grade: float  # their mean grade; 0 where there are none
  right: bool  # whether that is a grade of a right answer
  votes_right: int  # samples graded right, with any answer
  votes_rival: int  # samples of the most frequent answer among those graded wrong


def evidence(answers, rewards, right_from: float) -> list[Evidence]:
  """Returns the Evidence of each group.

  The majority answer is a policy's own label for a case (self-consistency, Wang et al. 2022,
  https://arxiv.org/abs/2203.11171; as a reward, TTRL, https://arxiv.org/abs/2504.16084). Here it
  is never a reward: it is only used to assess a reference. Of answers that tie, the better graded
  one is taken, so that a tie never contradicts the grader.

  Args:
    answers: P lists of G strings, None where a sample gave no answer.
    rewards: f64[P, G].
    right_from: the lowest grade of a right answer.
  """
  visits = []
  for group_answers, grades in zip(answers, np.asarray(rewards, np.float64)):
    grades_by_answer = collections.defaultdict(list)
    for answer, grade in zip(group_answers, grades):
      if answer is not None:
        grades_by_answer[answer].append(float(grade))
    mean_grades = {answer: sum(rs) / len(rs) for answer, rs in grades_by_answer.items()}
    votes = lambda answer: (len(grades_by_answer[answer]), mean_grades[answer])
    majority = max(grades_by_answer, key=votes, default=None)
    rival_votes = [
      len(rs) for answer, rs in grades_by_answer.items() if mean_grades[answer] < right_from
    ]
    share = len(grades_by_answer[majority]) / len(group_answers) if grades_by_answer else 0.0
    grade = mean_grades.get(majority, 0.0)
    visits.append(
      Evidence(
        majority,
        share,
        grade,
        majority is not None and grade >= right_from,
        int((grades >= right_from).sum()),
        max(rival_votes, default=0),
      )
    )
  return visits


def plausibility(evidence: list[Evidence]) -> np.ndarray:
  """Returns f64[P], how plausible the reference is given the samples of each visit.

      (a + 1) / (a + b + 2)

  a: samples graded right; b: samples of the most frequent answer graded wrong. It is the rule of
  succession between the two: 1/2 where neither has a vote. Samples that disagree among themselves
  (a hard case) make a small b, samples that agree on an answer graded wrong a large one.
  """
  return np.array(
    [(visit.votes_right + 1) / (visit.votes_right + visit.votes_rival + 2) for visit in evidence]
  )


def plausible_groups(evidence: list[Evidence], min_plausibility: float) -> np.ndarray:
  """Returns bool[P], the groups whose reference is plausible enough to train on in this step.

  GRPO divides by the std of a group, so one sample graded right among G = 8 has an advantage of
  2.47 and each of the others -0.35. Where those seven agree on a rival answer, the one is more
  often a wrong reference matched by chance than an insight; small-loss selection makes the same
  assumption for classifiers (co-teaching, Han et al. 2018, https://arxiv.org/abs/1804.06872), and
  PRIME bounds a group's accuracy (https://arxiv.org/abs/2502.01456). The cost, where all
  references are right: less is learnt from cases that most samples get wrong in the same way.
  """
  return plausibility(evidence) >= min_plausibility


# ------------------------------------------------------------------ rows


def update_history(
  history: dict, rows: list[str], evidence: list[Evidence], *, step: int, min_share: float
) -> dict:
  """Returns a new history that includes these visits; the argument is not changed.

  {row: {'visits', 'streak', 'began', 'answer', 'share', 'grade', 'agrees'}}, all of it JSON.
  streak: consecutive visits, began: the step of the first of them, at which at least min_share of
  the samples agreed on the same `answer` and the grader graded it wrong. Samples that agree with
  the grader end a streak, another wrong answer begins a new one, and a visit at which no answer has
  min_share does not change it. agrees: whether the last answer on which the samples agreed was
  graded right; None: they have never agreed.

  Args:
    history: {} at the beginning.
    rows: the name of each visited row, in the order of the evidence; one may occur several times.
    step: of these visits.
  """
  history = dict(history)
  for row, visit in zip(rows, evidence):
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
    if visit.answer is not None and visit.share >= min_share:
      same = entry['streak'] > 0 and entry['answer'] == visit.answer
      entry |= {
        'answer': visit.answer,
        'share': visit.share,
        'grade': visit.grade,
        'agrees': visit.right,
        'streak': 0 if visit.right else entry['streak'] + 1 if same else 1,
        'began': None if visit.right else entry['began'] if same else step,
      }
    history[row] = entry
  return history


def trust(history: dict) -> float:
  """Returns the share of rows whose agreed answer is graded right, of those with an agreed answer.

  With a share c of wrong references, and agreed answers that are right with probability q, it is
  about (1 - c) q: near 0 a weak policy is a more likely reason than such a bad grader. 0.0 where
  the samples of no row have agreed.
  """
  agreements = [entry['agrees'] for entry in history.values() if entry['agrees'] is not None]
  return sum(agreements) / len(agreements) if agreements else 0.0


def contradicted_rows(history: dict, *, contradictions: int, min_trust: float = 0.0) -> list[str]:
  """Returns the rows that the samples contradict consistently, sorted by name.

  That is: a streak of at least `contradictions` visits, in a history with a trust of at least
  min_trust. What distinguishes a wrong reference from a hard case is the effect of training. A hard
  case with a right reference is answered right now and then, and is learnt from that or from
  similar cases; a wrong reference contradicts what all other rows teach. A row that most samples
  get wrong in the same way at every visit, and never right, cannot be distinguished from it, and a
  policy that is often sure and wrong confirms itself: configs/noise_grpo.py has a run that became
  worse than its start. So use few contradictions only where agreed answers are mostly right, and
  check the excluded rows: each is listed with the answer that contradicted it. Cf. training with
  the estimated noise of each example, Northcutt et al. 2021 (confident learning,
  https://arxiv.org/abs/1911.00068).
  """
  if not contradictions or trust(history) < min_trust:
    return []
  return sorted(row for row, entry in history.items() if entry['streak'] >= contradictions)
