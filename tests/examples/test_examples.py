"""examples/: GRPO in about 150 lines, and the notebook of a user's first half hour."""

import ast
import importlib.util
import statistics
import sys

import pytest
from paths import ROOT

from rft_jax.tasks import __main__ as tasks

EXAMPLE = ROOT / 'examples' / 'minimal_grpo.py'
NOTEBOOK = ROOT / 'examples' / 'quickstart.ipynb'


@pytest.fixture
def minimal_grpo():
  spec = importlib.util.spec_from_file_location('minimal_grpo', EXAMPLE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_reward_rises_and_the_result_is_exported(minimal_grpo, tmp_path):
  assert tasks.main(['arithmetic', f'--to={tmp_path}', '--train_rows=40']) == 0
  source = str(tmp_path / 'base')
  history = minimal_grpo.train(source, steps=8, to=str(tmp_path / 'export'))
  assert len(history) == 8 and statistics.mean(history[-2:]) > history[0] + 0.5
  assert (tmp_path / 'export' / 'model.safetensors').is_file()


def test_it_uses_public_names_alone_and_is_short():
  text = EXAMPLE.read_text(encoding='utf-8')
  assert len(text.splitlines()) <= 160
  imports = []
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      imports += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      imports.append(node.module)
  assert 'rft_jax' in imports and not [name for name in imports if name.startswith('rft_jax.')]
  import rft_jax

  used = {
    node.attr
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id == 'rft_jax'
  }
  assert used <= set(rft_jax.__all__)
