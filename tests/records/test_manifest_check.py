"""Which differences from the manifest of its workdir stop a run from continuing."""

import copy

import pytest

from rft_jax.records import manifest, manifest_check

MANIFEST = {
  'started': '2026-03-02T09:14:05+00:00',
  'overrides': ['--config.seed=1'],
  'config': {
    'seed': 1,
    'optim': {'lr': 1e-5},
    'mesh': {'data': -1},
    'evaluate': {'every': 10},
    'checkpoints': {'every': 5},
    'judge': {'model': 'a', 'base_url': 'http://a', 'retries': 3},
    'stages': [{'algorithm': 'sft', 'steps': 5}, {'algorithm': 'grpo', 'steps': 20}],
  },
  'seed': 1,
  'versions': {'jax': '0.10.2'},
  'git': {'commit': 'a', 'dirty': False},
  'mesh': {'data': 4, 'fsdp': 2},
  'prng': {'implementation': 'threefry2x32'},
  'sha256': {'data': {'train': [{'file': 'cases.jsonl', 'sha256': '0' * 64}]}, 'grader': '1' * 64},
}


@pytest.fixture
def workdir(tmp_path):
  manifest.write(tmp_path, MANIFEST)
  return tmp_path


def changed(path, value, old=MANIFEST):
  """A copy of a manifest with one field changed; path is a tuple of keys."""
  new = copy.deepcopy(old)
  parent = new
  for key in path[:-1]:
    parent = parent[key]
  parent[path[-1]] = value
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
def test_a_run_does_not_continue_as_another(workdir, path, value, name):
  with pytest.raises(ValueError, match=name) as caught:
    manifest_check.check_continue(workdir, changed(path, value))
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
def test_what_changes_no_result_may_differ(workdir, path, value, warns):
  new = changed(path, value)
  assert manifest_check.differences(MANIFEST, new)
  assert bool(manifest_check.check_continue(workdir, new)) == warns


def test_all_refused_fields_are_named_at_once(workdir):
  new = changed(('seed',), 2, changed(('config', 'optim', 'lr'), 1.0))
  with pytest.raises(ValueError, match=r'(?s)config\.optim\.lr.*seed: was 1'):
    manifest_check.check_continue(workdir, new)


def test_an_unchanged_manifest_continues_without_warnings(workdir):
  assert manifest_check.differences(MANIFEST, manifest.read(workdir)) == []
  assert manifest_check.check_continue(workdir, MANIFEST) == []


def test_a_workdir_without_a_manifest_is_free(workdir):
  assert manifest_check.check_continue(workdir / 'new', MANIFEST) == []


def test_every_allowed_difference_has_a_reason():
  assert all(len(allowed.reason) > 10 for allowed in manifest_check.ALLOWED_DIFFERENCES)


@pytest.mark.parametrize('version, refused', [('0.1.0', True), ('0.1.3', True), ('0.2.0', False)])
def test_a_run_of_version_0_1_is_refused_in_one_line(tmp_path, version, refused):
  old = changed(('versions', 'rft_jax'), version)
  manifest.write(tmp_path, old)
  new = changed(('versions', 'rft_jax'), '0.2.0')
  if not refused:
    assert manifest_check.check_continue(tmp_path, new) == []
    return
  with pytest.raises(ValueError) as caught:
    manifest_check.check_continue(tmp_path, new)
  message = str(caught.value)
  assert '\n' not in message and f'rft_jax {version}' in message and '--workdir' in message
