"""Whole runs that learn from preferences, DPO and KTO, with and without a grader."""

import json

import pytest
import tiny
from preference_examples import pair_rows, run_config
from workdirs import assert_same_runs

import rft_jax
from rft_jax.algorithms import reference_logprobs
from rft_jax.errors import InputError
from rft_jax.records import metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import build


@pytest.mark.full
@pytest.mark.parametrize('algorithm', ['dpo', 'kto'])
def test_a_run_without_a_grader_learns_and_continues_bit_for_bit(tmp_path, algorithm):
  config = run_config(tmp_path, algorithm)
  if algorithm == 'kto':  # dpo: a warm-up on the chosen answers before
    config.stages = config.stages[1:]
  last = config.total_steps()
  accuracy = rft_jax.train(config, tmp_path / 'whole', quiet=True)['preference/accuracy']
  assert 0.5 < accuracy['low'] <= accuracy['mean'] <= accuracy['high'] <= 1
  rft_jax.train(config, tmp_path / 'stopped', stop_at_step=last - 1, quiet=True)
  cache = tmp_path / 'stopped' / reference_logprobs.FOLDER
  written = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
  rft_jax.train(config, tmp_path / 'stopped', quiet=True)
  assert written and all(path.stat().st_mtime_ns == time for path, time in written.items())
  assert_same_runs(tmp_path / 'stopped', tmp_path / 'whole', last)
  held_out = metrics.read(tmp_path / 'whole' / 'evaluation.jsonl')
  means = {row['step']: row['preference/accuracy']['mean'] for row in held_out}
  assert Checkpoints(tmp_path / 'whole' / 'checkpoints').best() == max(
    (step for step in means if step), key=lambda step: (means[step], -step)
  )
  page = (tmp_path / 'whole' / 'report.html').read_text()
  assert 'of the held-out pairs are ranked correctly' in page and 'Pair accuracy' in page
  event = json.loads((tmp_path / 'whole' / 'events.jsonl').read_text().splitlines()[1])
  assert event['data']['train_loss'] > 0
  with pytest.raises(InputError, match='answers cannot be graded'):
    rft_jax.evaluate(config)


@pytest.mark.full
def test_with_a_grader_held_out_pairs_are_measured_in_addition_to_grades(tmp_path):
  config = run_config(tmp_path, 'dpo')
  config.stages, config.grader = config.stages[1:], tiny.GRADER
  config.stages[0].steps = 1
  rows = [dict(row, answer='1') for row in pair_rows(100, 4)]
  tiny.write_rows(tmp_path / 'validation.jsonl', rows)
  values = rft_jax.train(config, tmp_path / 'run', quiet=True)
  assert {'grade', 'greedy/grade', 'preference/accuracy', 'preference/margin'} <= values.keys()


def test_with_a_grader_held_out_rows_need_no_pairs(tmp_path):
  config = run_config(tmp_path, 'dpo')
  config.grader = tiny.GRADER
  tiny.write_rows(tmp_path / 'validation.jsonl', tiny.rows(3))
  for training in (True, False):
    with build.components(config, training=training) as components:
      assert [e.rejected_ids for e in components.validation] == [None] * 3
      assert len(components.train) == 2 * training
      assert all(stage[0].rejected_ids for stage in components.train)


def test_without_grader_and_held_out_pairs_nothing_can_be_measured(tmp_path):
  config = run_config(tmp_path, 'dpo')
  tiny.write_rows(tmp_path / 'validation.jsonl', tiny.rows(3))
  with pytest.raises(InputError, match='nothing can be measured'):
    with build.components(config):
      pass


def test_invalid_settings_are_refused_all_at_once(tmp_path):
  config = run_config(tmp_path, 'dpo')
  config.stages[1].algorithm = 'grpo'
  assert any('grader is empty' in problem for problem in config.problems())
  config.dpo.preference.loss, config.dpo.pairs_per_step = 'dpop', 0
  config.kto.preference.beta, config.kto.rows_per_step = -1, 1
  problems = '\n'.join(config.problems())
  for message in (
    "dpo.preference.loss='dpop'",
    'dpo.pairs_per_step=0',
    'kto.preference.beta=-1',
    'kto.rows_per_step=1',
  ):
    assert message in problems
