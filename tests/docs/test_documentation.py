"""All pages: links, sizes, files and settings that exist, and every command is run or listed."""

import dataclasses
import re

import documentation
from documentation import PAGES
from paths import ROOT

from rft_jax.config import Config, Stage
from rft_jax.objectives import importance_ratios
from rft_jax.objectives.masked import AGGREGATIONS
from rft_jax.objectives.policy_losses import LOSSES
from rft_jax.objectives.preference_losses import NEEDS

# Every command of the pages -> the test that runs it, or why none does.
NOT_RUN = 'not run: '
MIGRATING, README = 'docs/test_migrating.py::', 'docs/test_readme.py::'
_JOB = (
  'python -m rft_jax.main --config=configs/openai_job.py:job.json --workdir=runs/job '
  '--config.model.source=Qwen/Qwen3-0.6B'
)
COMMANDS = {
  _JOB: MIGRATING + 'test_the_job_leaves_export_report_and_events',
  f'{_JOB} --mode=doctor': MIGRATING + 'test_the_doctor_examines_the_job',
  'python -m rft_jax.main --mode=grade --grader=grader.json --validate_only': MIGRATING
  + 'test_the_grader_is_valid',
  'python -m rft_jax.main --mode=grade --grader=grader.json --input=answers.jsonl': MIGRATING
  + 'test_the_answers_are_graded',
  'python -m rft_jax.main --config=my_config.py --workdir=runs/mine': README
  + 'test_the_config_trains_and_its_export_is_read_from_python',
  'python -m rft_jax.main --config=my_config.py --workdir=runs/mine --mode=doctor': README
  + 'test_the_doctor_examines_the_config',
  'make demo': NOT_RUN + '7 minutes; tests/tasks and tests/run run the same with few rows',
  'make test': NOT_RUN + 'these tests',
  'make test-all': NOT_RUN + 'all tests',
  'make lint': NOT_RUN + 'make test-all runs it',
  "pip install -c constraints.txt -e '.[test]'": NOT_RUN + 'downloads packages',
  "pip install -e '.[cuda]'": NOT_RUN + 'downloads packages',
  "pip install -e '.[tpu]'": NOT_RUN + 'downloads packages',
  "pip install 'rft_jax[judges]'": NOT_RUN + 'downloads packages',
}


def test_links_and_images_resolve():
  offenders = []
  for page in PAGES:
    for target in re.findall(r'\]\(([^)\s]+)\)', documentation.read(page)):
      path, _, _ = target.partition('#')
      if not re.match(r'https?://', target) and not ((ROOT / page).parent / path).exists():
        offenders.append(f'{page}: {target}')
  assert not offenders


def test_the_readme_is_short():
  lines = documentation.read('README.md').splitlines()
  assert len(lines) <= 180
  assert not [line for line in lines if len(line) > 100]


def test_prose_has_at_most_100_columns():
  offenders = [
    f'{page}: {line}'
    for page in PAGES
    if page != 'docs/layout.md'  # a list of headlines
    for line in documentation.FENCE.sub('', documentation.read(page)).splitlines()
    if len(line) > 100 and not line.startswith(('|', '    '))
  ]
  assert not offenders


def test_files_that_are_named_exist():
  folders = [ROOT / name for name in ('rft_jax', 'tests', 'configs', 'scripts', 'examples', 'docs')]
  names = {path.name for folder in folders for path in folder.rglob('*') if path.is_file()}
  names |= {path.name for path in ROOT.iterdir()} | {'my_config.py'}
  offenders = []
  for page in PAGES:
    for code in documentation.inline_code(page):
      if not re.fullmatch(r'[\w./-]+(/|\.(py|md|toml|txt|ya?ml|cfg|ipynb|png))', code):
        continue
      if code.startswith(('runs/', 'export/', 'episodes/', '.venv')):
        continue  # of a workdir
      exists = (ROOT / code).exists() or (ROOT / 'rft_jax' / code).exists()
      if not exists and ('/' in code.rstrip('/') or code not in names):
        offenders.append(f'{page}: {code}')
  assert not offenders


def _unknown_setting(setting):
  """Returns the part of a setting such as rollout.temperature that Config does not have."""
  value = Config(stages=(Stage(algorithm='grpo', steps=1),) * 2)
  for part in setting.split('.'):
    name, _, index = part.rstrip(']').partition('[')
    if isinstance(value, dict):
      return None
    if name not in {field.name for field in dataclasses.fields(value)}:
      return name
    value = getattr(value, name)
    value = value[int(index)] if index else value
    if not dataclasses.is_dataclass(value):
      return None
  return None


def test_settings_that_are_named_exist():
  groups = {field.name for field in dataclasses.fields(Config)}
  path = r'\w+(?:\[\d\])?(?:\.\w+(?:\[\d\])?)+'
  settings = {}
  for page in PAGES:
    if page == 'CHANGELOG.md':  # which names fields of earlier versions
      continue
    settings |= dict.fromkeys(re.findall(rf'--config\.({path})', documentation.read(page)), page)
    for code in documentation.inline_code(page):
      match = re.fullmatch(rf'({path})(?:=.*)?', code)
      is_file = code.endswith(('.html', '.json', '.py'))
      if match and match[1].split('.')[0] in groups and not is_file:
        settings[match[1]] = page
  settings.pop('a.b')  # the form of any override
  offenders = [
    f'{page}: {setting}' for setting, page in settings.items() if _unknown_setting(setting)
  ]
  assert len(settings) > 50 and not offenders


def test_the_lists_of_losses_are_complete():
  code = set(documentation.inline_code('docs/algorithms.md'))
  names = {*LOSSES, *AGGREGATIONS, *importance_ratios.LEVEL_NAMES, *NEEDS}
  assert not names - code


def test_every_command_is_run_by_a_test_or_listed_as_not_run():
  commands = {command for page in PAGES for command in documentation.commands(page)}
  assert commands == set(COMMANDS), 'name the test that runs a new command, or why none does'
  for command, test in COMMANDS.items():
    if not test.startswith(NOT_RUN):
      path, name = test.split('::')
      source = (ROOT / 'tests' / path).read_text(encoding='utf-8')
      assert f'\ndef {name}(' in source, command


def test_make_has_the_targets_that_are_named():
  makefile = documentation.read('Makefile')
  targets = [command.split()[1] for command in COMMANDS if command.startswith('make ')]
  assert not [target for target in targets if f'\n{target}:' not in makefile]
