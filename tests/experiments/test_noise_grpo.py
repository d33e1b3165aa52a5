"""configs/noise_grpo.py and the figures of scripts/bench_noise.py."""

import importlib
import json

import config_files
import numpy as np
import pytest
from paths import ROOT

from rft_jax.records import episodes, metrics
from rft_jax.types import Episode, Grade, Item, Sample


@pytest.fixture(scope='module')
def bench():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT / 'scripts')
    return importlib.import_module('bench_noise')


@pytest.fixture(scope='module')
def made(bench, tmp_path_factory):
  """The files of chains, and where a warmed-up model would be."""
  to = tmp_path_factory.mktemp('noise')
  bench.write_rows('chains', to / 'chains')
  (to / 'chains/warm_up/export').mkdir(parents=True)
  (to / 'chains/warm_up/export/config.json').write_text('{}')
  return to


def test_every_cell_is_a_good_config_and_only_the_robust_arm_is_robust(bench, made):
  for cell in bench.cells(bench.parser().parse_args(['--arms', 'plain', 'robust', 'told'])):
    if cell[0] == 'chains':
      config = bench.noise.get_config(','.join(map(str, cell)), str(made))
      assert config.problems() == []
      assert (config.noisy_grades.min_plausibility > 0) == (cell[2] == 'robust')
  assert bench.noise.get_config('chains,warm_up', str(made)).problems() == []


@pytest.mark.parametrize(
  'cell',
  [
    'chains',
    'chess,0.2,plain,0',
    'chains,0.3,plain,0',
    'chains,0.2,brave,0',
    'chains,0.2,plain,first',
  ],
)
def test_no_such_cell_is_refused(cell, made):
  with pytest.raises(ValueError, match='need TASK,SHARE,ARM,SEED'):
    config_files.load('noise_grpo').get_config(cell, str(made))


def test_files_that_are_not_made_are_asked_for(made):
  with pytest.raises(ValueError, match='bench_noise.py --to=.* --prepare'):
    config_files.load('noise_grpo').get_config('rare_disease,0.2,plain,0', str(made))


def test_arms_learn_from_other_rows_than_the_warm_up_and_told_from_the_right_ones(bench, made):
  read = lambda name: [
    json.loads(line) for line in (made / 'chains' / name).read_text().splitlines()
  ]
  prompt = lambda row: row['messages'][0]['content']
  warm, plain, told = (
    read(f'{name}.jsonl') for name in ('warm_up', 'answers_0.4', 'answers_0.4_told')
  )
  assert not {prompt(row) for row in warm} & {prompt(row) for row in plain}
  assert told == [row for row in plain if not row.get('corrupted')]
  wrong, rows = bench.wrong_rows(made, 'chains', 0.4)
  assert rows == len(plain) == 512 and wrong == len(plain) - len(told)
  assert 0.3 < wrong / rows < 0.5


def _finish(bench, to, cell, before, after):
  """Writes what a finished cell leaves: two evaluations of three rows, one sample each."""
  place = bench.workdir(to, *cell)
  with metrics.Metrics(place) as written:
    for step, grades in ((0, before), (bench.noise.STEPS[cell[0]], after)):
      written.evaluation(step, 'validation', 3, {})
      episodes.write(
        place / 'evaluations',
        step,
        [
          Episode(
            Item({}, f'v:{row}'),
            row,
            index,
            [1],
            Sample([1], [0.0], None, 'stop'),
            '',
            '',
            0,
            Grade(grade, {}, {}),
            step,
          )
          for index in range(2)
          for row, grade in enumerate(grades)
        ],
      )


def test_the_table_pairs_arms_by_seed_and_row(bench, made, tmp_path):
  for seed in (0, 1):
    _finish(bench, made, ('chains', 0.4, 'plain', seed), [0, 0, 1.0], [0, 1.0, 1.0])
    _finish(bench, made, ('chains', 0.4, 'robust', seed), [0, 0, 1.0], [1.0, 1.0, 1.0])
  args = bench.parser().parse_args(['--to', str(made), '--tasks', 'chains'])
  (record,) = bench.collect(args)
  assert record['start'] == pytest.approx(1 / 3)
  assert record['grade']['plain'][0] == pytest.approx(2 / 3)
  assert record['grade']['robust'] == (1.0, 1.0, 1.0)
  assert record['more']['robust'][0] == pytest.approx(1 / 3)
  assert record['seeds'] == {'plain': [0, 1], 'robust': [0, 1]}
  bench.report(args)
  assert '| +0.333 [' in (made / 'noise.md').read_text()
  assert (made / 'noise.png').read_bytes().startswith(b'\x89PNG')


def test_an_interval_is_as_wide_as_rows_and_seeds_make_it(bench):
  """Independent rows of one seed: 1.96 standard errors of their mean."""
  values = np.random.default_rng(0).normal(size=(1, 400))
  mean, low, high = bench.grid.interval(values)
  error = values.std() / 20
  assert mean == values.mean() and abs((high - low) / (2 * 1.96 * error) - 1) < 0.05
  apart = np.concatenate([values, values + 3])  # seeds that differ widen it
  assert np.subtract(*bench.grid.interval(apart)[:0:-1]) > 2.9


def test_without_a_finished_cell_there_is_no_table(bench, tmp_path, capsys):
  assert bench.main(['--to', str(tmp_path), '--report']) == 2
  assert 'no cell is done yet' in capsys.readouterr().err
