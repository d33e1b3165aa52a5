"""docs/layout.md: forty concepts with the files that hold them, and the list of all files."""

import importlib.util
import re

import documentation
from paths import ROOT


def test_the_list_of_files_is_the_one_that_the_script_writes():
  spec = importlib.util.spec_from_file_location('layout', ROOT / 'scripts' / 'write_layout.py')
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  page = documentation.read('docs/layout.md')
  assert page.count(script.BEGIN) == page.count(script.END) == 1
  assert page == script.page(), 'run python scripts/write_layout.py'


def test_every_concept_names_files_that_exist():
  rows = re.findall(
    r'^\| (?!concept )([^|]+) \| ([^|]+) \| ([^|]+) \|$',
    documentation.read('docs/layout.md'),
    re.MULTILINE,
  )
  assert len(rows) == 40
  for concept, source, files in rows:
    assert source.startswith(('TRL, ', 'verl, ')), concept
    for name in re.split(', ', files):
      assert re.fullmatch('`.+`', name) and (ROOT / name.strip('`')).is_file(), concept
