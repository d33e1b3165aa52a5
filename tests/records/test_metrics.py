"""Metrics, evaluations, the ledger of samples and the progress line."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.records import episodes as episode_files
from rft_jax.records import metrics
from rft_jax.records.progress import Progress, duration
from rft_jax.types import Episode, Grade, Item, Sample


def interval(mean):
  return {'mean': mean, 'low': mean - 0.1, 'high': mean + 0.1}


def log_run(workdir, first, last, **resume):
  with metrics.Metrics(workdir, **resume) as log:
    for step in range(first, last):
      log.evaluation(step, 'validation', 8, {'grade': interval(step / 10)})
      log.write(step, {'reward': step / 7, 'note': 'ok'})


def test_a_continued_runs_files_equal_an_uninterrupted_ones(tmp_path):
  log_run(tmp_path / 'whole', 0, 6, resume_step=0)
  log_run(tmp_path / 'parts', 0, 5, resume_step=0)
  with open(tmp_path / 'parts' / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 5, "rew')  # killed in mid-line
  log_run(tmp_path / 'parts', 3, 6, resume_step=3)
  for name in (metrics.TRAINING, metrics.EVALUATION):
    assert (tmp_path / 'parts' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()
  assert [row['step'] for row in metrics.read(tmp_path / 'parts' / metrics.TRAINING)] == [
    0,
    1,
    2,
    3,
    4,
    5,
  ]


def test_opening_without_a_step_keeps_every_row(tmp_path):
  log_run(tmp_path, 0, 3)
  log_run(tmp_path, 3, 4)
  assert len(metrics.read(tmp_path / metrics.EVALUATION)) == 4


def test_evaluations_can_go_on_from_another_step(tmp_path):
  log_run(tmp_path, 0, 4)
  metrics.Metrics(tmp_path, resume_step=2, resume_evaluation=3).close()
  assert len(metrics.read(tmp_path / metrics.TRAINING)) == 2
  assert len(metrics.read(tmp_path / metrics.EVALUATION)) == 3


def test_numbers_are_plain_and_finite_or_null(tmp_path):
  with metrics.Metrics(tmp_path) as log:
    log.write(
      np.int64(1),
      {
        'a': jnp.float32(0.5),
        'b': np.float64('nan'),
        'c': float('inf'),
        'd': np.int32(3),
        'e': True,
        'f': None,
      },
    )
    assert metrics.read(tmp_path / metrics.TRAINING) == [  # before it is closed
      {'step': 1, 'a': 0.5, 'b': None, 'c': None, 'd': 3, 'e': True, 'f': None}
    ]


def test_a_value_that_is_no_number_is_named(tmp_path):
  with metrics.Metrics(tmp_path) as log:
    with pytest.raises(TypeError, match='metric rewards is a list'):
      log.write(0, {'rewards': [1.0]})
    with pytest.raises(TypeError, match='metric x is a ndarray'):
      log.write(0, {'x': np.zeros(2)})


def test_a_damaged_line_is_named_and_one_cut_short_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\n{"step": 1')
  assert metrics.read(path) == [{'step': 0}]
  path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
  with pytest.raises(ValueError, match='metrics.jsonl:2: not JSON'):
    metrics.read(path)
  assert metrics.read(tmp_path / 'none.jsonl') == []


def episode(reward, number, filtered=None):
  row = {'messages': [{'role': 'user', 'content': 'Größe?'}], 'answer': {'n': [1, 2]}}
  sample = Sample([5, 6, 2], [-0.1, -2.5, np.float32(-1e-8).item()], filtered, 'stop')
  grade = Grade(reward, {'exact': reward}, {} if reward is not None else {'other_error': 'down'})
  return Episode(
    Item(row, 'cases.jsonl:12'), 41, number, [9, 8], sample, '<think>a</think>b', 'b', 4, grade, 12
  )


def test_the_ledger_gives_back_every_sample_as_it_was(tmp_path):
  episodes = [episode(0.5, 0), episode(None, 1, filtered=[-0.25, -0.5, 0.0])]
  path = episode_files.write(tmp_path, 12, episodes)
  assert path.name == 'step_000012.parquet' and episode_files.steps(tmp_path) == [12]
  for record, one in zip(episode_files.read(tmp_path, 12), episodes):
    assert record == {
      'occurrence': 41,
      'index': one.index,
      'source': 'cases.jsonl:12',
      'row': one.item.row,
      'prompt_ids': [9, 8],
      'tokens': [5, 6, 2],
      'logprobs': np.float32(one.sample.logprobs).tolist(),
      'filtered_logprobs': one.sample.filtered_logprobs,
      'text': one.text,
      'output_text': 'b',
      'reward': one.grade.reward,
      'components': one.grade.components,
      'errors': one.grade.errors,
      'stop_reason': 'stop',
      'reasoning_tokens': 4,
      'policy_step': 12,
    }


def test_the_ledger_reads_some_columns_and_names_the_steps_it_has(tmp_path):
  episode_files.write(tmp_path, 3, [episode(1.0, 0)])
  episode_files.write(tmp_path, 4, [episode(1.0, 0)])
  assert episode_files.read(tmp_path, 3, columns=['reward']) == [{'reward': 1.0}]
  with pytest.raises(FileNotFoundError, match='there are steps 3, 4'):
    episode_files.read(tmp_path, 5)
  episode_files.truncate(tmp_path, 4)
  assert episode_files.steps(tmp_path) == [3]


def test_the_ledger_writes_the_same_bytes_for_the_same_samples(tmp_path):
  one, two = (episode_files.write(tmp_path / name, 1, [episode(1.0, 0)]) for name in 'ab')
  assert one.read_bytes() == two.read_bytes()


class Clock:
  """Seconds that pass when told."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def test_time_left_follows_the_median_step_not_the_one_that_compiled():
  clock = Clock()
  progress = Progress(total_steps=10, clock=clock, stream=io.StringIO())
  for step, seconds in enumerate((300.0, 2.0, 2.0), start=1):
    clock.now += seconds
    progress.update(step)
  assert progress.seconds_left(3) == 7 * 2.0


