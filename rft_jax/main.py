"""python -m rft_jax.main --config=configs/X.py --workdir=DIR [--mode=M] [--config.a.b=value ...]

Reinforcement fine-tuning: from cases, a grader and an open checkpoint to a better checkpoint.

  --config=FILE.py[:ARG]  what to run: a Python file with get_config(), see configs/
  --config.a.b=value      overrides one field; --config.stages[1].steps=9 reaches into tuples
  --workdir=DIR           where the run lives; an existing run continues from its newest checkpoint
  --mode=MODE             train     (default) trains, then reports and exports
                          evaluate  grades a checkpoint, or an HF directory, on the held-out rows
                          doctor    go or no-go before training: data, grader, base model, cost
                          grade     grades a file of answers, or checks a grader; needs no --config
                          export    writes a checkpoint of the workdir as an HF directory
                          report    writes report.html again from what lies in the workdir
  --model=DIR             evaluate, doctor: this HF directory or hub id instead of a checkpoint
  --checkpoint=C          evaluate, doctor, export: best (by held-out grade), last, or a step
  --grader=FILE           grade: the grader's JSON, instead of the config's
  --input=FILE            grade: JSONL of {"model_sample": "...", "item": {...}}
  --validate_only         grade: checks the grader alone, and prints its normal form
  --to=PATH               export: where to, default WORKDIR/export; grade: a file, default stdout
  --stop_at_step=N        train: save and stop after step N; the same command without it goes on
  --force                 export: replace what stands at the target

Exit code: 0 done; 2 something given is not fit, said in words, nothing lost; 1 failed on the way.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys

from absl import app, flags
from ml_collections import config_flags

from rft_jax import command_line
from rft_jax.errors import GraderFaults, InputError

MODES = ('train', 'evaluate', 'doctor', 'grade', 'export', 'report')

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to run: FILE.py or FILE.py:ARG.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run lives.')
_MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
_MODEL = flags.DEFINE_string('model', '', 'HF directory or hub id to evaluate.')
_CHECKPOINT = flags.DEFINE_string('checkpoint', 'best', 'best, last, or a step.')
_TO = flags.DEFINE_string('to', '', 'Where to export to.')
_GRADER = flags.DEFINE_string('grader', '', "File of a grader's JSON.")
_INPUT = flags.DEFINE_string('input', '', 'JSONL of {"model_sample", "item"} to grade.')
_VALIDATE_ONLY = flags.DEFINE_bool('validate_only', False, 'Check the grader alone.')
_STOP_AT_STEP = flags.DEFINE_integer(
  'stop_at_step', None, 'Save and stop after this step.', lower_bound=1
)
_FORCE = flags.DEFINE_bool('force', False, 'Replace what stands at the target.')


def main(argv):
  del argv
  if _MODE.value == 'grade':
    return _grade(_CONFIG.value)

  needless = _MODE.value == 'doctor' and not flags.FLAGS['checkpoint'].present
  if not (_WORKDIR.value or needless or (_MODE.value == 'evaluate' and _MODEL.value)):
    command_line.refuse('--workdir=DIR is missing: the folder in which the run lives')
  _keep_compilations()
  try:
    _dispatch(_CONFIG.value)
  except InputError as refusal:
    command_line.refuse(refusal)
  except GraderFaults as faults:
    print(f'rft_jax: {faults}', file=sys.stderr)
    sys.exit(1)


def _keep_compilations():
  """Keeps compiled programs for later runs, under ~/.cache unless JAX_COMPILATION_CACHE_DIR says.

  Apart for each kind of processor: a program for another one's instructions must not be loaded.
  """
  import jax

  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  if jax.config.jax_compilation_cache_dir:
    return
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as file:
      kind = next((line for line in file if line.startswith(('flags', 'Features'))), '')
  except OSError:
    kind = platform.processor()
  kind = hashlib.sha256(kind.encode()).hexdigest()[:8]
  jax.config.update(
    'jax_compilation_cache_dir',
    os.path.join(cache, 'rft_jax', 'compilations', f'{platform.machine()}-{kind}'),
  )


def _dispatch(config):
  import rft_jax
  from rft_jax.run.results import diagnose, evaluate_checkpoint, export_checkpoint, write_report

  if _MODE.value == 'train':
    rft_jax.train(
      config,
      _WORKDIR.value,
      stop_at_step=_STOP_AT_STEP.value,
      overrides=command_line.overrides(sys.argv),
    )
  elif _MODE.value == 'evaluate':
    values = (
      rft_jax.evaluate(config, model=_MODEL.value)
      if _MODEL.value
      else evaluate_checkpoint(config, _WORKDIR.value, which=_CHECKPOINT.value)
    )
    print(json.dumps(values, indent=2))
  elif _MODE.value == 'doctor':
    which = _CHECKPOINT.value if flags.FLAGS['checkpoint'].present else ''
    found = diagnose(config, _WORKDIR.value or '', model=_MODEL.value, which=which)
    print(found.text())
    if not found.go:
      sys.exit(1)
  elif _MODE.value == 'export':
    print(
      export_checkpoint(
        config, _WORKDIR.value, which=_CHECKPOINT.value, to=_TO.value, force=_FORCE.value
      )
    )
  else:
    print(write_report(config, _WORKDIR.value))


def _grade(config):
  """--mode=grade: without jax, unless a judge or a reward model is asked in this process."""
  if not (_GRADER.value or config):
    command_line.refuse('--grader=FILE is missing: the JSON of a grader')
  if not (_INPUT.value or _VALIDATE_ONLY.value):
    command_line.refuse(
      '--input=FILE is missing: JSONL of {"model_sample": "...", "item": {...}}; or --validate_only'
    )
  try:
    if config is None:
      with contextlib.closing(_made(_GRADER.value)) as grader:
        return _grade_with(grader, None)
    from rft_jax.run import build

    config.grader = _GRADER.value or config.grader
    build.check_graded(config)
    with build.grader(config, _WORKDIR.value or '') as (grader, _, response_format):
      _grade_with(grader, response_format)
  except (ValueError, RuntimeError, OSError) as error:
    command_line.refuse(error)


def _made(path):
  """Returns the grader in a file; the reward models that it names are Hugging Face directories."""
  from rft_jax import graders
  from rft_jax.graders.base import read
  from rft_jax.graders.reward_model import named_in

  models, (given, _) = {}, read(path)
  if named_in(given):
    from rft_jax import sharding
    from rft_jax.local_models import reward_model

    models = reward_model.open_all(given, mesh=sharding.make_mesh())
  return graders.make(path, reward_models=models)


def _grade_with(grader, response_format):
  from rft_jax.graders import openai_api

  if _VALIDATE_ONLY.value:
    print(json.dumps(openai_api.validate(grader), indent=2, ensure_ascii=False))
    return
  responses = []
  with open(_TO.value or sys.stdout.fileno(), 'w', closefd=bool(_TO.value)) as to:
    for response in openai_api.run_file(grader, _INPUT.value, response_format=response_format):
      responses.append(response)
      print(json.dumps(response, ensure_ascii=False), file=to, flush=True)
  print(json.dumps(openai_api.summary(grader, responses), ensure_ascii=False), file=sys.stderr)


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parser(__doc__, without_config=('grade',)))
