"""Writes the list of files in docs/layout.md: every file with the headline of its docstring.

python scripts/write_layout.py
"""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'layout.md'
FOLDERS = ('rft_jax', 'configs', 'scripts', 'examples')
BEGIN, END = '<!-- files: begin -->', '<!-- files: end -->'


def headline(path: pathlib.Path) -> str:
  """Returns the first line of a module's docstring.

  Raises:
    ValueError: the module has none.
  """
  docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
  if not docstring:
    raise ValueError(f'{path}: has no docstring; its first line is the headline in docs/layout.md')
  return docstring.split('\n')[0].strip()


def listing() -> str:
  """Returns the Markdown list of all Python files, a section for each folder."""
  lines = []
  for folder in FOLDERS:
    paths = sorted((ROOT / folder).rglob('*.py'))
    for directory in sorted({path.parent for path in paths}):
      name = directory.relative_to(ROOT).as_posix()
      lines += ['', f'## {name}/', '']
      init = directory / '__init__.py'
      if init in paths:
        lines += [headline(init), '']
      lines += [
        f'- `{path.name}`: {headline(path)}'
        for path in paths
        if path.parent == directory and path != init
      ]
  return '\n'.join(lines).strip() + '\n'


def page() -> str:
  """Returns docs/layout.md with the list of files as it should be."""
  text = PAGE.read_text(encoding='utf-8')
  return re.sub(
    f'{BEGIN}.*{END}', lambda _: f'{BEGIN}\n\n{listing()}\n{END}', text, flags=re.DOTALL
  )


if __name__ == '__main__':
  PAGE.write_text(page(), encoding='utf-8')
