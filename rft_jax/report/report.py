"""report.html: one page that says whether training helped, with the evidence.

It is made from the files of the workdir alone, so that it can be written at any time, also for a
run that was interrupted. A section whose files are missing is left out, and the page says so. The
page needs no network and no script.
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
  """What the report shows in addition to the run."""

  compare: tuple[str, ...] = ()  # other runs to compare with: 'label=path/to/other/workdir'
  # Reference levels: a JSON file {name: {mean, low, high}}, such as the best possible score, or
  # the task.json of a task; 'path:name,name' selects some of its entries.
  reference: str = ''
  transcripts: int = 6  # held-out rows shown in full

  def validate(self) -> list[str]:
    """Returns every problem as 'field=value, need form'; [] if there is none."""
    problems = [
      f'compare={entry!r}, need label=path/to/other/workdir'
      for entry in self.compare
      if not all(part.strip() for part in entry.partition('=')[::2])
    ]
    if self.transcripts < 0:
      problems.append(f'transcripts={self.transcripts}, need >= 0')
    return problems


def write(workdir, *, title: str, config: ReportConfig | None = None) -> pathlib.Path:
  """Writes report.html from the files of the workdir and returns its path.

  Raises:
    ValueError: a file of the workdir is damaged, or config.reference has another form.
  """
  config = config or ReportConfig()
  run = runs.read(workdir)
  omissions: list[str] = []  # lines on what the page does not show, and why
  levels = compared_policies.reference_levels(config.reference, omissions)
  run_policies = compared_policies.from_run(run, omissions)
  last = run_policies[-1] if run_policies else None
  other_policies = compared_policies.from_other_runs(run, config.compare, last, omissions)
  before, after = (run_policies[-2], run_policies[-1]) if len(run_policies) > 1 else (None, None)
  main_charts = charts.main_charts(run, levels)
  page = {
    'title': title,
    'subtitle': _subtitle(run),
    'verdict': verdict.summarize(
      run_policies, other_policies, run.stage_of(last.row['step']) if last else None
    ),
    'facts': _facts(run),
    'split': run.split,
    'forest_plot': comparison.forest_plot([*run_policies, *other_policies], levels),
    'metrics_table': comparison.metrics_table(run_policies),
    'main_charts': main_charts,
    'other_charts': charts.other_charts(run, main_charts),
    'histograms': charts.histograms(run, before, after, omissions),
    'transcripts': transcripts.read(
      run,
      _transcript_rows(run_policies, other_policies, config.transcripts),
      config.transcripts,
      omissions,
    ),
    'provenance': _provenance(run.manifest),
    'config': json.dumps(run.config, indent=2, ensure_ascii=False) if run.config else None,
    'omissions': [*_missing(run), *omissions],
  }
  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters['format_number'] = comparison.format_number
  template = environment.from_string(_TEMPLATE.read_text(encoding='utf-8'))
  path = run.workdir / FILE
  atomic.write_text(path, template.render(page))
  return path


def _transcript_rows(run_policies, other_policies, at_most):
  """Returns held-out rows with the completions of the last two policies, and of a single other."""
  other_policies = [policy for policy in other_policies if not policy.unpaired_reason]
  policies = [*run_policies[-2:], *(other_policies if len(other_policies) == 1 else [])]
  return held_out.transcript_rows(
    [(policy.kind, policy.label, policy.answers) for policy in policies], at_most
  )


def _missing(run):
  """Returns a line on each section that the page cannot show yet."""
  evaluations = len(run.held_out)
  reasons = (
    (evaluations == 0, 'The comparison before and after: there is no held-out evaluation yet.'),
    (
      evaluations == 1,
      'The comparison before and after: there is only one held-out evaluation yet.',
    ),
    (len(run.training) < 2, f'Learning curves: {metrics.TRAINING} has fewer than two steps.'),
    (not run.manifest, f'Provenance and config: the workdir has no {manifest.FILE}.'),
  )
  return [reason for missing, reason in reasons if missing]


# ------------------------------------------------------------------ header


def _subtitle(run):
  """Returns one line: model, stages and time of the start."""
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
    facts.append(('Time in training steps', duration(seconds)))
  for split, evaluations in run.evaluations.items():
    facts.append((f'{split.capitalize()} rows', f'{evaluations[-1]["rows"]:,}'))
    graded = [row for row in evaluations if comparison.mean(row, 'grade') is not None]
    if len(graded) > 2:
      best = max(graded, key=lambda row: comparison.mean(row, 'grade'))
      grade = comparison.mean(best, 'grade')
      facts.append((f'Best {split} grade', f'{grade:.3f} at step {best["step"]:,}'))
  devices = run.manifest.get('devices') or {}
  if devices:
    facts.append(('Devices', f'{devices.get("count")} × {devices.get("kind")}'))
  return facts


# ------------------------------------------------------------------ provenance


def _provenance(run_manifest):
  """Returns [(group, [(name, shortened, full)])] of the manifest without its config."""
  groups = []
  ungrouped = []
  for name, value in run_manifest.items():
    if name == 'config':
      continue
    if isinstance(value, dict):
      groups.append((name, [(key, *_shortened(leaf)) for key, leaf in _leaves(value)]))
    elif value not in (None, []):
      text = ' '.join(map(str, value)) if isinstance(value, list) else value
      ungrouped.append((name, *_shortened(text)))
  return ([('run', ungrouped)] if ungrouped else []) + [
    (name, rows) for name, rows in groups if rows
  ]


def _leaves(value, name=''):
  """Yields (name, leaf); in a list of {file, sha256} the name is that of the file."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _leaves(inner, f'{name}/{key}' if name else str(key))
  elif isinstance(value, list):
    for i, inner in enumerate(value):
      if isinstance(inner, dict) and 'file' in inner:
        yield f'{name}/{inner["file"]}', inner['sha256']
      elif isinstance(inner, dict) and 'name' in inner:
        yield f'{name}/{inner["name"]}', 'recorded by name'
      else:
        yield from _leaves(inner, f'{name}[{i}]')
  elif value is not None:
    yield name, value


def _shortened(value):
  """Returns (text, the full value where the text is shortened, else '')."""
  text = 'yes' if value is True else 'no' if value is False else str(value)
  if len(text) in (40, 64) and all(letter in '0123456789abcdef' for letter in text):
    return f'{text[:12]}…', text
  return text, ''
