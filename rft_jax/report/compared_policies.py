"""What the report compares: policies of the run and of other runs, and reference levels."""

import pathlib
from typing import NamedTuple

from rft_jax.json_files import read_json
from rft_jax.records import metrics
from rft_jax.report import held_out
from rft_jax.report import workdir as runs


class ComparedPolicy(NamedTuple):
  """A policy with a recorded held-out evaluation."""

  kind: str  # 'before', 'after' (the newest policy of the run), 'other' (of another run)
  label: str
  row: dict  # of evaluation.jsonl
  tokens: int | None  # trained on so far
  answers: dict[int, held_out.Answers]  # by held-out row; {} if they were not saved
  unpaired_reason: str = ''  # why its grades cannot be paired with the run's, row by row

  def metric(self, name: str) -> dict:
    """Returns a metric with its interval, {} if it was not measured."""
    value = self.row.get(name) or {}
    return value if value.get('mean') is not None else {}


def from_run(run: runs.Run, omissions: list[str]) -> list[ComparedPolicy]:
  """Returns the policies of the first evaluation, of those at the ends of stages, and of the last.

  Stage ends that were not evaluated are appended to omissions.
  """
  rows = run.held_out
  steps = {row['step'] for row in rows}
  for stage in run.stages[:-1]:
    if rows and rows[0]['step'] < stage.end < rows[-1]['step'] and stage.end not in steps:
      omissions.append(f'The policy after {stage.word}: not evaluated at step {stage.end:,}.')
  ends = {stage.end for stage in run.stages}
  compared = [
    row for number, row in enumerate(rows) if number in (0, len(rows) - 1) or row['step'] in ends
  ]
  return [
    ComparedPolicy(
      'after' if row is rows[-1] and row is not rows[0] else 'before',
      _label(run, row),
      row,
      run.tokens(row['step']),
      held_out.read(run.workdir, row),
    )
    for row in compared
  ]


def _label(run: runs.Run, row: dict) -> str:
  """Returns a name for the policy of an evaluation: 'After warm-up: sft, step 400'."""
  step, stage = row['step'], run.stage_of(row['step'])
  if step == 0:
    return 'Base checkpoint, step 0'
  if stage is None:
    return f'At step {step:,}'
  return f'{"After" if step == stage.end else "During"} {stage.word}: {stage.name}, step {step:,}'


def from_other_runs(
  run: runs.Run, compare, last: ComparedPolicy | None, omissions: list[str]
) -> list[ComparedPolicy]:
  """Returns the policy of the last evaluation of each other run.

  Args:
    compare: 'label=workdir' of each; this run itself is skipped, so that the runs of one
      comparison may share a config.
    last: the newest policy of this run.
    omissions: a line is appended for each run that cannot be shown or paired.
  """
  policies = []
  for entry in compare:
    name, _, folder = (part.strip() for part in entry.partition('='))
    if pathlib.Path(folder).resolve() == run.workdir.resolve():
      continue
    other = runs.read(folder)
    rows = other.evaluations.get(run.split, []) if run.split else other.held_out
    if not rows:
      split = f' of {run.split}' if other.evaluations else ''
      omissions.append(f'{name}: {folder} has no {metrics.EVALUATION}{split}.')
      continue
    answers = held_out.read(other.workdir, rows[-1])
    reason = _unpaired_reason(run, other, last.answers, answers) if last else ''
    if reason:
      omissions.append(f'{name}: not compared with this run row by row, because {reason}.')
    tokens = other.tokens(rows[-1]['step'])
    policies.append(ComparedPolicy('other', name, rows[-1], tokens, answers, reason))
  return policies


def _unpaired_reason(run, other_run, answers, other_answers):
  """Returns why two evaluations cannot be paired, '' if they can."""
  graders = [(each.manifest.get('sha256') or {}).get('grader') for each in (run, other_run)]
  if not answers:
    return 'the answers of this run were not saved'
  if not other_answers:
    return 'its answers to held-out rows were not saved'
  if not held_out.same_rows(answers, other_answers):
    return 'its held-out rows are not the same'
  if None not in graders and graders[0] != graders[1]:
    return 'its grader is not the same'
  return ''


# ------------------------------------------------------------------ reference levels


def reference_levels(reference: str, omissions: list[str]) -> dict[str, dict]:
  """Returns {label: interval} of 'path' or 'path:name,name'; all of its entries without names.

  The file is {name: {mean, low, high}}, or has that object as 'reference', as task.json does.

  Raises:
    ValueError: the file has another form, or no entry of a name.
  """
  if not reference:
    return {}
  path, names = pathlib.Path(reference), ''
  if not path.is_file():
    file, _, names = reference.rpartition(':')
    path = pathlib.Path(file or names)
    names = names if path != pathlib.Path(names) else ''
  if not path.is_file():
    omissions.append(f'Reference levels: there is no file {path}.')
    return {}
  levels = read_json(path)
  nested = levels.get('reference')
  if isinstance(nested, dict) and not isinstance(nested.get('mean'), (int, float)):
    levels = nested
  selected = [name.strip() for name in names.split(',') if name.strip()] or list(levels)
  for name in selected:
    if name not in levels:
      raise ValueError(f'{path}: no reference {name!r}, need one of {", ".join(levels)}')
    if not isinstance(levels[name], dict) or not isinstance(levels[name].get('mean'), (int, float)):
      raise ValueError(
        f'{path}: {name!r} is {levels[name]!r}, need an object with a number '
        '"mean", and "low" and "high" if there is an interval'
      )
  return {_title(name): levels[name] for name in selected}


def _title(name):
  name = name.replace('_', ' ')
  return name[:1].upper() + name[1:]
