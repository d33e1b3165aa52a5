"""Where tests find the repository, and the shared files beside it that not every clone has."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'
