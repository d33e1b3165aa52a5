"""Which charts the report shows, from the rows of metrics.jsonl, evaluation.jsonl, episodes/."""
from rft_jax.records import comparison, figures, ledger
from rft_jax.records.comparison import number

_SAMPLES = 256  # graded samples at least, where there are, in each histogram
_NO_CURVES = {'step', 'stage', 'num_tokens'}  # they say where a step stands, not what it did


def main(run, levels):
  """Returns the charts that everyone looks at first; those without numbers are left out."""
  means = [(label, level['mean']) for label, level in levels.items()]
  training = {'reward': ('training reward', 'other')}
  lengths = {'completions/mean_length': ('training', 'other')}
  shares = {'completions/clipped_ratio': ('training: cut off', 'other'),
            'unparsable': ('training: unreadable', 'reference')}
  shown = (
      ('Training reward', 'Mean reward of the samples of each step.', training, {}, ()),
      ('Held-out grade', 'Mean grade with its 95 % interval.', {}, {'grade': ('held-out', 'after')},
       means),
      ('Completion length', 'Tokens of a completion, reasoning included.', lengths,
       {'mean_tokens': ('held-out', 'after')}, ()),
      ('Cut off and unreadable', 'Share of samples at the length limit, or that do not parse.',
       shares, {'truncated': ('held-out: cut off', 'after'),
                'unparsable': ('held-out: unreadable', 'before')}, ()),
      ('Entropy', 'Of the next token, in nats.', {'entropy': ('entropy', 'other')}, {}, ()),
      ('Distance from the reference', 'KL per token, in nats.', {'kl': ('KL', 'other')}, {}, ()),
  )
  drawn = (_figure(run, *chart) for chart in shown)
  return [figure for figure in drawn if figure]


def others(run, shown, at_most=24):
  """Returns a chart of every other metric that was logged, by name."""
  used = {name for figure in shown for name in figure['metrics']} | _NO_CURVES
  names = sorted({name for row in run['training'] for name in row} - used)
  drawn = (_figure(run, name, '', {name: (name, 'other')}, {}, ()) for name in names[:at_most])
  return [figure for figure in drawn if figure]


def _figure(run, title, caption, training, heldout, levels):
  """Returns {'title', 'caption', 'svg', 'legend', 'metrics', 'summary'}, None without numbers."""
  lines = []
  for name, (label, role) in training.items():
    rows = [row for row in run['training'] if _is_number(row.get(name))]
    if len(rows) > 1:
      lines.append(figures.Line(label, role, [row['step'] for row in rows],
                                [row[name] for row in rows]))
  first, _ = comparison.before_and_after(run['evaluations'])
  evaluations = run['evaluations'][first['split']] if first else []
  for name, (label, role) in heldout.items():
    rows = [row for row in evaluations if comparison.mean(row, name) is not None]
    if len(rows) > 1:
      intervals = [row[name] for row in rows]
      low, high = ([interval.get(end) for interval in intervals] for end in ('low', 'high'))
      lines.append(figures.Line(label, role, [row['step'] for row in rows],
                                [interval['mean'] for interval in intervals], low, high))
  if not lines:
    return None
  values = [value for line in lines for value in line.values]
  last = max(rows[-1]['step'] for rows in (run['training'], evaluations) if rows)
  svg = figures.curves(lines, last=last, stages=run['stages'], levels=levels,
                       unit_interval=min(values) >= 0 and max(values) <= 1)
  return {
      'title': title, 'caption': caption, 'svg': svg, 'metrics': list(training),
      'legend': [(line.label, line.role) for line in lines] if len(lines) > 1 else [],
      'summary': '; '.join(f'{line.label}: {number(line.values[0])} at step {line.steps[0]}, '
                           f'{number(line.values[-1])} at step {line.steps[-1]}'
                           for line in lines),
  }


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def histograms(workdir, before, after, left_out):
  """Returns charts of grades and lengths before and after.

  Of the samples of held-out rows, if the first and last evaluation kept theirs; else of the
  first and the last training steps that did.

  Args:
    before, after: {occurrence: held_out.Answers}, {} if they were not kept.
  """
  if before and after:
    early, late = ([record for answers in side.values()
                    for record in answers.sampled or [answers.greedy]] for side in (before, after))
    note = f'{len(early):,} samples of held-out rows before, {len(late):,} after.'
  else:
    steps = ledger.steps(workdir)
    if len(steps) < 2:
      left_out.append('Distributions of grades and lengths: too few samples were kept.')
      return []
    (early, first), (late, last) = _samples(workdir, steps), _samples(workdir, steps[::-1])
    note = (f'Training samples: {len(early):,} of steps {first} as before, '
            f'{len(late):,} of steps {last} as after.')
  return [figure for figure in (
      _histogram('Grades', 'grade', note, _rewards(early), _rewards(late)),
      _histogram('Lengths', 'tokens of a completion', note, _lengths(early), _lengths(late)),
  ) if figure]


def _histogram(title, label, note, before, after):
  if not (before and after):
    return None
  return {'title': title, 'caption': note, 'legend': [('before', 'before'), ('after', 'after')],
          'svg': figures.histogram(before, after, label=label),
          'summary': f'mean {number(sum(before) / len(before))} before, '
                     f'{number(sum(after) / len(after))} after'}


def _rewards(records):
  return [record['reward'] for record in records if record['reward'] is not None]


def _lengths(records):
  return [len(record['tokens']) for record in records]


def _samples(workdir, order):
  """Returns samples of the first steps of an order, at most half of them, and which they are."""
  records, used = [], []
  for step in order[:len(order) // 2]:
    records += ledger.read(workdir, step, columns=['reward', 'tokens'])
    used.append(step)
    if len(records) >= _SAMPLES:
      break
  return records, f'{min(used)} to {max(used)}' if len(used) > 1 else f'{used[0]}'