def test_lines_come_at_most_every_ten_seconds_and_at_the_end():
  clock, stream = Clock(), io.StringIO()
  with Progress(total_steps=30, clock=clock, stream=stream) as progress:
    progress.evaluated(0.5)
    for step in range(1, 31):
      clock.now += 1.0
      progress.update(step, stage='grpo', values={'reward': 0.25, 'step_tokens': 100})
  lines = stream.getvalue().splitlines()
  assert [line.split()[2] for line in lines] == ['1/30', '11/30', '21/30', '30/30']
  assert lines[1] == ('grpo  step 11/30  reward 0.250  held-out 0.500  100 tokens/s  19 s left')


def test_a_quiet_run_prints_nothing():
  stream = io.StringIO()
  with Progress(total_steps=1, quiet=True, stream=stream) as progress:
    progress.update(1, values={'reward': 1.0})
  assert stream.getvalue() == ''


def test_a_terminal_gets_one_live_line():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with Progress(total_steps=2, stream=stream) as progress:
    progress.update(2, stage='sft', values={'loss': 1.5})
  assert 'step 2/2' in stream.getvalue() and 'loss 1.500' in stream.getvalue()


def test_durations_read_as_people_say_them():
  assert [duration(s) for s in (42.4, 425, 12_000)] == ['42 s', '7 min 05 s', '3 h 20 min']


def test_rows_are_json_that_any_reader_accepts(tmp_path):
  with metrics.Metrics(tmp_path) as log:
    log.evaluation(2, 'test', 3, {'grade': {'mean': float('nan'), 'low': 0, 'high': 1}})
  line = (tmp_path / 'evaluation.jsonl').read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {
    'step': 2,
    'split': 'test',
    'rows': 3,
    'grade': {'mean': None, 'low': 0, 'high': 1},
  }
