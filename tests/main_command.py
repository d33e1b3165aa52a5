"""python -m rft_jax.main, with a config file of a tiny run."""

import subprocess
import sys
import textwrap

import tiny
from paths import ROOT


def run(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'rft_jax.main', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )


def write_config_file(directory):
  """Writes a base checkpoint, rows and directory/run.py; FILE.py:ROWS trains on other rows."""
  tiny.config(directory)
  file = directory / 'run.py'
  file.write_text(
    textwrap.dedent(f"""
      import pathlib, sys
      sys.path.insert(0, {str(ROOT / 'tests')!r})
      import tiny
      from rft_jax.config import ModelConfig

      def get_config(rows='train.jsonl'):
        directory = pathlib.Path({str(directory)!r})
        config = tiny.config(directory, model=ModelConfig(source=str(directory / 'base')))
        config.data.train = str(directory / rows)
        return config
      """)
  )
  return file
