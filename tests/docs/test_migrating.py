"""docs/migrating.md from its first line to its last, on a tiny checkpoint, by the command line."""

import json

import documentation
import pytest
import tiny
from paths import ROOT

PAGE = 'docs/migrating.md'
NAMES = ('train.jsonl', 'grader.json', 'answers.jsonl', 'job.json')  # of the JSON blocks, in order


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the files of the page as they stand there, other held-out cases, and base/."""
  to = tmp_path_factory.mktemp('migrating')
  for name, text in zip(NAMES, documentation.fenced(PAGE, 'json'), strict=True):
    (to / name).write_text(text)
  held_out = (to / 'train.jsonl').read_text().replace('Which gene?', 'Name the gene.')
  (to / 'valid.jsonl').write_text(held_out)
  tiny.write_base(to / 'base')
  return to


def run(folder, *words, changes=()):
  """Runs the only command of the page with these words at its end."""
  (command,) = [text for text in documentation.commands(PAGE) if text.endswith(words)]
  replace = []
  if 'openai_job' in command:
    replace = [('configs/', f'{ROOT}/configs/'), ('Qwen/Qwen3-0.6B', 'base')]
  result = documentation.run(command, *changes, cwd=folder, replace=replace)
  assert 'Traceback' not in result.stderr
  return result


def test_the_grader_is_valid(folder):
  result = run(folder, '--validate_only')
  assert json.loads(result.stdout)['grader'] == json.loads((folder / 'grader.json').read_text())


def test_the_answers_are_graded(folder):
  result = run(folder, '--input=answers.jsonl')
  assert [json.loads(line)['reward'] for line in result.stdout.splitlines()] == [1.0]


@pytest.mark.full
def test_the_doctor_examines_the_job(folder):
  changes = ('--config.rollout.max_new_tokens=4', '--config.doctor.samples_per_prompt=2')
  result = run(folder, '--mode=doctor', changes=changes)
  assert result.returncode == 1, result.stderr  # a policy with random weights is a no-go
  assert 'no reward variance' in result.stdout and 'verdict: no-go' in result.stdout
  assert json.loads((folder / 'runs/job/doctor.json').read_text())['verdict'] == 'no-go'


def test_the_job_leaves_export_report_and_events(folder):
  changes = ('--config.rollout.max_new_tokens=4', '--config.rollout.samples_per_prompt=2')
  result = run(folder, 'Qwen3-0.6B', changes=changes)
  assert result.returncode == 0, result.stderr
  assert "model='o4-mini-2025-04-16' is a hosted model" in result.stderr
  assert 'learning_rate_multiplier="auto": 1 ' in result.stderr
  workdir = folder / 'runs' / 'job'
  assert {'config.json', 'model.safetensors', 'tokenizer.json'} <= {
    path.name for path in (workdir / 'export').iterdir()
  }
  assert 'held-out' in (workdir / 'report.html').read_text()
  events = [json.loads(line) for line in (workdir / 'events.jsonl').read_text().splitlines()]
  assert {event['type'] for event in events} == {'message', 'metrics'}
