"""Did it help: held-out evaluations before and after, and the other arms beside them."""
import json
import math
import pathlib

from rft_jax.records import figures, metrics

# Evaluation metrics by name: what it means, and whether more is better (None: neither).
_MEASURES = {
    'grade': ('mean grade of the sampled answers', True),
    'greedy/grade': ('mean grade of the answers at temperature 0', True),
    'greedy/pass': ('share of answers at temperature 0 that pass', True),
    'truncated': ('share of answers cut off at the length limit', False),
    'unparsable': ('share of answers that could not be read', False),
    'mean_tokens': ('tokens of a completion, reasoning included', None),
    'reasoning_tokens': ('tokens of its reasoning', None),
}
_SPLITS = ('test', 'validation')  # which held-out rows the verdict is about, if there are several


def before_and_after(evaluations):
  """Returns the first and last evaluation of the split that the verdict is about."""
  order = [split for split in _SPLITS if split in evaluations] + list(evaluations)
  twice = [split for split in order if len(evaluations[split]) > 1]
  rows = evaluations[(twice or order)[0]] if order else []
  return (rows[0] if rows else None), (rows[-1] if len(rows) > 1 else None)


def reference_levels(path):
  """Returns {label: interval} of the reference file, {} without one."""
  if not path:
    return {}
  levels = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  for label, level in levels.items():
    if not isinstance(level, dict) or not isinstance(level.get('mean'), (int, float)):
      raise ValueError(f'{path}: {label!r} is {level!r}, need an object with a number "mean", and '
                       '"low" and "high" if there is an interval')
  return levels


def difference(before, after):
  """Returns the change from one interval to another, with a 95 % interval where both have one.

  They are taken as independent. Being of the same rows they are most likely correlated, which
  makes this interval too wide rather than too narrow.
  """
  change = after['mean'] - before['mean']
  if not (_has_interval(before) and _has_interval(after)):
    return {'mean': change, 'low': None, 'high': None}
  half = math.hypot(before['high'] - before['low'], after['high'] - after['low']) / 2
  return {'mean': change, 'low': change - half, 'high': change + half}


def verdict(first, last, paired=None):
  """Returns {'tone', 'headline', 'detail'}: the answer in words.

  Args:
    first, last: rows of evaluation.jsonl, None where there is none.
    paired: the change of the grade with its interval, paired over rows, if it is known.
  """
  if first is None or mean(first, 'grade') is None:
    return {'tone': 'unknown', 'headline': 'Not evaluated yet',
            'detail': 'No held-out rows have been graded, so nothing can be said about whether '
                      'training helped.'}
  if last is None or mean(last, 'grade') is None:
    return {'tone': 'unknown', 'headline': f'Held-out grade {mean(first, "grade"):.2f}, '
                                           'nothing to compare it with yet',
            'detail': f'Evaluated once, at step {first["step"]}, on {first["rows"]:,} rows.'}
  before, after = mean(first, 'grade'), mean(last, 'grade')
  change = paired or difference(first['grade'], last['grade'])
  said = f'from {before:.2f} to {after:.2f}'
  if f'{before:.2f}' == f'{after:.2f}':
    said = f'from {before:.3f} to {after:.3f}'
  rows = f'{last["rows"]:,} held-out rows after {last["step"]:,} steps'
  if change['low'] is None:
    return {'tone': 'same', 'headline': f'The held-out grade went {said}',
            'detail': f'On {rows}. Without intervals it cannot be told from chance.'}
  how = 'paired over rows, ' if paired else ''
  shown = (f'{change["mean"]:+.2f} ({how}95 % interval {change["low"]:+.2f} to '
           f'{change["high"]:+.2f})')
  if change['low'] > 0:
    return {'tone': 'better', 'headline': f'Training helped: the held-out grade rose {said}',
            'detail': f'A change of {shown} on {rows}.'}
  if change['high'] < 0:
    return {'tone': 'worse', 'headline': f'Training hurt: the held-out grade fell {said}',
            'detail': f'A change of {shown} on {rows}.'}
  return {'tone': 'same', 'headline': f'No clear change: the held-out grade went {said}',
          'detail': f'A change of {shown} on {rows}. The interval holds zero: these rows do not '
                    'settle whether training helped. More rows, or more samples of each, would.'}


