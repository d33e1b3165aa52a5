"""python -m rft_jax.main --config=configs/X.py --workdir=DIR [--mode=M] [--config.a.b=value ...]

Reinforcement fine-tuning: from cases, a grader and an open checkpoint to a better checkpoint.

  --config=FILE.py[:ARG]  the run: a Python file with get_config(), see configs/
  --config.a.b=value      overrides one field; --config.stages[1].steps=9 for a field of a stage
  --workdir=DIR           the folder of the run; an existing run continues from its last checkpoint
  --mode=MODE             train     (default) trains, then writes report and export
                          evaluate  grades a checkpoint, or an HF directory, on the held-out rows
                          doctor    go or no-go before training: data, grader, base model, cost
                          grade     grades a file of answers, or checks a grader; needs no --config
                          export    writes a checkpoint of the workdir as an HF directory
                          report    writes report.html again from the files of the workdir
  --model=DIR             evaluate, doctor: this HF directory or hub id instead of a checkpoint
  --checkpoint=C          evaluate, doctor, export: best (by held-out grade), last, or a step
  --grader=FILE           grade: the JSON of a grader, instead of that of the config
  --input=FILE            grade: JSONL of {"model_sample": "...", "item": {...}}
  --validate_only         grade: checks the grader only, and prints its normal form
  --to=PATH               export: target, default WORKDIR/export; grade: a file, default stdout
  --stop_at_step=N        train: saves and stops after this step; the same command without it
                          continues
  --force                 export: replaces the target if it exists

Exit code: 0 done; 1 failed on the way, or the doctor says no-go; 2 something given is not fit: one
line for each problem, and nothing was computed or changed.
"""

import contextlib
import json
import sys

from absl import app, flags
from ml_collections import config_flags

from rft_jax import command_line
from rft_jax.errors import GraderFaults, InputError

MODES = ('train', 'evaluate', 'doctor', 'grade', 'export', 'report')

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The run: FILE.py or FILE.py:ARG.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')
_MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
_MODEL = flags.DEFINE_string('model', '', 'HF directory or hub id to evaluate.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last, or a step.')
_TO = flags.DEFINE_string('to', '', 'Target of the export.')
_GRADER = flags.DEFINE_string('grader', '', 'File with the JSON of a grader.')
_INPUT = flags.DEFINE_string('input', '', 'JSONL of {"model_sample", "item"} to grade.')
_VALIDATE_ONLY = flags.DEFINE_bool('validate_only', False, 'Check the grader only.')
_STOP_AT_STEP = flags.DEFINE_integer(
  'stop_at_step', None, 'Save and stop after this step.', lower_bound=1
)
_FORCE = flags.DEFINE_bool('force', False, 'Replace the target if it exists.')


def main(argv):
  del argv
  if _MODE.value == 'grade':
    return _grade(_CONFIG.value)
  checkpoint_named = flags.FLAGS['checkpoint'].present
  without_workdir = (_MODE.value == 'doctor' and not checkpoint_named) or (
    _MODE.value == 'evaluate' and _MODEL.value
  )
  if not (_WORKDIR.value or without_workdir):
    command_line.refuse('--workdir=DIR is missing: the folder of the run')
  from rft_jax.run import compilation  # here, since --help and misspelt flags need no jax

  compilation.use_disk_cache()
  try:
    _dispatch(_CONFIG.value, _CHECKPOINT.value if checkpoint_named else '')
  except InputError as error:
    command_line.refuse(error)
  except GraderFaults as faults:
    print(f'rft_jax: {faults}', file=sys.stderr)
    sys.exit(1)


def _dispatch(config, named_checkpoint):
  """Runs a mode other than grade.

  Args:
    named_checkpoint: of the command line; '' if none is given.
  """
  import rft_jax
  from rft_jax.doctor import doctor
  from rft_jax.run import results

  if _MODE.value == 'train':
    rft_jax.train(
      config,
      _WORKDIR.value,
      stop_at_step=_STOP_AT_STEP.value,
      overrides=command_line.overrides(sys.argv),
    )
  elif _MODE.value == 'evaluate':
    if _MODEL.value:
      values = rft_jax.evaluate(config, model=_MODEL.value)
    else:
      values = results.evaluate_checkpoint(config, _WORKDIR.value, which=_CHECKPOINT.value)
    print(json.dumps(values, indent=2))
  elif _MODE.value == 'doctor':
    examination = doctor.diagnose(
      config, _WORKDIR.value or '', model=_MODEL.value, which=named_checkpoint
    )
    print(examination.text())
    if not examination.go:
      sys.exit(1)
  elif _MODE.value == 'export':
    print(
      results.export_checkpoint(
        config, _WORKDIR.value, which=_CHECKPOINT.value, to=_TO.value, force=_FORCE.value
      )
    )
  else:
    print(results.write_report(config, _WORKDIR.value))


def _grade(config):
  """Runs --mode=grade: without jax, unless a judge or a reward model is in this process."""
  if not (_GRADER.value or config):
    command_line.refuse('--grader=FILE is missing: the JSON of a grader')
  if not (_INPUT.value or _VALIDATE_ONLY.value):
    command_line.refuse(
      '--input=FILE is missing: JSONL of {"model_sample": "...", "item": {...}}; or --validate_only'
    )
  try:
    if config is None:
      with contextlib.closing(_grader_of_file(_GRADER.value)) as grader:
        return _grade_with(grader, None)
    from rft_jax.run import build_grader

    config.grader = _GRADER.value or config.grader
    build_grader.check_graded(config)
    with build_grader.grader(config, _WORKDIR.value or '') as (grader, _, response_format):
      _grade_with(grader, response_format)
  except (ValueError, RuntimeError, OSError) as error:
    command_line.refuse(error)


def _grader_of_file(path):
  """Returns the grader in a file; reward models that it names must be HF directories."""
  from rft_jax import graders
  from rft_jax.graders.base import read_grader
  from rft_jax.graders.reward_model import reward_model_names

  models, (grader_json, _) = {}, read_grader(path)
  if reward_model_names(grader_json):
    from rft_jax import sharding
    from rft_jax.local_models import reward_model

    models = reward_model.open_reward_models(grader_json, mesh=sharding.make_mesh())
  return graders.make(path, reward_models=models)


def _grade_with(grader, response_format):
  from rft_jax.graders import openai_api

  if _VALIDATE_ONLY.value:
    print(json.dumps(openai_api.validate(grader), indent=2, ensure_ascii=False))
    return
  responses = []
  with open(_TO.value or sys.stdout.fileno(), 'w', closefd=bool(_TO.value)) as output:
    for response in openai_api.run_file(grader, _INPUT.value, response_format=response_format):
      responses.append(response)
      print(json.dumps(response, ensure_ascii=False), file=output, flush=True)
  print(json.dumps(openai_api.summary(grader, responses), ensure_ascii=False), file=sys.stderr)


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parser(__doc__, without_config=('grade',)))
