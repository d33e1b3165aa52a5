"""Results of a workdir: export and evaluation of checkpoints, and what is refused."""

import json

import pytest

from rft_jax import hf
from rft_jax.errors import InputError
from rft_jax.records import metrics
from rft_jax.records.checkpoint import Checkpoints
from rft_jax.run import results


@pytest.mark.full
def test_a_checkpoint_is_evaluated_as_during_training(config, finished):
  recorded = {row['step']: row for row in metrics.read(finished / 'evaluation.jsonl')}
  values = results.evaluate_checkpoint(config, finished, which='last')
  assert values == {name: recorded[6][name] for name in values} and 'pass@2' in values
  assert results.last_evaluation(finished) == values


def test_a_checkpoint_is_exported_with_a_model_card(config, finished, tmp_path):
  to = results.export_checkpoint(config, finished, which=4, to=tmp_path / 'step_4')
  policy, _, step = results.restore_policy(config, finished, '4')
  exported, _ = hf.load(to)
  assert step == 4 and (exported.embed[...] == policy.embed[...]).all()
  card = (to / 'README.md').read_text()
  assert 'sft (3 steps), then grpo (3 steps)' in card
  best = Checkpoints(finished / 'checkpoints').best()
  assert results.restore_policy(config, finished, 'best')[2] == best


def test_a_missing_checkpoint_names_the_existing_ones(config, finished):
  with pytest.raises(InputError, match=r'no checkpoint of step 99; there are .*6'):
    results.export_checkpoint(config, finished, which='99')


def test_a_used_target_is_refused_unless_forced(config, finished, tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(InputError, match=str(tmp_path)):
    results.export_checkpoint(config, finished, to=tmp_path)
  assert results.export_checkpoint(config, finished, to=tmp_path, force=True) == tmp_path
  assert json.loads((tmp_path / 'config.json').read_text())['model_type'] == 'llama'


def test_a_folder_without_a_run_has_no_report(config, tmp_path):
  with pytest.raises(InputError, match='holds no run'):
    results.write_report(config, tmp_path)
  assert results.last_evaluation(tmp_path) == {}
