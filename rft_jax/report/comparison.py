"""Tables of the report: the grades of the compared policies, and all metrics of the run."""

from rft_jax.report import figures, verdict
from rft_jax.report.compared_policies import ComparedPolicy

# Evaluation metrics: {name: (meaning, whether more is better; None: neither)}.
_METRICS = {
  'grade': ('mean grade of the sampled answers', True),
  'greedy/grade': ('mean grade of the answers at temperature 0', True),
  'greedy/pass': ('share of answers at temperature 0 that pass', True),
  'truncated': ('share of answers cut off at the length limit', False),
  'unparsable': ('share of answers that could not be parsed', False),
  'mean_tokens': ('tokens of a completion, reasoning included', None),
  'reasoning_tokens': ('tokens of the reasoning', None),
  'preference/accuracy': ('share of held-out pairs ranked correctly', True),
  'preference/margin': ('mean difference of the implicit rewards of a pair', True),
}
_SERIES = (('sampled', 'grade'), ('greedy', 'greedy/grade'))


def forest_plot(policies: list[ComparedPolicy], levels: dict[str, dict]) -> dict | None:
  """Returns policies, then reference levels, with positions in percent of a common axis.

  A row has two series, the sampled and the greedy grade of a policy, or one, the value of a
  level. None without any.
  """
  rows = [
    {
      'kind': policy.kind,
      'label': policy.label,
      'note': _note(policy),
      'tokens': policy.tokens,
      'series': [dict(policy.metric(metric), name=name) for name, metric in _SERIES],
    }
    for policy in policies
    if policy.metric('grade') or policy.metric('greedy/grade')
  ]
  rows += [
    {
      'kind': 'reference',
      'label': label,
      'note': '',
      'tokens': None,
      'series': [dict(level, name='level')],
    }
    for label, level in levels.items()
  ]
  intervals = [interval for row in rows for interval in row['series']]
  values = [
    interval[key]
    for interval in intervals
    for key in ('mean', 'low', 'high')
    if interval.get(key) is not None
  ]
  if not values:
    return None
  ticks = figures.ticks(min(values), max(values))
  low, high = min(ticks[0], *values), max(ticks[-1], *values)

  def position(value):
    return None if value is None else round(100 * (value - low) / (high - low), 3)

  for interval in intervals:
    interval |= {
      'at': position(interval.get('mean')),
      'from': position(interval.get('low')),
      'to': position(interval.get('high')),
    }
  return {
    'rows': rows,
    'ticks': [(f'{tick:g}', position(tick)) for tick in ticks],
    'levels': [position(level['mean']) for level in levels.values()],
    'has_tokens': any(row['tokens'] is not None for row in rows),
  }


def _note(policy):
  tokens = policy.metric('mean_tokens').get('mean')
  parts = [f'{policy.row["rows"]:,} rows', tokens and f'{tokens:,.0f} tokens per answer']
  return ' · '.join(filter(None, [*parts, policy.unpaired_reason]))


def metrics_table(run_policies: list[ComparedPolicy]) -> dict | None:
  """Returns all metrics of the base, before the last stage and after it, and their change.

  Args:
    run_policies: those of the run, oldest first.
  """
  if not run_policies:
    return None
  first, before, last = run_policies[0], run_policies[-2:][0], run_policies[-1]
  columns = list({policy.row['step']: policy for policy in (first, before, last)}.values())
  rows = []
  for name, value in last.row.items():
    if not isinstance(value, dict):
      continue
    meaning, more_is_better = _METRICS.get(name) or _pass_at_k(name)
    change = verdict.metric_change(before, last, name) if before is not last else {}
    direction = verdict.direction(change, more_is_better)
    rows.append(
      {
        'name': name,
        'meaning': meaning,
        'values': [policy.metric(name) for policy in columns],
        'change': change.get('mean'),
        'direction': 'unclear' if direction == 'same' else direction,
      }
    )
  return {
    'columns': [policy.label for policy in columns],
    'rows': rows,
    'has_change': before is not last,
  }


def _pass_at_k(name):
  """Returns (meaning, whether more is better) of pass@k; ('', None) of any other metric."""
  if not name.startswith('pass@'):
    return '', None
  k = name.removeprefix('pass@')
  answers = 'an answer' if k == '1' else f'at least one of {k} answers'
  return f'probability that {answers} passes', True


def mean(row, name):
  """Returns the mean of a metric of an evaluation, None if it was not measured."""
  return (row.get(name) or {}).get('mean')


def format_number(value) -> str:
  """Returns a number for a table: 0.583, 412, 12,345; a dash for None."""
  if value is None:
    return '–'
  if value and abs(value) < 0.0005:
    return f'{value:.1e}'
  if abs(value) < 10:
    return f'{value:.3f}'
  return f'{value:,.1f}' if abs(value) < 100 else f'{value:,.0f}'
