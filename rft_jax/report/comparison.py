"""The tables of the report: every arm with both its grades, and every measure of the run."""

from rft_jax.report import figures, verdict
from rft_jax.report.compared_policies import ComparedPolicy

# Evaluation metrics by name: what it means, and whether more is better (None: neither).
_MEASURES = {
  'grade': ('mean grade of the sampled answers', True),
  'greedy/grade': ('mean grade of the answers at temperature 0', True),
  'greedy/pass': ('share of answers at temperature 0 that pass', True),
  'truncated': ('share of answers cut off at the length limit', False),
  'unparsable': ('share of answers that could not be read', False),
  'mean_tokens': ('tokens of a completion, reasoning included', None),
  'reasoning_tokens': ('tokens of its reasoning', None),
  'preference/accuracy': ('share of held-out pairs that it ranks rightly', True),
  'preference/margin': ('mean difference of the implicit rewards of a pair', True),
}
_LANES = (('sampled', 'grade'), ('greedy', 'greedy/grade'))


def forest(arms: list[ComparedPolicy], levels: dict[str, dict]) -> dict | None:
  """Returns the arms, then the levels, placed in percent on a common axis; None without any.

  A row has the two grades of an arm ('lanes'), or the one value of a level.
  """
  rows = [
    {
      'kind': arm.kind,
      'label': arm.label,
      'about': _about(arm),
      'tokens': arm.tokens,
      'lanes': [dict(arm.measure(metric), name=name) for name, metric in _LANES],
    }
    for arm in arms
    if arm.measure('grade') or arm.measure('greedy/grade')
  ]
  rows += [
    {
      'kind': 'reference',
      'label': label,
      'about': '',
      'tokens': None,
      'lanes': [dict(level, name='level')],
    }
    for label, level in levels.items()
  ]
  lanes = [lane for row in rows for lane in row['lanes']]
  ends = [
    lane[end] for lane in lanes for end in ('mean', 'low', 'high') if lane.get(end) is not None
  ]
  if not ends:
    return None
  ticks = figures.ticks(min(ends), max(ends))
  low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

  def place(value):
    return None if value is None else round(100 * (value - low) / (high - low), 3)

  for lane in lanes:
    lane |= {
      'at': place(lane.get('mean')),
      'from': place(lane.get('low')),
      'to': place(lane.get('high')),
    }
  return {
    'rows': rows,
    'ticks': [(f'{tick:g}', place(tick)) for tick in ticks],
    'levels': [place(level['mean']) for level in levels.values()],
    'counted': any(row['tokens'] is not None for row in rows),
  }


def _about(arm):
  tokens = arm.measure('mean_tokens').get('mean')
  parts = [f'{arm.row["rows"]:,} rows', tokens and f'{tokens:,.0f} tokens an answer']
  return ' · '.join(filter(None, [*parts, arm.differs]))


def measures(own: list[ComparedPolicy]) -> dict | None:
  """Returns every metric of the base, before the last stage and after it, the change judged."""
  if not own:
    return None
  first, before, last = own[0], own[-2:][0], own[-1]
  columns = list({arm.row['step']: arm for arm in (first, before, last)}.values())
  rows = []
  for name, value in last.row.items():
    if not isinstance(value, dict):
      continue
    about, more_is_better = _MEASURES.get(name) or _passing(name)
    change = verdict.change(before, last, name) if before is not last else {}
    word = verdict.judged(change, more_is_better)
    rows.append(
      {
        'name': name,
        'about': about,
        'values': [arm.measure(name) for arm in columns],
        'change': change.get('mean'),
        'word': 'unclear' if word == 'same' else word,
      }
    )
  return {'columns': [arm.label for arm in columns], 'rows': rows, 'compared': before is not last}


def _passing(name):
  """Returns what pass@k means and that more is better; nothing is known of other metrics."""
  if not name.startswith('pass@'):
    return '', None
  k = name.removeprefix('pass@')
  answers = 'an answer' if k == '1' else f'at least one of {k} answers'
  return f'chance that {answers} passes', True


def mean(row, name):
  """Returns the mean of a metric of an evaluation, None if it was not measured."""
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
