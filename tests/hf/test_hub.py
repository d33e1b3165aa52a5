"""Local directories of checkpoints: hub ids with a revision, and sources that do not exist."""

import pytest

from rft_jax import hf


def test_an_unknown_source_is_an_error_that_says_what_was_tried():
  with pytest.raises(FileNotFoundError, match="(?s)'nobody/nothing' is no directory.*as a hub id"):
    hf.load('nobody/nothing')
  with pytest.raises(FileNotFoundError, match='no hub id'):
    hf.load('/not/there/at/all')


def test_a_hub_id_may_carry_a_revision(monkeypatch, tmp_path):
  calls = {}

  def snapshot_download(name, **settings):
    calls.update(settings, name=name)
    return str(tmp_path)

  monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot_download)
  assert hf.resolve('owner/name@abc123') == tmp_path
  assert (calls['name'], calls['revision']) == ('owner/name', 'abc123')
  hf.resolve('owner/name')
  assert calls['revision'] is None
