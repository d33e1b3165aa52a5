"""examples/: GRPO in about 150 lines, and the notebook of a user's first half hour."""

import ast
import importlib.util
import json
import os
import re
import statistics

import nbclient
import nbformat
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


def test_the_notebook_is_stored_without_outputs():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  assert set(notebook.metadata) == {'kernelspec', 'language_info'}
  for cell in notebook.cells:
    assert not cell.metadata
    assert cell.cell_type == 'markdown' or (not cell.outputs and cell.execution_count is None)


@pytest.mark.full  # trains for about a minute
def test_the_notebook_runs_and_the_held_out_grade_rises(tmp_path):
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS'])
  client = nbclient.NotebookClient(
    notebook, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute(env=os.environ | {'TMPDIR': str(tmp_path), 'XLA_FLAGS': flags})
  (workdir,) = tmp_path.glob('quickstart_*/run')
  evaluations = [json.loads(line) for line in (workdir / 'evaluation.jsonl').open()]
  grade = {row['step']: row['grade']['mean'] for row in evaluations}
  assert grade[0] < grade[150] < grade[190]
  shown = [output for cell in notebook.cells for output in cell.get('outputs', ())]
  assert any('image/png' in output.get('data', ()) for output in shown)
  assert f'export: {workdir}/export' in ''.join(output.get('text', '') for output in shown)
