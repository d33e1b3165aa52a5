"""metrics.jsonl and evaluation.jsonl: continuing, plain numbers, damaged lines."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rft_jax.records import metrics


def interval(mean):
  return {'mean': mean, 'low': mean - 0.1, 'high': mean + 0.1}


def log_run(workdir, first, last, **resume):
  with metrics.Metrics(workdir, **resume) as log:
    for step in range(first, last):
      log.write_evaluation(step, 'validation', 8, {'grade': interval(step / 10)})
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


def test_a_damaged_line_is_named_and_an_incomplete_last_line_left_out(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\n{"step": 1')
  assert metrics.read(path) == [{'step': 0}]
  path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
  with pytest.raises(ValueError, match='metrics.jsonl:2: not JSON'):
    metrics.read(path)
  assert metrics.read(tmp_path / 'none.jsonl') == []


def test_rows_are_json_that_any_reader_accepts(tmp_path):
  with metrics.Metrics(tmp_path) as log:
    log.write_evaluation(2, 'test', 3, {'grade': {'mean': float('nan'), 'low': 0, 'high': 1}})
  line = (tmp_path / 'evaluation.jsonl').read_text()
  assert json.loads(line, parse_constant=pytest.fail) == {
    'step': 2,
    'split': 'test',
    'rows': 3,
    'grade': {'mean': None, 'low': 0, 'high': 1},
  }
