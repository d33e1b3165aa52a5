"""Did it help: the newest policy against the one before the last stage, and against other runs."""

import math

from rft_jax.report import held_out
from rft_jax.report.compared_policies import ComparedPolicy

_PAIRS = 'preference/accuracy'
GRADES = {'grade': held_out.sampled_grade, 'greedy/grade': held_out.greedy_grade}


def give(own: list[ComparedPolicy], others: list[ComparedPolicy], stage=None) -> dict:
  """Returns {'tone', 'headline', 'details'}: the answer in words.

  The headline is on the mean grade of the samples, which training raises; the grade at
  temperature 0, which is what most who deploy a model will see, stands beside it.

  Args:
    own: the arms of the run, oldest first.
    others: those of other runs.
    stage: the run.Stage that the newest is of.
  """
  if own and not own[-1].measure('grade') and own[-1].measure(_PAIRS):
    return _of_pairs(own, stage)
  if not own or not own[-1].measure('grade'):
    return {
      'tone': 'unknown',
      'headline': 'Not evaluated yet',
      'details': [
        'No held-out rows have been graded, so nothing can be said about whether training helped.'
      ],
    }
  last = own[-1]
  if len(own) < 2 or not own[-2].measure('grade'):
    return {
      'tone': 'unknown',
      'headline': f'Held-out grade {last.measure("grade")["mean"]:.2f}, nothing to compare '
      'it with yet',
      'details': [f'Evaluated once, at step {last.row["step"]}, on {last.row["rows"]:,} rows.'],
    }
  subject = stage.word.capitalize() if stage else 'Training'
  before = own[-2]
  tone = judged(change(before, last, 'grade')) or 'same'
  so_far = ' so far' if stage and last.row['step'] < stage.end else ''
  said = _from_to(before, last, 'grade')
  greedy = _from_to(before, last, 'greedy/grade')
  headline = {
    'better': f'{subject} helped{so_far}: the sampled held-out grade rose {said}',
    'worse': f'{subject} hurt{so_far}: the sampled held-out grade fell {said}',
    'same': f'No clear change by {subject.lower()}{so_far}: the sampled held-out grade went {said}',
  }[tone]
  details = [_against(before, last, final=True)]
  if tone == 'same':
    details.append(
      'These rows do not settle whether it helped. More rows, or more samples of each, would.'
    )
  details += [
    _beside(subject, arm, last) for arm in others if not arm.differs and arm.measure('grade')
  ]
  if len(own) > 2 and own[0].measure('grade'):
    details.append(_against(own[0], last))
  return {
    'tone': tone,
    'headline': headline + (f' (greedy {greedy})' if greedy else ''),
    'details': details,
  }


def _of_pairs(own, stage) -> dict:
  """Returns the answer for a run in which nothing is graded: how held-out pairs are ranked."""
  last, found = own[-1], own[-1].measure(_PAIRS)
  text = f'{found["mean"]:.2f}'
  if has_interval(found):
    text += f' [{found["low"]:.2f}, {found["high"]:.2f}]'
  about = (
    f'At step {last.row["step"]}, {last.row["rows"]:,} held-out rows; in brackets the 95 % '
    'interval. 0.50 is chance, and where a policy stands that equals its reference.'
  )
  tone = 'unknown'
  if len(own) > 1 and has_interval(found):
    tone = 'better' if found['low'] > 0.5 else 'worse' if found['high'] < 0.5 else 'same'
  subject = stage.word.capitalize() if stage else 'The policy'
  words = {'better': 'helped', 'worse': 'hurt', 'same': 'made no clear difference'}
  said = f'{subject} {words[tone]}: ' if stage and tone in words else ''
  return {
    'tone': tone,
    'headline': f'{said}{text} of the held-out pairs are ranked rightly',
    'details': [about],
  }


def change(before: ComparedPolicy, after: ComparedPolicy, name: str) -> dict:
  """Returns how a metric changed, with its 95 % interval; {} if it was not measured in both.

  Grades are paired over rows if the answers were kept: then 'rows' says over how many.
  """
  old, new = before.measure(name), after.measure(name)
  if not old or not new or before.differs or after.differs:
    return {}
  if name in GRADES:
    paired = held_out.paired_change(before.answers, after.answers, GRADES[name])
    if paired:
      return paired
  return difference(old, new)


def difference(before: dict, after: dict) -> dict:
  """Returns the change from one interval to another, with a 95 % interval where both have one.

  They are taken as independent. Being of the same rows they are most likely correlated, which
  makes this interval too wide rather than too narrow.
  """
  mean = after['mean'] - before['mean']
  if not (has_interval(before) and has_interval(after)):
    return {'mean': mean, 'low': None, 'high': None}
  half = math.hypot(before['high'] - before['low'], after['high'] - after['low']) / 2
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def judged(value: dict, more_is_better: bool | None = True) -> str:
  """Returns 'better', 'worse' or 'same' for a change; '' where it cannot be said."""
  if not has_interval(value):
    return ''
  if value['low'] <= 0 <= value['high']:
    return 'same'
  if more_is_better is None:
    return ''
  return 'better' if (value['mean'] > 0) == more_is_better else 'worse'


def has_interval(value) -> bool:
  """Returns whether a metric has both bounds."""
  return isinstance(value, dict) and None not in (value.get('low'), value.get('high'))


# ------------------------------------------------------------------ sentences


def _against(before, last, *, final=False):
  """Returns the sentence on the change since an earlier policy."""
  sampled, greedy = change(before, last, 'grade'), change(before, last, 'greedy/grade')
  text = f'Against “{before.label}”: {_signed(sampled)} sampled'
  text += f', {_signed(greedy)} greedy' if greedy else ''
  if not final:
    return text + '.'
  how = (
    f', paired over {sampled["rows"]:,} held-out rows'
    if 'rows' in sampled
    else (f', on {last.row["rows"]:,} held-out rows')
  )
  return text + (
    f'{how}; in brackets 95 % intervals.'
    if has_interval(sampled)
    else f'{how}. Without intervals it cannot be told from chance.'
  )


def _beside(subject, arm, last):
  """Returns the sentence on another run that was given the same rows."""
  sampled, greedy = change(arm, last, 'grade'), change(arm, last, 'greedy/grade')
  both = f'{_signed(sampled)} sampled' + (f', {_signed(greedy)} greedy' if greedy else '')
  how = {'better': 'beats', 'worse': 'is behind', 'same': 'cannot be told from'}.get(
    judged(sampled), 'beside'
  )
  link = ': ' if how in ('cannot be told from', 'beside') else ' by '
  return f'{subject} {how} “{arm.label}”{link}{both}.'


def _from_to(before, last, name):
  """Returns 'from 0.45 to 0.62', with a third digit if two do not tell them apart."""
  old, new = before.measure(name).get('mean'), last.measure(name).get('mean')
  if None in (old, new):
    return ''
  digits = 3 if f'{old:.2f}' == f'{new:.2f}' else 2
  return f'from {old:.{digits}f} to {new:.{digits}f}'


def _signed(value):
  """Returns '+0.15 [0.11, 0.19]'."""
  digits = 3 if abs(value['mean']) < 0.01 else 2
  text = f'{value["mean"]:+.{digits}f}'
  if has_interval(value):
    text += f' [{value["low"]:.{digits}f}, {value["high"]:.{digits}f}]'
  return text.replace('-', '−')
