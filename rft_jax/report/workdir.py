"""Reads the files of a workdir: its planned stages, training metrics and evaluations."""

import pathlib
from typing import NamedTuple

from rft_jax.algorithms import ALGORITHMS, Requirements
from rft_jax.records import manifest, metrics

_SPLITS = ('test', 'validation')  # preferred first, where several splits were evaluated


class Stage(NamedTuple):
  """A stage as planned: steps first + 1 .. end."""

  name: str  # its algorithm
  word: str  # what it does for the policy: 'warm-up', 'fine-tuning', 'reinforcement', ...
  first: int
  end: int


class Run(NamedTuple):
  """The rows of a workdir's files; empty where a file is missing."""

  workdir: pathlib.Path
  manifest: dict
  training: list[dict]  # rows of metrics.jsonl
  evaluations: dict[str, list[dict]]  # rows of evaluation.jsonl by split, oldest first
  stages: list[Stage]

  @property
  def config(self) -> dict:
    return self.manifest.get('config') or {}

  @property
  def planned(self) -> int:
    """Returns the number of steps of all stages."""
    return self.stages[-1].end if self.stages else 0

  @property
  def split(self) -> str | None:
    """Returns the split that the report shows: one evaluated at least twice, if there is one."""
    names = [split for split in _SPLITS if split in self.evaluations] + list(self.evaluations)
    repeated = [split for split in names if len(self.evaluations[split]) > 1]
    return next(iter(repeated or names), None)

  @property
  def held_out(self) -> list[dict]:
    """Returns the evaluations of that split."""
    return [] if self.split is None else self.evaluations[self.split]

  @property
  def last(self) -> int:
    """Returns the last step with metrics or an evaluation."""
    return max((rows[-1]['step'] for rows in (self.training, self.held_out) if rows), default=0)

  def stage_of(self, step: int) -> Stage | None:
    """Returns the stage in which a step was trained; None for step 0 or without a manifest."""
    return next((stage for stage in self.stages if stage.first < step <= stage.end), None)

  def tokens(self, step: int) -> int | None:
    """Returns the tokens trained on up to a step; None if they were not recorded."""
    if step == 0:
      return 0
    return next((row.get('num_tokens') for row in self.training if row['step'] == step), None)


def read(workdir) -> Run:
  """Reads a workdir; one without files gives an empty run.

  Raises:
    ValueError: a file is damaged; names it.
  """
  workdir = pathlib.Path(workdir)
  run_manifest = manifest.read(workdir) or {}
  splits: dict[str, dict[int, dict]] = {}
  for row in metrics.read(workdir / metrics.EVALUATION):
    splits.setdefault(row['split'], {})[row['step']] = row  # the later of two evaluations counts
  evaluations = {split: [rows[step] for step in sorted(rows)] for split, rows in splits.items()}
  planned = (run_manifest.get('config') or {}).get('stages') or ()
  return Run(
    workdir, run_manifest, metrics.read(workdir / metrics.TRAINING), evaluations, _stages(planned)
  )


def _stages(planned):
  names = [stage.get('algorithm', f'stage {number}') for number, stage in enumerate(planned)]
  algorithms = [_requirements(name) for name in names]
  stages, first = [], 0
  for number, (name, stage) in enumerate(zip(names, planned)):
    supervised = algorithms[number].rows == 'targets'
    warm_up = supervised and any(later.rows != 'targets' for later in algorithms[number + 1 :])
    word = 'warm-up' if warm_up else algorithms[number].label
    stages.append(Stage(name, word, first, first + stage.get('steps', 0)))
    first = stages[-1].end
  return stages


def _requirements(name) -> Requirements:
  """Returns the REQUIREMENTS of an algorithm; those of reinforcement if there is none here."""
  return ALGORITHMS[name].REQUIREMENTS if name in ALGORITHMS else Requirements('prompts')
