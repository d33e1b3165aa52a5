"""configs/noise_grpo.py, and table and plot of scripts/bench_noise.py."""

import importlib
import json

import config_files
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
def folder(bench, tmp_path_factory):
  """Writes the files of chains and a stand-in for its warm-up model; returns the folder."""
  to = tmp_path_factory.mktemp('noise')
  bench.write_rows('chains', to / 'chains')
  (to / 'chains/warm_up/export').mkdir(parents=True)
  (to / 'chains/warm_up/export/config.json').write_text('{}')
  return to


@pytest.mark.full
def test_every_cell_is_a_valid_config_and_only_the_robust_arm_uses_noisy_grades(bench, folder):
  for cell in bench.cells(bench.make_parser().parse_args(['--arms', 'plain', 'robust', 'oracle'])):
    if cell[0] == 'chains':
      config = bench.noise.get_config(','.join(map(str, cell)), str(folder))
      assert config.problems() == []
      assert (config.noisy_grades.min_plausibility > 0) == (cell[2] == 'robust')
  assert bench.noise.get_config('chains,warm_up', str(folder)).problems() == []


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
def test_an_unknown_cell_is_an_error(cell, folder):
  with pytest.raises(ValueError, match='need TASK,SHARE,ARM,SEED'):
    config_files.load('noise_grpo').get_config(cell, str(folder))


def test_missing_files_are_an_error_with_the_command(folder):
  with pytest.raises(ValueError, match='bench_noise.py --to=.* --prepare'):
    config_files.load('noise_grpo').get_config('rare_disease,0.2,plain,0', str(folder))


def test_arms_and_warm_up_have_different_rows_and_oracle_has_the_right_ones(bench, folder):
  read = lambda name: [
    json.loads(line) for line in (folder / 'chains' / name).read_text().splitlines()
  ]
  prompt = lambda row: row['messages'][0]['content']
  warm_up, plain, oracle = (
    read(f'{name}.jsonl') for name in ('warm_up', 'answers_0.4', 'answers_0.4_oracle')
  )
  assert not {prompt(row) for row in warm_up} & {prompt(row) for row in plain}
  assert oracle == [row for row in plain if not row.get('corrupted')]
  wrong, rows = bench.wrong_rows(folder, 'chains', 0.4)
  assert rows == len(plain) == 512 and wrong == len(plain) - len(oracle)
  assert 0.3 < wrong / rows < 0.5


def write_finished_cell(bench, to, cell, before, after):
  """Writes the files of a finished cell: two evaluations of three rows, a greedy and a sample."""
  workdir = bench.workdir(to, *cell)
  with metrics.Metrics(workdir) as writer:
    for step, grades in ((0, before), (bench.noise.STEPS[cell[0]], after)):
      writer.write_evaluation(step, 'validation', 3, {})
      episodes.write(
        workdir / 'evaluations',
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


def test_the_table_pairs_arms_by_seed_and_row(bench, folder, tmp_path):
  for seed in (0, 1):
    write_finished_cell(bench, folder, ('chains', 0.4, 'plain', seed), [0, 0, 1.0], [0, 1.0, 1.0])
    write_finished_cell(
      bench, folder, ('chains', 0.4, 'robust', seed), [0, 0, 1.0], [1.0, 1.0, 1.0]
    )
  args = bench.make_parser().parse_args(['--to', str(folder), '--tasks', 'chains'])
  (record,) = bench.collect(args)
  assert record['start'] == pytest.approx(1 / 3)
  assert record['grade']['plain'][0] == pytest.approx(2 / 3)
  assert record['grade']['robust'] == (1.0, 1.0, 1.0)
  assert record['more']['robust'][0] == pytest.approx(1 / 3)
  assert record['seeds'] == {'plain': [0, 1], 'robust': [0, 1]}
  bench.report(args)
  assert '| +0.333 [' in (folder / 'noise.md').read_text()
  assert (folder / 'noise.png').read_bytes().startswith(b'\x89PNG')


def test_a_report_without_a_finished_cell_is_an_error(bench, tmp_path, capsys):
  assert bench.main(['--to', str(tmp_path), '--report']) == 2
  assert 'no finished cell' in capsys.readouterr().err
