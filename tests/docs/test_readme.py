"""The README's rows, grader, config and Python, with a tiny checkpoint and few steps."""

import json

import documentation
import numpy as np
import pytest
import tiny

PAGE = 'README.md'
CONFIG, LIBRARY = documentation.fenced(PAGE, 'python')
SMALL = (
  '--config.model.source=base',
  '--config.rollout.max_new_tokens=4',
  '--config.rollout.prompts_per_step=2',
  '--config.rollout.samples_per_prompt=2',
  '--config.evaluate.samples_per_prompt=2',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the files that the README describes."""
  to = tmp_path_factory.mktemp('readme')
  (row,) = [text for text in documentation.indented(PAGE) if text.startswith('{"messages"')]
  (to / 'train.jsonl').write_text(row + '\n' + row.replace('4-year', '5-year') + '\n')
  (to / 'validation.jsonl').write_text(row.replace('4-year', '6-year') + '\n')
  (grader,) = documentation.graders(PAGE)
  (to / 'grader.json').write_text(json.dumps(grader))
  (to / 'my_config.py').write_text(CONFIG)
  tiny.write_base(to / 'base')
  return to


def run(folder, end, *changes):
  """Runs the command of the README with this end, and my_config.py."""
  commands = [text for text in documentation.commands(PAGE) if 'my_config.py' in text]
  (command,) = [text for text in commands if text.endswith(end)]
  result = documentation.run(command, *SMALL, *changes, cwd=folder)
  assert 'Traceback' not in result.stderr
  return result


@pytest.mark.full  # test_migrating.py has the doctor in the essential tests
def test_the_doctor_examines_the_config(folder):
  result = run(folder, '--mode=doctor', '--config.doctor.samples_per_prompt=2')
  assert result.returncode == 1, result.stderr  # a policy with random weights is a no-go
  assert '--config.model.source' not in result.stderr and 'verdict: no-go' in result.stdout


@pytest.mark.full
def test_the_config_trains_and_its_export_is_read_from_python(folder, monkeypatch):
  result = run(folder, '--workdir=runs/mine', '--config.stages[0].steps=1')
  assert result.returncode == 0, result.stderr
  described = [
    text.split()[0].rstrip('/')
    for text in documentation.read(PAGE)
    .partition('## What a run leaves behind')[2]
    .partition('\n## ')[0]
    .splitlines()
    if text.startswith('    ')
  ]
  files = {path.name for path in (folder / 'runs' / 'mine').iterdir()}
  assert files <= set(described)
  names = {}
  monkeypatch.chdir(folder)
  exec(LIBRARY, names)
  assert [len(group) for group in names['samples']] == [8]
  assert np.asarray(names['logprobs']).shape == (1, 3) and names['grade'].reward == 1.0
