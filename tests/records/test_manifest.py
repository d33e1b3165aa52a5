"""manifest.json: what it records, and how it is read and written."""

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
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(4, 2), ('data', 'fsdp'))
  return manifest.gather(
    {'seed': 1, 'optim': {'lr': 1e-5}, 'stages': ({'algorithm': 'sft', 'steps': 5},)},
    seed=1,
    overrides=['--config.seed=1'],
    mesh=mesh,
    base=tmp_path / 'base',
    data={'train': tmp_path / 'cases.jsonl', 'validation': ['hub:org/rows']},
    tokenizer=tmp_path / 'base',
    template='{{ x }}',
    grader={'b': 1, 'a': 2},
  )


def test_it_records_what_the_run_depends_on(gathered):
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
  assert manifest.read(tmp_path / 'elsewhere') is None


def test_git_state_is_the_commit_and_whether_the_code_differs_from_it(tmp_path):
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


def test_a_damaged_manifest_is_named(tmp_path):
  (tmp_path / 'manifest.json').write_text('{"a":')
  with pytest.raises(ValueError, match='manifest.json:1: not JSON'):
    manifest.read(tmp_path)


def test_writing_replaces_the_file_whole(tmp_path):
  manifest.write(tmp_path, {'a': 1})
  with pytest.raises(ValueError):
    manifest.write(tmp_path, {'a': float('nan')})
  assert json.loads((tmp_path / 'manifest.json').read_text()) == {'a': 1}
  assert [path.name for path in tmp_path.iterdir()] == ['manifest.json']
