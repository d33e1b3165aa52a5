"""report.html: one page that says whether the run helped, and shows what it rests on.

It is made from the workdir's files alone, so that it can be written at any time, also for a run
that was interrupted. A section whose files are missing is left out, and the page says so. The
page needs no network and no script; it can be mailed.
"""

import dataclasses
import json
import pathlib

import jinja2

from rft_jax.records import atomic, manifest, metrics
from rft_jax.records.progress import duration
from rft_jax.report import charts, compared_policies, comparison, held_out, transcripts, verdict
from rft_jax.report import workdir as runs

FILE = 'report.html'
_TEMPLATE = pathlib.Path(__file__).with_name('report_template.html.jinja')


@dataclasses.dataclass(slots=True, kw_only=True)
class ReportConfig:
  """What the report shows besides the run itself."""

  compare: tuple[str, ...] = ()  # 'label=path/to/other/workdir': its last evaluation
  # JSON file {name: {mean, low, high}}, such as the best possible score, or a task's task.json;
  # 'path:name,name' chooses among its entries.
  reference: str = ''
  transcripts: int = 6  # held-out rows shown in full

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need form'; [] if there is none."""
    problems = [
      f'compare={arm!r}, need label=path/to/other/workdir'
      for arm in self.compare
      if not all(part.strip() for part in arm.partition('=')[::2])
    ]
    if self.transcripts < 0:
      problems.append(f'transcripts={self.transcripts}, need >= 0')
    return problems


def write(workdir, *, title: str, config: ReportConfig | None = None) -> pathlib.Path:
  """Writes report.html from what is in the workdir and returns its path.

  Raises:
    ValueError: a file of the workdir is damaged, or config.reference has another form.
  """
  config = config or ReportConfig()
  run = runs.read(workdir)
  excluded_rows = []
  levels = compared_policies.reference_levels(config.reference, excluded_rows)
  own = compared_policies.of_run(run, excluded_rows)
  others = compared_policies.of_others(run, config.compare, own[-1] if own else None, excluded_rows)
  before, after = (own[-2], own[-1]) if len(own) > 1 else (None, None)
  shown = charts.main(run, levels)
  page = {
    'title': title,
    'subtitle': _subtitle(run),
    'verdict': verdict.give(own, others, run.stage_of(own[-1].row['step']) if own else None),
    'facts': _facts(run),
    'split': run.split,
    'forest': comparison.forest([*own, *others], levels),
    'measures': comparison.measures(own),
    'figures': shown,
    'more_figures': charts.others(run, shown),
    'histograms': charts.histograms(run, before, after, excluded_rows),
    'transcripts': transcripts.read(
      run, _answers(own, others, config.transcripts), config.transcripts, excluded_rows
    ),
    'provenance': _provenance(run.manifest),
    'config': json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else None,
    'excluded_rows': [*_missing(run), *excluded_rows],
  }
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters['number'] = comparison.number
  template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
  path = run.workdir / FILE
  atomic.write_text(path, template.render(page))
  return path


def _answers(own, others, at_most):
  """Returns held-out rows in full, by the last two policies, and one other run if it is alone."""
  others = [arm for arm in others if not arm.differs]
  sides = [*own[-2:], *(others if len(others) == 1 else [])]
  return held_out.transcripts([(arm.kind, arm.label, arm.answers) for arm in sides], at_most)


def _missing(run):
  """Returns what the page cannot show yet, and why."""
  evaluations = len(run.held_out)
  reasons = (
    (evaluations == 0, 'The comparison before and after: no held-out evaluation is recorded.'),
    (evaluations == 1, 'The comparison before and after: there is one held-out evaluation so far.'),
    (len(run.training) < 2, f'Learning curves: {metrics.TRAINING} has fewer than two steps.'),
    (not run.manifest, f'Provenance and config: the workdir has no {manifest.FILE}.'),
  )
  return [reason for missing, reason in reasons if missing]


# ------------------------------------------------------------------ at a glance


def _subtitle(run):
  """Returns one line: which model, by which stages."""
  source = (run.config.get('model') or {}).get('source')
  stages = ' then '.join(stage.name for stage in run.stages)
  started = str(run.manifest.get('started') or '')[:16].replace('T', ' ')
  started = f'started {started} UTC' if started else ''
  return ' · '.join(part for part in (source, stages, started) if part)


def _facts(run):
  """Returns (label, value) pairs on the size of the run."""
  rows, facts = run.training, []
  if rows:
    done, planned = len(rows), run.planned
    facts.append(('Steps', f'{done:,}' if done >= planned else f'{done:,} of {planned:,}'))
  if rows and rows[-1].get('num_tokens') is not None:
    facts.append(('Tokens trained on', f'{rows[-1]["num_tokens"]:,.0f}'))
  seconds = sum(
    value
    for row in rows
    for name, value in row.items()
    if name.startswith('seconds/') and value is not None
  )
  if seconds:
    facts.append(('Time in steps', duration(seconds)))
  for split, evaluations in run.evaluations.items():
    facts.append((f'Rows of {split}', f'{evaluations[-1]["rows"]:,}'))
    graded = [row for row in evaluations if comparison.mean(row, 'grade') is not None]
    if len(graded) > 2:
      best = max(graded, key=lambda row: comparison.mean(row, 'grade'))
      grade = comparison.mean(best, 'grade')
      facts.append((f'Best of {split}', f'{grade:.3f} at step {best["step"]:,}'))
  devices = run.manifest.get('devices') or {}
  if devices:
    facts.append(('Devices', f'{devices.get("count")} × {devices.get("kind")}'))
  return facts


# ------------------------------------------------------------------ provenance


def _provenance(about):
  """Returns [(group, [(name, shown, full)])] of the manifest, its config left out."""
  groups = []
  loose = []
  for name, value in about.items():
    if name == 'config':
      continue
    if isinstance(value, dict):
      leaves = [(key, *_shortened(leaf)) for key, leaf in _flat(value)]
      groups.append((name, leaves))
    elif value not in (None, []):
      text = ' '.join(map(str, value)) if isinstance(value, list) else value
      loose.append((name, *_shortened(text)))
  return ([('run', loose)] if loose else []) + [(name, rows) for name, rows in groups if rows]


def _flat(value, name=''):
  """Yields (name, leaf); a list of {file, sha256} gives the digest by file name."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _flat(inner, f'{name}/{key}' if name else str(key))
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      if isinstance(inner, dict) and 'file' in inner:
        yield f'{name}/{inner["file"]}', inner['sha256']
      elif isinstance(inner, dict) and 'name' in inner:
        yield f'{name}/{inner["name"]}', 'by name'
      else:
        yield from _flat(inner, f'{name}[{i}]')
  elif value is not None:
    yield name, value


def _shortened(value):
  """Returns (what is shown, the full value if that is more)."""
  text = 'yes' if value is True else 'no' if value is False else str(value)
  if len(text) in (40, 64) and all(letter in '0123456789abcdef' for letter in text):
    return f'{text[:12]}…', text
  return text, ''
