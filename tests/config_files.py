"""Loads the files in configs/ as modules; they are not part of a package."""

import importlib.util

from paths import ROOT

CONFIGS = ROOT / 'configs'


def load(name):
  """Returns configs/NAME.py, executed."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
