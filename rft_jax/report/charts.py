"""Which charts the report shows, from the rows of metrics.jsonl, evaluation.jsonl, episodes/."""

from rft_jax.records import episodes
from rft_jax.report import comparison, figures
from rft_jax.report.comparison import number

_SAMPLES = 256  # graded samples at least, where there are, in each histogram
_NO_CURVES = {'step', 'stage', 'num_tokens'}  # they say where a step stands, not what it did
# The errors of a sample for which the held-out evaluation calls it unparsable, and their sum. A
# sample of a grader of several parts can have two of them.
_UNREADABLE_ERRORS = (
  'sample_parse_error',
  'unresponsive_reward_error',
  'python_grader_runtime_error',
  'invalid_variable_error',
)
_UNREADABLE = 'errors, summed'


def main(run, levels):
  """Returns the charts that everyone looks at first; those without numbers are left out."""
  levels = [(label, level['mean']) for label, level in levels.items()]
  shown = (
    _figure(
      run,
      'Held-out grade',
      'Mean grade with its 95 % interval.',
      heldout={'grade': ('sampled', 'after'), 'greedy/grade': ('greedy', 'other')},
      levels=levels,
    ),
    _figure(
      run,
      'Pair accuracy',
      'Share of pairs of which the preferred answer is ranked first.',
      {'rewards/accuracies': ('training pairs', 'other')},
      {'preference/accuracy': ('held-out pairs', 'after')},
    ),
    _figure(
      run,
      'Training reward',
      'Mean reward of the samples of each step.',
      {'reward': ('training reward', 'other')},
    ),
    _figure(
      run,
      'Completion length',
      'Tokens of a completion, reasoning included.',
      {'completions/mean_length': ('training', 'other')},
      {'mean_tokens': ('held-out', 'after')},
    ),
    _figure(
      run,
      'Cut off and unreadable',
      'Share of samples at the length limit, or that could not be read or graded.',
      {
        'completions/clipped_ratio': ('training: cut off', 'other'),
        _UNREADABLE: ('training: unreadable', 'reference'),
      },
      {
        'truncated': ('held-out: cut off', 'after'),
        'unparsable': ('held-out: unreadable', 'before'),
      },
    ),
    _figure(run, 'Entropy', 'Of the next token, in nats.', {'entropy': ('entropy', 'other')}),
    _figure(
      run,
      'Sampler against trainer',
      'Mean absolute difference of their log-probabilities of a sampled token, in nats.',
      {'sampling/sampling_logp_difference/mean': ('difference', 'other')},
    ),
    _figure(run, 'Distance from the reference', 'KL per token, in nats.', {'kl': ('KL', 'other')}),
  )
  return [figure for figure in shown if figure]


def others(run, shown, at_most=24):
  """Returns a chart of every other metric that was logged, by name."""
  used = {name for figure in shown for name in figure['metrics']} | _NO_CURVES
  names = sorted({name for row in run.training for name in row} - used)
  drawn = (_figure(run, name, '', {name: (name, 'other')}) for name in names[:at_most])
  return [figure for figure in drawn if figure]


def _figure(run, title, caption, training=(), heldout=(), levels=()):
  """Returns {'title', 'caption', 'svg', 'legend', 'metrics', 'summary'}, None without numbers.

  Args:
    training, heldout: {metric: (label, role)} of metrics.jsonl and of evaluation.jsonl.
    levels: (label, value) of horizontal lines.
  """
  lines = [
    line
    for line in (
      *(_training_line(run, name, *training[name]) for name in training),
      *(_heldout_line(run, name, *heldout[name]) for name in heldout),
    )
    if line
  ]
  if not lines:
    return None
  values = [value for line in lines for value in line.values]
  svg = figures.curves(
    lines,
    last=run.last,
    levels=levels,
    stages=[(stage.first, stage.name) for stage in run.stages],
    unit_interval=min(values) >= 0 and max(values) <= 1,
  )
  return {
    'title': title,
    'caption': caption,
    'svg': svg,
    'metrics': list(training),
    'legend': [(line.label, line.role) for line in lines] if len(lines) > 1 else [],
    'summary': '; '.join(
      f'{line.label}: {number(line.values[0])} at step {line.steps[0]}, '
      f'{number(line.values[-1])} at step {line.steps[-1]}'
      for line in lines
    ),
  }


def _training_line(run, name, label, role):
  points = [(row['step'], value) for row in run.training if _is_number(value := _value(row, name))]
  return figures.Line(label, role, *map(list, zip(*points))) if len(points) > 1 else None


def _heldout_line(run, name, label, role):
  rows = [row for row in run.held_out if comparison.mean(row, name) is not None]
  if len(rows) < 2:
    return None
  means, low, high = ([row[name].get(end) for row in rows] for end in ('mean', 'low', 'high'))
  return figures.Line(label, role, [row['step'] for row in rows], means, low, high)


def _value(row, name):
  """Returns a metric of a training step. Errors are logged only in the steps that have them."""
  sampled = 'completions/mean_length' in row
  if name == _UNREADABLE and sampled:
    return min(sum(row.get(f'errors/{kind}', 0.0) for kind in _UNREADABLE_ERRORS), 1.0)
  return row.get(name, 0.0 if sampled and name.startswith('errors/') else None)


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def histograms(run, before, after, excluded_rows):
  """Returns charts of grades and lengths before and after.

  Of the samples of held-out rows, if both evaluations kept theirs; else of the first and the
  last training steps that did.

  Args:
    before, after: arms.Arm, None if there is none.
  """
  labels = ['before', 'after']
  if before and after and before.answers and after.answers:
    early, late = (
      [record for answers in arm.answers.values() for record in answers.sampled or [answers.greedy]]
      for arm in (before, after)
    )
    labels = [before.label, after.label]
    note = f'{len(early):,} samples of held-out rows before, {len(late):,} after.'
  else:
    steps = episodes.steps(run.workdir)
    if len(steps) < 2:
      excluded_rows.append('Distributions of grades and lengths: too few samples were kept.')
      return []
    (early, first), (late, last) = _samples(run.workdir, steps), _samples(run.workdir, steps[::-1])
    note = (
      f'Training samples: {len(early):,} of steps {first} as before, '
      f'{len(late):,} of steps {last} as after.'
    )
  return [
    figure
    for figure in (
      _histogram('Grades', 'grade', note, labels, _rewards(early), _rewards(late)),
      _histogram(
        'Lengths', 'tokens of a completion', note, labels, _lengths(early), _lengths(late)
      ),
    )
    if figure
  ]


def _histogram(title, label, note, labels, before, after):
  if not (before and after):
    return None
  return {
    'title': title,
    'caption': note,
    'legend': list(zip(labels, ('before', 'after'))),
    'svg': figures.histogram(before, after, label=label),
    'summary': f'mean {number(sum(before) / len(before))} before, '
    f'{number(sum(after) / len(after))} after',
  }


def _rewards(records):
  return [record['reward'] for record in records if record['reward'] is not None]


def _lengths(records):
  return [len(record['tokens']) for record in records]


def _samples(workdir, order):
  """Returns samples of the first steps of an order, at most half of them, and which they are."""
  records, used = [], []
  for step in order[: len(order) // 2]:
    records += episodes.read(workdir, step, columns=['reward', 'tokens'])
    used.append(step)
    if len(records) >= _SAMPLES:
      break
  return records, f'{min(used)} to {max(used)}' if len(used) > 1 else f'{used[0]}'
