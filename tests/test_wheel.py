"""The built wheel, installed outside the clone, trains and writes the report."""

import os
import shutil
import subprocess
import sys

import pytest
import tiny
from paths import ROOT

CONFIG = """
import pathlib, sys
sys.path.append({tests!r})
import tiny

def get_config():
  return tiny.config(pathlib.Path({folder!r}))
"""


@pytest.mark.full
def test_a_wheel_outside_the_clone_trains_and_reports(tmp_path):
  source, site, folder = tmp_path / 'source', tmp_path / 'site', tmp_path / 'run'
  # A copy, since setuptools leaves build/ and *.egg-info where it builds.
  for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    source.mkdir(exist_ok=True)
    shutil.copy(ROOT / name, source)
  shutil.copytree(
    ROOT / 'rft_jax', source / 'rft_jax', ignore=shutil.ignore_patterns('__pycache__')
  )
  pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
  subprocess.run(
    [*pip, 'wheel', '--no-deps', '--wheel-dir', str(tmp_path), str(source)], check=True
  )
  (wheel,) = tmp_path.glob('*.whl')
  subprocess.run([*pip, 'install', '--no-deps', '--target', str(site), str(wheel)], check=True)

  folder.mkdir()
  (folder / 'config.py').write_text(CONFIG.format(tests=str(ROOT / 'tests'), folder=str(folder)))
  environment = dict(os.environ, PYTHONPATH=str(site), JAX_PLATFORMS='cpu')
  python = [sys.executable, '-c', 'import rft_jax; print(rft_jax.__file__)']
  imported = subprocess.run(
    python, cwd=folder, env=environment, check=True, capture_output=True, text=True
  )
  assert str(site) in imported.stdout
  command = [sys.executable, '-m', 'rft_jax.main', '--config=config.py', '--workdir=workdir']
  trained = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
  assert trained.returncode == 0, trained.stderr
  assert tiny.GRADER['name'] in (folder / 'workdir' / 'report.html').read_text()
  assert (folder / 'workdir' / 'export' / 'model.safetensors').is_file()
