"""Charts of the report: learning curves and histograms, from metrics, evaluations, episodes."""

from rft_jax.records import episodes
from rft_jax.report import comparison, figures
from rft_jax.report.comparison import format_number

_SAMPLES = 256  # graded samples in each histogram, at least, if there are that many
_NOT_CHARTED = {'step', 'stage', 'num_tokens'}  # positions of a step, not results
# Errors for which the held-out evaluation counts a sample as unparsable, and the name of their sum.
# One sample can have several of them, from the parts of a multi grader.
_UNPARSABLE_ERRORS = (
  'sample_parse_error',
  'unresponsive_reward_error',
  'python_grader_runtime_error',
  'invalid_variable_error',
)
_UNPARSABLE = 'errors, summed'


def main_charts(run, levels):
  """Returns the charts of the most important metrics; those without numbers are left out."""
  levels = [(label, level['mean']) for label, level in levels.items()]
  charts = (
    _chart(
      run,
      'Held-out grade',
      'Mean grade with its 95 % interval.',
      held_out={'grade': ('sampled', 'after'), 'greedy/grade': ('greedy', 'other')},
      levels=levels,
    ),
    _chart(
      run,
      'Pair accuracy',
      'Share of pairs in which the preferred answer is ranked first.',
      {'rewards/accuracies': ('training pairs', 'other')},
      {'preference/accuracy': ('held-out pairs', 'after')},
    ),
    _chart(
      run,
      'Training reward',
      'Mean reward of the samples of each step.',
      {'reward': ('training reward', 'other')},
    ),
    _chart(
      run,
      'Completion length',
      'Tokens of a completion, reasoning included.',
      {'completions/mean_length': ('training', 'other')},
      {'mean_tokens': ('held-out', 'after')},
    ),
    _chart(
      run,
      'Truncated and unparsable',
      'Share of samples cut off at the length limit, or that could not be parsed or graded.',
      {
        'completions/clipped_ratio': ('training: truncated', 'other'),
        _UNPARSABLE: ('training: unparsable', 'reference'),
      },
      {
        'truncated': ('held-out: truncated', 'after'),
        'unparsable': ('held-out: unparsable', 'before'),
      },
    ),
    _chart(run, 'Entropy', 'Of the next token, in nats.', {'entropy': ('entropy', 'other')}),
    _chart(
      run,
      'Log-probs of sampler and trainer',
      'Mean absolute difference of the log-prob of a sampled token, in nats.',
      {'sampling/sampling_logp_difference/mean': ('difference', 'other')},
    ),
    _chart(run, 'KL from the reference policy', 'Per token, in nats.', {'kl': ('KL', 'other')}),
  )
  return [chart for chart in charts if chart]


def other_charts(run, charts, at_most=24):
  """Returns a chart of each metric that none of `charts` has, by name."""
  charted = {name for chart in charts for name in chart['metrics']} | _NOT_CHARTED
  names = sorted({name for row in run.training for name in row} - charted)
  others = (_chart(run, name, '', {name: (name, 'other')}) for name in names[:at_most])
  return [chart for chart in others if chart]


def _chart(run, title, caption, training=(), held_out=(), levels=()):
  """Returns {'title', 'caption', 'svg', 'legend', 'metrics', 'summary'}, None without numbers.

  Args:
    training, held_out: {metric: (label, role)} of metrics.jsonl and of evaluation.jsonl.
    levels: (label, value) of horizontal lines.
  """
  lines = [
    line
    for line in (
      *(_training_line(run, name, *training[name]) for name in training),
      *(_held_out_line(run, name, *held_out[name]) for name in held_out),
    )
    if line
  ]
  if not lines:
    return None
  values = [value for line in lines for value in line.values]
  svg = figures.draw_curves(
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
      f'{line.label}: {format_number(line.values[0])} at step {line.steps[0]}, '
      f'{format_number(line.values[-1])} at step {line.steps[-1]}'
      for line in lines
    ),
  }


def _training_line(run, name, label, role):
  points = [(row['step'], value) for row in run.training if _is_number(value := _value(row, name))]
  return figures.Line(label, role, *map(list, zip(*points))) if len(points) > 1 else None


def _held_out_line(run, name, label, role):
  rows = [row for row in run.held_out if comparison.mean(row, name) is not None]
  if len(rows) < 2:
    return None
  means, low, high = ([row[name].get(key) for row in rows] for key in ('mean', 'low', 'high'))
  return figures.Line(label, role, [row['step'] for row in rows], means, low, high)


def _value(row, name):
  """Returns a metric of a training step; 0 for an error that a step with samples did not log."""
  has_samples = 'completions/mean_length' in row
  if name == _UNPARSABLE and has_samples:
    return min(sum(row.get(f'errors/{kind}', 0.0) for kind in _UNPARSABLE_ERRORS), 1.0)
  return row.get(name, 0.0 if has_samples and name.startswith('errors/') else None)


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def histograms(run, before, after, omissions):
  """Returns histograms of grades and lengths before and after.

  Of the samples of held-out rows if both evaluations saved theirs, otherwise of the first and the
  last training steps with samples.

  Args:
    before, after: each a ComparedPolicy or None.
    omissions: a line is appended if there are no histograms.
  """
  labels = ['before', 'after']
  if before and after and before.answers and after.answers:
    samples_before, samples_after = _held_out_samples(before), _held_out_samples(after)
    labels = [before.label, after.label]
    note = f'{len(samples_before):,} samples of held-out rows before, {len(samples_after):,} after.'
  else:
    steps = episodes.steps(run.workdir)
    if len(steps) < 2:
      omissions.append('Histograms of grades and lengths: too few samples were saved.')
      return []
    samples_before, first = _training_samples(run.workdir, steps)
    samples_after, last = _training_samples(run.workdir, steps[::-1])
    note = (
      f'Training samples: {len(samples_before):,} of steps {first} as before, '
      f'{len(samples_after):,} of steps {last} as after.'
    )
  rewards = [_rewards(samples) for samples in (samples_before, samples_after)]
  lengths = [_lengths(samples) for samples in (samples_before, samples_after)]
  charts = (
    _histogram('Grades', 'grade', note, labels, *rewards),
    _histogram('Lengths', 'tokens of a completion', note, labels, *lengths),
  )
  return [chart for chart in charts if chart]


def _histogram(title, label, note, labels, before, after):
  if not (before and after):
    return None
  return {
    'title': title,
    'caption': note,
    'legend': list(zip(labels, ('before', 'after'))),
    'svg': figures.draw_histogram(before, after, label=label),
    'summary': f'mean {format_number(sum(before) / len(before))} before, '
    f'{format_number(sum(after) / len(after))} after',
  }


def _rewards(records):
  return [record['reward'] for record in records if record['reward'] is not None]


def _lengths(records):
  return [len(record['tokens']) for record in records]


def _held_out_samples(policy):
  return [
    record for answers in policy.answers.values() for record in answers.sampled or [answers.greedy]
  ]


def _training_samples(workdir, steps):
  """Returns (samples, text of their steps) of the first of the steps, at most half of them."""
  records, steps_read = [], []
  for step in steps[: len(steps) // 2]:
    records += episodes.read(workdir, step, columns=['reward', 'tokens'])
    steps_read.append(step)
    if len(records) >= _SAMPLES:
      break
  first, last = min(steps_read), max(steps_read)
  return records, f'{first} to {last}' if last > first else f'{first}'
