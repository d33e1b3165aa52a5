"""The verdict of the report: did the last stage help, and how does the run compare with others?"""

import math

from rft_jax.report import held_out
from rft_jax.report.compared_policies import ComparedPolicy

_PAIRS = 'preference/accuracy'
GRADES = {'grade': held_out.sampled_grade, 'greedy/grade': held_out.greedy_grade}


def summarize(
  run_policies: list[ComparedPolicy], other_policies: list[ComparedPolicy], stage=None
) -> dict:
  """Returns {'tone', 'headline', 'details'}: the verdict in words.

  The headline is about the mean grade of the samples, which training raises. It also gives the
  grade at temperature 0, which most users of a deployed model will get.

  Args:
    run_policies: those of the run, oldest first.
    other_policies: those of other runs.
    stage: the workdir.Stage of the newest policy.
  """
  if run_policies and not run_policies[-1].metric('grade') and run_policies[-1].metric(_PAIRS):
    return _summarize_pairs(run_policies, stage)
  if not run_policies or not run_policies[-1].metric('grade'):
    return {
      'tone': 'unknown',
      'headline': 'Not evaluated yet',
      'details': ['No held-out rows have been graded, so it is not known whether training helped.'],
    }
  last = run_policies[-1]
  if len(run_policies) < 2 or not run_policies[-2].metric('grade'):
    return {
      'tone': 'unknown',
      'headline': f'Held-out grade {last.metric("grade")["mean"]:.2f}, '
      'nothing to compare it with yet',
      'details': [f'Evaluated once, at step {last.row["step"]}, on {last.row["rows"]:,} rows.'],
    }
  subject = stage.word.capitalize() if stage else 'Training'
  before = run_policies[-2]
  tone = direction(metric_change(before, last, 'grade')) or 'same'
  so_far = ' so far' if stage and last.row['step'] < stage.end else ''
  sampled = _from_to(before, last, 'grade')
  greedy = _from_to(before, last, 'greedy/grade')
  headline = {
    'better': f'{subject} helped{so_far}: the sampled held-out grade rose {sampled}',
    'worse': f'{subject} hurt{so_far}: the sampled held-out grade fell {sampled}',
    'same': f'No clear change from {subject.lower()}{so_far}: '
    f'the sampled held-out grade went {sampled}',
  }[tone]
  details = [_change_since(before, last, final=True)]
  if tone == 'same':
    details.append(
      'The evaluation is too small to show whether it helped. Evaluate more rows, or more samples '
      'per row.'
    )
  details += [
    _compared_with(subject, policy, last)
    for policy in other_policies
    if not policy.unpaired_reason and policy.metric('grade')
  ]
  if len(run_policies) > 2 and run_policies[0].metric('grade'):
    details.append(_change_since(run_policies[0], last))
  return {
    'tone': tone,
    'headline': headline + (f' (greedy {greedy})' if greedy else ''),
    'details': details,
  }


def _summarize_pairs(run_policies, stage) -> dict:
  """Returns the verdict of a run without grades: how held-out pairs are ranked."""
  last, accuracy = run_policies[-1], run_policies[-1].metric(_PAIRS)
  text = f'{accuracy["mean"]:.2f}'
  if has_interval(accuracy):
    text += f' [{accuracy["low"]:.2f}, {accuracy["high"]:.2f}]'
  detail = (
    f'At step {last.row["step"]}, {last.row["rows"]:,} held-out rows; 95 % interval in brackets. '
    '0.50 is chance, and the accuracy of a policy that equals its reference.'
  )
  tone = 'unknown'
  if len(run_policies) > 1 and has_interval(accuracy):
    tone = 'better' if accuracy['low'] > 0.5 else 'worse' if accuracy['high'] < 0.5 else 'same'
  subject = stage.word.capitalize() if stage else 'The policy'
  words = {'better': 'helped', 'worse': 'hurt', 'same': 'made no clear difference'}
  outcome = f'{subject} {words[tone]}: ' if stage and tone in words else ''
  return {
    'tone': tone,
    'headline': f'{outcome}{text} of the held-out pairs are ranked correctly',
    'details': [detail],
  }


def metric_change(before: ComparedPolicy, after: ComparedPolicy, name: str) -> dict:
  """Returns the change of a metric with its 95 % interval; {} if it was not measured in both.

  Grades are paired over rows if the answers were saved; 'rows' is then the number of rows.
  """
  old, new = before.metric(name), after.metric(name)
  if not old or not new or before.unpaired_reason or after.unpaired_reason:
    return {}
  if name in GRADES:
    paired = held_out.paired_change(before.answers, after.answers, GRADES[name])
    if paired:
      return paired
  return unpaired_change(old, new)


def unpaired_change(before: dict, after: dict) -> dict:
  """Returns the change from one interval to another, with a 95 % interval where both have one.

  The two are treated as independent. Over the same rows they are most likely correlated, which
  makes this interval too wide rather than too narrow.
  """
  mean = after['mean'] - before['mean']
  if not (has_interval(before) and has_interval(after)):
    return {'mean': mean, 'low': None, 'high': None}
  half = math.hypot(before['high'] - before['low'], after['high'] - after['low']) / 2
  return {'mean': mean, 'low': mean - half, 'high': mean + half}


def direction(value: dict, more_is_better: bool | None = True) -> str:
  """Returns 'better', 'worse' or 'same' for a change; '' where that is not known."""
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


def _change_since(before, last, *, final=False):
  """Returns the sentence on the change since an earlier policy."""
  sampled = metric_change(before, last, 'grade')
  greedy = metric_change(before, last, 'greedy/grade')
  text = f'Change since “{before.label}”: {_signed(sampled)} sampled'
  text += f', {_signed(greedy)} greedy' if greedy else ''
  if not final:
    return text + '.'
  if 'rows' in sampled:
    text += f', paired over {sampled["rows"]:,} held-out rows'
  else:
    text += f', on {last.row["rows"]:,} held-out rows'
  if has_interval(sampled):
    return f'{text}; 95 % intervals in brackets.'
  return f'{text}. Without intervals it is not known whether this is chance.'


def _compared_with(subject, other, last):
  """Returns the sentence on another run that was evaluated on the same rows."""
  sampled = metric_change(other, last, 'grade')
  greedy = metric_change(other, last, 'greedy/grade')
  changes = f'{_signed(sampled)} sampled' + (f', {_signed(greedy)} greedy' if greedy else '')
  sentence = {
    'better': f'{subject} beats “{other.label}” by',
    'worse': f'{subject} is behind “{other.label}” by',
    'same': f'{subject} and “{other.label}” do not differ clearly:',
  }.get(direction(sampled), f'{subject} compared with “{other.label}”:')
  return f'{sentence} {changes}.'


def _from_to(before, last, name):
  """Returns 'from 0.45 to 0.62', with a third digit if the two would look the same."""
  old, new = before.metric(name).get('mean'), last.metric(name).get('mean')
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