def labels(first, last):
  """Returns what the first and the last evaluation are called on the page."""
  if first is None:
    return []
  before = 'Before training' if first['step'] == 0 else f'At step {first["step"]:,}'
  return [before] if last is None else [before, f'After {last["step"]:,} steps']


def arms(first, last, levels, compare, left_out):
  """Returns the rows of the comparison: what was measured before, after, elsewhere."""
  shown = [_arm(kind, label, row) for kind, label, row in zip(
      ('before', 'after'), labels(first, last), (first, last)) if row is not None]
  split = (last or first or {}).get('split')
  for entry in compare:
    label, _, folder = entry.partition('=')
    rows = metrics.read(pathlib.Path(folder.strip()) / metrics.EVALUATION)
    rows = [row for row in rows if split is None or row['split'] == split] or rows
    if rows:
      shown.append(_arm('other', label.strip(), rows[-1]))
    else:
      left_out.append(f'{label.strip()}: {folder.strip()} has no evaluation.jsonl.')
  for label, level in levels.items():
    shown.append({'kind': 'reference', 'label': label, 'rows': None, 'tokens': None,
                  'mean': level['mean'], 'low': level.get('low'), 'high': level.get('high')})
  return [arm for arm in shown if arm['mean'] is not None]


def _arm(kind, label, row):
  grade = row.get('grade') or {}
  return {'kind': kind, 'label': label, 'rows': row['rows'], 'tokens': mean(row, 'mean_tokens'),
          'mean': grade.get('mean'), 'low': grade.get('low'), 'high': grade.get('high')}


def forest(arms):
  """Returns the arms with their positions, in percent, on a common axis; None without any."""
  ends = [end for arm in arms for end in (arm['mean'], arm['low'], arm['high']) if end is not None]
  if not ends:
    return None
  ticks = figures.ticks(min(ends), max(ends))
  low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

  def place(value):
    return None if value is None else round(100 * (value - low) / (high - low), 3)
  for arm in arms:
    arm |= {'at': place(arm['mean']), 'from': place(arm['low']), 'to': place(arm['high'])}
  return {'arms': arms, 'ticks': [(f'{tick:g}', place(tick)) for tick in ticks],
          'counted': any(arm['tokens'] is not None for arm in arms)}


def measures(first, last, paired=None):
  """Returns every metric of the evaluations, before and after, with the change judged.

  Args:
    paired: the change of the grade, paired over rows, if it is known.
  """
  shown = []
  row = last or first or {}
  for name in row:
    if not isinstance(row[name], dict):
      continue
    about, more_is_better = _MEASURES.get(name) or _passing(name)
    before = (first or {}).get(name) or {}
    after = (last or {}).get(name) or {}
    change = {'mean': None}
    if None not in (before.get('mean'), after.get('mean')):
      change = paired if name == 'grade' and paired else difference(before, after)
    shown.append({'name': name, 'about': about, 'before': before, 'after': after,
                  'change': change['mean'], 'word': _judged(change, more_is_better)})
  return shown


def _judged(change, more_is_better):
  """Returns 'better', 'worse' or 'unclear' for a change; '' where it cannot be said."""
  if not _has_interval(change):
    return ''
  if change['low'] <= 0 <= change['high']:
    return 'unclear'
  if more_is_better is None:
    return ''
  return 'better' if (change['mean'] > 0) == more_is_better else 'worse'


def _passing(name):
  """Returns what pass@k means and that more is better; nothing is known of other metrics."""
  if not name.startswith('pass@'):
    return '', None
  k = name.removeprefix('pass@')
  answers = 'an answer' if k == '1' else f'at least one of {k} answers'
  return f'chance that {answers} passes', True


def _has_interval(value):
  return isinstance(value, dict) and None not in (value.get('low'), value.get('high'))


def mean(row, name):
  return (row.get(name) or {}).get('mean')


def number(value) -> str:
  """Returns a number as a table shows it: 0.583, 412, 12,345; a dash for None."""
  if value is None:
    return '–'
  if value and abs(value) < 0.0005:
    return f'{value:.1e}'
  if abs(value) < 10:
    return f'{value:.3f}'
  return f'{value:,.1f}' if abs(value) < 100 else f'{value:,.0f}'
