"""The manifest: what it records, and which differences stop a run from going on."""

import copy
import hashlib
import json
import subprocess

import jax
import numpy as np
import pytest

from rft_jax.records import manifest


@pytest.fixture
def gathered(tmp_path):
  """A manifest gathered from small real files."""
  (tmp_path / 'base').mkdir()
  (tmp_path / 'base' / 'model.safetensors').write_bytes(b'weights')
  (tmp_path / 'base' / 'tokenizer.json').write_text('{}')
  (tmp_path / 'cases.jsonl').write_text('{"a": 1}\n')
  config = {
    'seed': 1,
    'optim': {'lr': 1e-5},
    'mesh': {'data': -1},
    'evaluate': {'every': 10},
    'judge': {'model': 'a', 'base_url': 'http://a', 'retries': 3},
    'stages': ({'algorithm': 'sft', 'steps': 5}, {'algorithm': 'grpo', 'steps': 20}),
  }
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(4, 2), ('data', 'fsdp'))
  return manifest.gather(
    config,
    seed=1,
    overrides=['--config.seed=1'],
    mesh=mesh,
    base=tmp_path / 'base',
    data={'train': tmp_path / 'cases.jsonl', 'validation': ['hub:org/rows']},
    tokenizer=tmp_path / 'base',
    template='{{ x }}',
    grader={'b': 1, 'a': 2},
  )


def test_it_records_what_the_run_is_made_of(gathered):
  digest = hashlib.sha256
  assert gathered['sha256'] == {
    'data': {
      'train': [{'file': 'cases.jsonl', 'sha256': digest(b'{"a": 1}\n').hexdigest()}],
      'validation': [{'name': 'hub:org/rows'}],
    },
    'base': [{'file': 'model.safetensors', 'sha256': digest(b'weights').hexdigest()}],
    'tokenizer': [{'file': 'tokenizer.json', 'sha256': digest(b'{}').hexdigest()}],
    'template': digest(b'{{ x }}').hexdigest(),
    'grader': digest(b'{"a":2,"b":1}').hexdigest(),
  }
  assert gathered['versions']['jax'] == jax.__version__
  assert {
    'python',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'transformers',
    'numpy',
    'rft_jax',
  } <= gathered['versions'].keys()
  assert gathered['mesh'] == {'data': 4, 'fsdp': 2}
  assert gathered['devices']['count'] == 8 and gathered['prng']['implementation']
  assert 'host_platform_device_count' in gathered['flags']['XLA_FLAGS']


def test_it_is_read_back_as_it_was_gathered(gathered, tmp_path):
  manifest.write(tmp_path, gathered)
  assert manifest.read(tmp_path) == gathered
  assert manifest.differences(gathered, manifest.read(tmp_path)) == []
  assert manifest.read(tmp_path / 'elsewhere') is None


def test_git_state_tells_the_commit_and_whether_it_is_what_ran(tmp_path):
  def git(*arguments):
    subprocess.run(
      ['git', '-C', str(tmp_path), '-c', 'user.name=n', '-c', 'user.email=e@e', *arguments],
      check=True,
      capture_output=True,
    )

  assert manifest.git_state(tmp_path) == {}
  git('init')
  assert manifest.git_state(tmp_path) == {}  # a repository that does not hold this code
  (tmp_path / 'code.py').write_text('1')
  git('add', '.')
  git('commit', '-m', 'c')
  state = manifest.git_state(tmp_path)
  assert len(state['commit']) == 40 and state['dirty'] is False
  (tmp_path / 'code.py').write_text('2')
  assert manifest.git_state(tmp_path) == state | {'dirty': True}


def changed(old, path, value):
  """A copy of a manifest with one field changed; path is a tuple of keys."""
  new = copy.deepcopy(old)
  place = new
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  return new


@pytest.mark.parametrize(
  'path, value, name',
  [
    (('config', 'optim', 'lr'), 2e-5, r'config\.optim\.lr: was 1e-05, now 2e-05'),
    (('seed',), 2, 'seed: was 1, now 2'),
    (('config', 'stages', 0, 'steps'), 6, r'stages\[0\]\.steps: was 5, now 6'),
    (('config', 'stages', 1, 'steps'), 10, r'stages\[1\]\.steps: was 20, now 10'),
    (('sha256', 'grader'), 'f' * 64, r'sha256\.grader'),
    (('sha256', 'data', 'train', 0, 'sha256'), 'f' * 64, r'data\.train\[0\]\.sha256'),
    (('prng', 'implementation'), 'rbg', r'prng\.implementation'),
    (('config', 'judge', 'model'), 'b', r'config\.judge\.model: was "a", now "b"'),
    (('config', 'added'), 1, r'config\.added: was \(absent\), now 1'),
  ],
)
def test_a_run_does_not_continue_as_another(gathered, tmp_path, path, value, name):
  manifest.write(tmp_path, gathered)
  with pytest.raises(ValueError, match=name) as caught:
    manifest.check_continue(tmp_path, changed(gathered, path, value))
  assert '--workdir' in str(caught.value)


@pytest.mark.parametrize(
  'path, value, warns',
  [
    (('config', 'stages', 1, 'steps'), 30, True),
    (('config', 'evaluate', 'every'), 5, True),
    (('config', 'mesh', 'data'), 2, True),
    (('mesh',), None, True),
    (('versions', 'jax'), '9.9', True),
    (('git',), {}, True),
    (('started',), 'later', False),
    (('overrides',), [], False),
    (('sha256', 'data', 'train', 0, 'file'), 'renamed.jsonl', False),
    (('config', 'checkpoints'), {'every': 3}, False),
    (('config', 'judge', 'retries'), 9, False),
    (('config', 'judge', 'base_url'), 'http://b', True),
  ],
)
def test_what_changes_no_result_may_differ(gathered, tmp_path, path, value, warns):
  old = changed(gathered, ('git',), {'commit': 'a', 'dirty': False})
  old['config']['checkpoints'] = {'every': 5}
  manifest.write(tmp_path, old)
  new = changed(old, path, value)
  assert manifest.differences(old, new)
  assert bool(manifest.check_continue(tmp_path, new)) == warns


def test_all_refused_fields_are_named_at_once(gathered, tmp_path):
  manifest.write(tmp_path, gathered)
  new = changed(changed(gathered, ('seed',), 2), ('config', 'optim', 'lr'), 1.0)
  with pytest.raises(ValueError, match=r'(?s)config\.optim\.lr.*seed: was 1'):
    manifest.check_continue(tmp_path, new)


def test_a_workdir_without_a_manifest_is_free(gathered, tmp_path):
  assert manifest.check_continue(tmp_path / 'new', gathered) == []


def test_a_damaged_manifest_is_named(tmp_path):
  (tmp_path / 'manifest.json').write_text('{"a":')
  with pytest.raises(ValueError, match='manifest.json is not JSON'):
    manifest.read(tmp_path)


def test_every_allowance_gives_a_reason():
  assert all(len(allowed.reason) > 10 for allowed in manifest.MAY_DIFFER)


def test_writing_replaces_the_file_whole(tmp_path):
  manifest.write(tmp_path, {'a': 1})
  with pytest.raises(ValueError):
    manifest.write(tmp_path, {'a': float('nan')})
  assert json.loads((tmp_path / 'manifest.json').read_text()) == {'a': 1}
  assert [path.name for path in tmp_path.iterdir()] == ['manifest.json']
