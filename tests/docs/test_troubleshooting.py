"""docs/troubleshooting.md: all problem codes, and findings and metrics under their names."""

import ast
import re

import documentation
from paths import ROOT

PAGE = 'docs/troubleshooting.md'
# Codes that are put together from parts: the f-string, and what stands in its braces.
COMPOSED = {'E_{}_TOO_LONG': ('PROMPT', 'COMPLETION'), 'W_{}_DROPPED': ('PROMPT', 'COMPLETION')}


def _texts(folder):
  """Yields the string literals of a folder's files; {} stands for what an f-string inserts."""
  for path in (ROOT / 'rft_jax' / folder).rglob('*.py'):
    tree = ast.parse(path.read_text(encoding='utf-8'))
    parts = {
      part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
      if isinstance(node, ast.JoinedStr):
        yield ''.join(
          part.value if isinstance(part, ast.Constant) else '{}' for part in node.values
        )
      elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
        yield node.value


def _rows(title):
  """Returns the texts in backticks in the first column of the table under a title."""
  section = documentation.read(PAGE).partition(f'\n## {title}\n')[2].partition('\n## ')[0]
  cells = re.findall(r'^\| (`.+?`) \|', section.replace('\\|', ' '), re.MULTILINE)
  return [name for cell in cells for name in re.findall('`([^`]+)`', cell)]


def test_every_problem_code_of_rows_is_explained_and_no_other():
  codes = set()
  for text in _texts('data'):
    if text in COMPOSED:
      codes |= {text.format(part) for part in COMPOSED[text]}
    elif re.fullmatch(r'[EW]_[A-Z_{}]+', text):
      codes.add(text)
  assert not [code for code in codes if '{' in code], 'add it to COMPOSED'
  assert set(_rows('Rows')) == codes


def test_the_findings_of_the_doctor_are_quoted_as_it_writes_them():
  source, findings = '\n'.join(_texts('doctor')), _rows("The doctor's findings")
  assert len(findings) == 14
  for finding in findings:
    # Names of errors are inserted into a finding.
    pieces = re.split(r'\.\.\.%?|(?<=_error) ', finding)
    missing = [piece for piece in pieces if piece.strip() not in source]
    assert not missing, finding


def test_the_errors_of_a_run_are_quoted_as_it_writes_them():
  source = '\n'.join(_texts('.'))
  for error in _rows('Errors of a run')[1:]:  # the first is the form of all errors of the config
    pieces = re.split(r'\.\.\.| [NM] |0\.1\.0', error)
    missing = [piece for piece in pieces if piece.strip() not in source]
    assert not missing, error


def test_the_metrics_are_named_as_they_are_written():
  source = '\n'.join(_texts('.'))
  for metric in _rows('Training that does not learn'):
    assert metric.replace('...', '') in source or metric.rpartition('/')[2] in source, metric
